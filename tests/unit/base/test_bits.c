/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "base/bits.h"

Test(bits, a_mask_has_so_many_ones_from_its_first_bit_on)
{
	cr_assert_eq(bits_mask(0, 1), 1);
	cr_assert_eq(bits_mask(63, 1), UINT64_C(1) << 63);
	cr_assert_eq(bits_mask(0, 64), ~UINT64_C(0));
	cr_assert_eq(bits_mask(4, 8), 0xff0);
	cr_assert_eq(bits_mask(1, 63), ~UINT64_C(1));
}

static void check_run(uint64_t *word, unsigned first, unsigned count, uint64_t left)
{
	struct bits_run run = bits_take_run(word);
	cr_assert_eq(run.first, first);
	cr_assert_eq(run.count, count);
	cr_assert_eq(*word, left);
}

Test(bits, runs_come_lowest_first_and_are_cleared)
{
	uint64_t word = 0xc00000000000f0f1;
	check_run(&word, 0, 1, 0xc00000000000f0f0);
	check_run(&word, 4, 4, 0xc00000000000f000);
	check_run(&word, 12, 4, 0xc000000000000000);
	check_run(&word, 62, 2, 0);
	cr_assert_eq(bits_take_run(&word).count, 0);
}

Test(bits, a_full_word_is_one_run_of_64)
{
	uint64_t word = ~UINT64_C(0);
	check_run(&word, 0, 64, 0);
}

Test(bits, a_run_that_ends_at_the_top_is_taken_whole)
{
	for (unsigned first = 0; first < 64; first++) {
		uint64_t word = ~UINT64_C(0) << first;
		check_run(&word, first, 64 - first, 0);
	}
}

Test(bits, the_runs_of_any_word_make_up_the_word_and_are_maximal)
{
	srand48(3);
	for (int i = 0; i < 100000; i++) {
		uint64_t word = (uint64_t)mrand48() << 32 ^ (uint32_t)mrand48(), left = word;
		uint64_t together = 0;
		unsigned end = 0;
		for (struct bits_run run; (run = bits_take_run(&left)).count;) {
			uint64_t mask = bits_mask(run.first, run.count);
			cr_assert_eq(together & mask, 0);
			cr_assert(!together || run.first > end, "two runs touch");
			together |= mask;
			end = run.first + run.count;
		}
		cr_assert_eq(together, word);
	}
}

Test(bits, rounding_up_keeps_multiples_and_reaches_the_next_one_otherwise)
{
	cr_assert_eq(round_up(0, 4096), 0);
	cr_assert_eq(round_up(1, 4096), 4096);
	cr_assert_eq(round_up(4096, 4096), 4096);
	cr_assert_eq(round_up(4097, 4096), 8192);
	cr_assert_eq(KIB(1) << 20, GIB(1));
	cr_assert_eq(MIB(1024), GIB(1));
}
