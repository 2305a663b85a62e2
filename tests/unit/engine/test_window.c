/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/window.h"

#include <criterion/criterion.h>

#include "base/bits.h"

#define MS    UINT64_C(1000000)
#define MOST  128u
#define GBIT  UINT64_C(125000000) /* bytes a second */
#define BLOCK MIB(2)

static struct window window;
static uint64_t now;

/* An idle stream asked, and what came first came after so long. */
static void open_at(uint64_t round_trip_ns)
{
	now = 1000 * MS;
	window_open(&window, MOST, GBIT, round_trip_ns);
	window_asked(&window, now);
	now += round_trip_ns;
	window_answered(&window, now, 0, 0);
	cr_assert_eq(window.round_trip_ns, round_trip_ns);
}

/* So much comes in even pieces, the last when the time is over. */
static void come(uint64_t data_bytes, uint64_t zero_bytes, uint64_t over_ns)
{
	const unsigned pieces = 100;

	for (unsigned i = 0; i < pieces; i++) {
		now += over_ns / pieces;
		window_answered(&window, now, data_bytes / pieces, zero_bytes / pieces);
	}
}

static unsigned blocks_for(double bytes_per_s, uint64_t round_trip_ns)
{
	return BUDGET_BLOCKS_LEAST +
	       (unsigned)(2 * bytes_per_s / 1e9 * (double)round_trip_ns / BLOCK);
}

Test(window, at_first_is_that_of_the_guesses)
{
	window_open(&window, MOST, GBIT, 0);
	cr_assert_eq(window.blocks, BUDGET_BLOCKS_LEAST);
	window_open(&window, MOST, GBIT, 150 * MS);
	cr_assert_eq(window.blocks, blocks_for(GBIT, 150 * MS));
	window_open(&window, MOST, 100 * GBIT, 150 * MS);
	cr_assert_eq(window.blocks, MOST);
}

Test(window, knows_the_round_trip_from_the_first_answer)
{
	window_open(&window, MOST, GBIT, 0);
	window_asked(&window, 1000 * MS);
	window_answered(&window, 1150 * MS, 0, 0);
	cr_assert_eq(window.round_trip_ns, 150 * MS);
	cr_assert_eq(window.blocks, blocks_for(GBIT, 150 * MS));
	window_answered(&window, 1151 * MS, BLOCK, 0);
	cr_assert_eq(window.round_trip_ns, 150 * MS, "only the first is one");
	window_asked(&window, 2000 * MS);
	window_answered(&window, 2200 * MS, BLOCK, 0);
	cr_assert_eq(window.round_trip_ns, 150 * MS, "the shortest counts");
	window_asked(&window, 3000 * MS);
	window_answered(&window, 3020 * MS, BLOCK, 0);
	cr_assert_eq(window.round_trip_ns, 20 * MS);
}

Test(window, rises_at_once_and_falls_slowly)
{
	open_at(100 * MS);
	come(15000000, 0, 50 * MS);
	cr_assert_float_eq(window.rate, 0.3, 0.001);
	cr_assert_eq(window.blocks, blocks_for(window.rate * 1e9, 100 * MS));
	come(3000000, 0, 50 * MS);
	cr_assert_float_eq(window.rate, 0.3 - 0.24 / 8, 0.001);
	cr_assert_eq(window.blocks, blocks_for(window.rate * 1e9, 100 * MS));
	come(16000000, 0, 50 * MS);
	cr_assert_float_eq(window.rate, 0.32, 0.001);
}

/* They take 32 bytes on the wire, whatever their number. */
Test(window, of_zeros_stays_what_it_was)
{
	for (uint64_t round_trip = 10 * MS; round_trip <= 150 * MS; round_trip += 140 * MS) {
		open_at(round_trip);
		unsigned before = window.blocks;
		for (unsigned i = 0; i < 20; i++)
			come(0, GIB(10), 50 * MS);
		cr_assert_eq(window.blocks, before);
		come(6250000, 0, 50 * MS); /* what a link of 1 Gbit/s brings */
		cr_assert_eq(window.blocks, before);
		/* Few of them, and nothing else: it falls. */
		for (unsigned i = 0; i < 20; i++)
			come(0, MIB(1), 50 * MS);
		cr_assert_lt(window.rate, 0.05);
	}
}

Test(window, is_not_measured_in_a_moment)
{
	open_at(150 * MS);
	unsigned before = window.blocks;
	come(MIB(64), 0, 30 * MS); /* all at once, of what was held back */
	cr_assert_eq(window.blocks, before);
	come(0, 0, 120 * MS);
	cr_assert_lt(window.rate, 2.0);
	open_at(MS / 10);
	come(MIB(64), 0, MS / 2);
	cr_assert_float_eq(window.rate, 0.125, 0.001);
}

Test(window, ends_a_measurement_when_enough_has_come)
{
	open_at(10 * MS);
	come(MIB(20), 0, 10 * MS);
	cr_assert_float_eq(window.rate, 2.1, 0.1);
}

Test(window, never_exceeds_its_bound)
{
	open_at(150 * MS);
	for (unsigned i = 0; i < 10; i++)
		come(GIB(1), 0, 50 * MS);
	cr_assert_eq(window.blocks, MOST);
	window_open(&window, BUDGET_BLOCKS_LEAST, 100 * GBIT, 150 * MS);
	cr_assert_eq(window.blocks, BUDGET_BLOCKS_LEAST);
}
