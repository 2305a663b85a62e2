/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/reads.h"

#include <criterion/criterion.h>
#include <errno.h>

#include "base/bits.h"

#define CELL (READS_CELL_BYTES / 4096)

static struct guestmem memory;
static struct reads reads;

static void open_table(void)
{
	memory.region_count = 2;
	memory.regions[0].pages = 10 * CELL + 7;
	memory.regions[0].page_bytes = 4096;
	memory.regions[1].pages = 20;
	memory.regions[1].page_bytes = MIB(2);
	cr_assert_eq(reads_open(&reads, &memory), 0);
}

static void close_table(void)
{
	reads_close(&reads);
}

TestSuite(reads, .init = open_table, .fini = close_table, .timeout = 60);

static int tell(size_t region, uint64_t first, uint64_t count, uint64_t address, uint32_t key)
{
	struct reads_chunk chunk = {first, count, address, key};
	return reads_tell(&reads, &region, &chunk, 1);
}

Test(reads, nothing_is_found_before_it_is_told)
{
	struct reads_place place;
	struct reads none = {0};

	cr_assert(!reads_find(&reads, 0, 0, 1, &place));
	cr_assert(!reads_find(&reads, 0, memory.regions[0].pages - 1, 1, &place));
	cr_assert(!reads_find(&none, 0, 0, 1, &place), "a transport that cannot READ");
}

Test(reads, a_page_is_found_where_its_chunk_has_it)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 100, 50, 0x10000000, 9), 0);
	cr_assert(reads_find(&reads, 0, 100, 1, &place));
	cr_assert_eq(place.address, 0x10000000);
	cr_assert_eq(place.key, 9);
	cr_assert_eq(place.count, 1);
	cr_assert(reads_find(&reads, 0, 149, 1, &place));
	cr_assert_eq(place.address, 0x10000000 + 49 * 4096);
	cr_assert(!reads_find(&reads, 0, 99, 1, &place));
	cr_assert(!reads_find(&reads, 0, 150, 1, &place));
	cr_assert(!reads_find(&reads, 1, 0, 1, &place), "another region");
}

Test(reads, a_run_ends_where_its_chunk_does)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 0, CELL, 0x10000000, 1), 0);
	cr_assert_eq(tell(0, CELL, CELL, 0x20000000, 2), 0);
	cr_assert(reads_find(&reads, 0, CELL - 3, 64, &place));
	cr_assert_eq(place.count, 3);
	cr_assert_eq(place.key, 1);
	cr_assert(reads_find(&reads, 0, CELL, 64, &place));
	cr_assert_eq(place.count, 64);
	cr_assert_eq(place.key, 2);
}

Test(reads, pages_have_the_size_of_their_region)
{
	struct reads_place place;

	cr_assert_eq(tell(1, 2, 18, 0x40000000, 3), 0);
	cr_assert(reads_find(&reads, 1, 19, 1, &place));
	cr_assert_eq(place.address, 0x40000000 + 17 * MIB(2));
}

Test(reads, what_is_told_last_is_what_is_found)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 10, 10, 0x10000000, 1), 0);
	cr_assert_eq(tell(0, 5, 100, 0x20000000, 2), 0);
	cr_assert(reads_find(&reads, 0, 10, 1, &place));
	cr_assert_eq(place.key, 2);
	cr_assert_eq(place.address, 0x20000000 + 5 * 4096);
}

Test(reads, a_chunk_is_forgotten_whole)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 0, 3 * CELL, 0x10000000, 1), 0);
	cr_assert_eq(tell(0, 3 * CELL, CELL, 0x20000000, 2), 0);
	cr_assert_eq(reads_forget(&reads, 0, CELL + 4, 1), 0);
	for (unsigned i = 0; i < 3; i++)
		cr_assert(!reads_find(&reads, 0, i * CELL, 1, &place), "cell %u", i);
	cr_assert(reads_find(&reads, 0, 3 * CELL, 1, &place), "the run does not touch it");
}

Test(reads, a_run_beside_a_chunk_leaves_it)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 10, 10, 0x10000000, 1), 0);
	cr_assert_eq(reads_forget(&reads, 0, 0, 10), 0);
	cr_assert_eq(reads_forget(&reads, 0, 20, CELL), 0);
	cr_assert(reads_find(&reads, 0, 10, 1, &place));
	cr_assert_eq(reads_forget(&reads, 0, 19, 1), 0);
	cr_assert(!reads_find(&reads, 0, 10, 1, &place));
}

Test(reads, what_was_forgotten_can_be_told_again)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 10, 10, 0x10000000, 1), 0);
	cr_assert_eq(reads_forget(&reads, 0, 10, 1), 0);
	cr_assert_eq(tell(0, 10, 10, 0x30000000, 4), 0);
	cr_assert(reads_find(&reads, 0, 12, 1, &place));
	cr_assert_eq(place.key, 4);
}

Test(reads, a_chunk_beyond_its_region_is_refused_and_with_it_the_whole_message)
{
	const size_t regions[] = {0, 0};
	const struct reads_chunk chunks[] = {{0, 1, 0, 1}, {10 * CELL, 8, 0, 1}};
	struct reads_place place;

	cr_assert_eq(reads_tell(&reads, regions, chunks, 2), -EPROTO);
	cr_assert(!reads_find(&reads, 0, 0, 1, &place));
	cr_assert_eq(tell(2, 0, 1, 0, 1), -EPROTO);
	cr_assert_eq(tell(0, 0, 0, 0, 1), -EPROTO);
	cr_assert_eq(tell(0, UINT64_MAX, 2, 0, 1), -EPROTO);
	cr_assert_eq(tell(0, 1, UINT64_MAX, 0, 1), -EPROTO);
	cr_assert_eq(reads_forget(&reads, 2, 0, 1), -EPROTO);
	cr_assert_eq(reads_forget(&reads, 0, 10 * CELL, 8), -EPROTO);
}

Test(reads, a_chunk_in_two_pieces_is_withdrawn_as_a_whole)
{
	struct reads_place place;

	cr_assert_eq(tell(0, 0, 5 * CELL, 0x10000000, 1), 0);
	cr_assert_eq(tell(0, 2 * CELL, CELL, 0x20000000, 2), 0);
	cr_assert_eq(reads_forget(&reads, 0, 1, 1), 0);
	cr_assert(!reads_find(&reads, 0, CELL, 1, &place));
	cr_assert(!reads_find(&reads, 0, 4 * CELL, 1, &place));
	cr_assert(reads_find(&reads, 0, 2 * CELL, 1, &place), "what was told over it");
	cr_assert_eq(place.key, 2);
}

Test(reads, no_more_is_forgotten_than_memory_has)
{
	uint64_t pages = memory.regions[0].pages;
	struct reads_place place;

	cr_assert_eq(tell(0, 0, CELL, 0x10000000, 1), 0);
	cr_assert_eq(reads_forget(&reads, 0, 0, pages), 0);
	cr_assert_eq(reads_forget(&reads, 1, 0, memory.regions[1].pages), 0);
	cr_assert_eq(tell(0, 0, CELL, 0x10000000, 1), 0);
	cr_assert_eq(reads_forget(&reads, 0, 0, pages), -EPROTO);
	cr_assert_eq(reads_forget(&reads, 0, 0, 1), -EPROTO);
	cr_assert(reads_find(&reads, 0, 0, 1, &place));
}

Test(reads, what_was_told_before_the_session_was_attached_again_is_found_no_more)
{
	struct reads_place place;

	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(tell(0, 0, 2 * CELL, 0x10000000, 10 + i), 0);
		cr_assert(reads_find(&reads, 0, CELL, 1, &place));
		cr_assert_eq(place.key, 10 + i);
		reads_restart(&reads, i % 2);
		cr_assert(!reads_find(&reads, 0, 0, 1, &place));
		cr_assert(!reads_find(&reads, 0, CELL, 1, &place));
	}
}

Test(reads, a_source_that_never_stops_telling_is_stopped)
{
	unsigned told = 0;

	while (told < 10000 && tell(0, 0, 1, 0, 1) == 0)
		told++;
	cr_assert_lt(told, 10000);
	cr_assert_geq(told, 2 * 11, "each cell may be told, and told again");
}
