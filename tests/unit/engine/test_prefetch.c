/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/prefetch.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#include "base/bits.h"

#define SMALL UINT64_C(4096)
#define HUGE  MIB(2)
#define BLOCK 512u /* small pages in a block */

static struct guestmem memory;
static struct pagemap map;
static struct prefetch prefetch;

static void open_regions(const uint64_t (*regions)[2], size_t count)
{
	memory.region_count = count;
	memory.pages = 0;
	for (size_t i = 0; i < count; i++) {
		memory.regions[i].pages = regions[i][0];
		memory.regions[i].page_bytes = regions[i][1];
		memory.pages += regions[i][0];
	}
	cr_assert_eq(pagemap_open(&map, &memory), 0);
	prefetch_init(&prefetch, &map, &memory);
}

static void open_blocks(uint64_t blocks)
{
	open_regions((const uint64_t[][2]){{blocks * BLOCK, SMALL}}, 1);
}

static void claim(size_t region, uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		pagemap_claim(&map, region, page / 64, UINT64_C(1) << page % 64);
}

/* The next block's number; -1: none. */
static long next(size_t region)
{
	struct prefetch_block block;

	if (!prefetch_next(&prefetch, &block))
		return -1;
	cr_assert_eq(block.region, region);
	cr_assert_eq(block.first % prefetch.block_pages[region], 0);
	return (long)(block.first / prefetch.block_pages[region]);
}

static void close_map(void)
{
	pagemap_close(&map);
}

TestSuite(prefetch, .fini = close_map, .timeout = 60);

Test(prefetch, without_faults_blocks_come_in_sequence_each_once)
{
	open_blocks(5);
	for (long i = 0; i < 5; i++)
		cr_assert_eq(next(0), i);
	cr_assert_eq(next(0), -1);
}

Test(prefetch, a_fault_is_followed_outward_in_both_directions)
{
	static const long expected[] = {50, 51, 49, 52, 48, 53, 47};

	open_blocks(100);
	prefetch_fault(&prefetch, 0, 50 * BLOCK + 17);
	for (unsigned i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
		cr_assert_eq(next(0), expected[i]);
}

Test(prefetch, at_the_end_of_the_reach_the_sequence_goes_on)
{
	open_blocks(100);
	prefetch_fault(&prefetch, 0, 50 * BLOCK);
	for (unsigned i = 0; i < 2 * PREFETCH_REACH + 1; i++) {
		long block = next(0);
		cr_assert(block >= 50 - (long)PREFETCH_REACH && block <= 50 + (long)PREFETCH_REACH);
	}
	cr_assert_eq(next(0), 0);
}

Test(prefetch, outward_stops_at_both_ends_of_the_region)
{
	open_blocks(3);
	prefetch_fault(&prefetch, 0, 2 * BLOCK);
	cr_assert_eq(next(0), 2);
	cr_assert_eq(next(0), 1);
	cr_assert_eq(next(0), 0);
	cr_assert_eq(next(0), -1);
}

Test(prefetch, the_newest_fault_comes_first_and_the_older_ones_are_not_forgotten)
{
	open_blocks(200);
	prefetch_fault(&prefetch, 0, 20 * BLOCK);
	prefetch_fault(&prefetch, 0, 150 * BLOCK);
	cr_assert_eq(next(0), 150);
	cr_assert_eq(next(0), 151);
	prefetch_fault(&prefetch, 0, 100 * BLOCK);
	cr_assert_eq(next(0), 100);
	for (unsigned i = 0; i < 2 * PREFETCH_REACH + 2 * PREFETCH_REACH - 1; i++)
		next(0);
	cr_assert_eq(next(0), 20);
}

Test(prefetch, a_fault_in_the_same_block_does_not_start_again)
{
	open_blocks(100);
	prefetch_fault(&prefetch, 0, 50 * BLOCK);
	cr_assert_eq(next(0), 50);
	prefetch_fault(&prefetch, 0, 50 * BLOCK + 300);
	cr_assert_eq(next(0), 51);
}

Test(prefetch, blocks_without_absent_pages_are_left_out)
{
	open_blocks(6);
	claim(0, 0, 2 * BLOCK);
	claim(0, 3 * BLOCK, BLOCK - 1);
	cr_assert_eq(next(0), 2);
	cr_assert_eq(next(0), 3, "one page of it is absent");
	claim(0, 4 * BLOCK, BLOCK);
	prefetch_fault(&prefetch, 0, 4 * BLOCK);
	cr_assert_eq(next(0), 5);
	cr_assert_eq(next(0), -1);
}

Test(prefetch, what_was_released_is_offered_after_nothing_was_left)
{
	open_blocks(3);
	claim(0, 0, 3 * BLOCK);
	cr_assert_eq(next(0), -1);
	pagemap_release(&map, 0, BLOCK / 64, UINT64_C(1) << 5);
	cr_assert_eq(next(0), 1);
	cr_assert_eq(next(0), -1);
}

Test(prefetch, a_release_in_a_block_that_is_out_is_seen_when_it_returns)
{
	struct prefetch_block block;

	open_blocks(1);
	cr_assert(prefetch_next(&prefetch, &block));
	claim(0, 0, BLOCK);
	cr_assert_eq(next(0), -1);
	pagemap_release(&map, 0, 0, 2);
	cr_assert_eq(next(0), -1, "it is out");
	prefetch_return(&prefetch, &block);
	cr_assert_eq(next(0), 0);
}

Test(prefetch, what_was_lost_is_offered_again_after_it_was_returned)
{
	struct prefetch_block first, again;

	open_blocks(2);
	cr_assert(prefetch_next(&prefetch, &first));
	cr_assert_eq(next(0), 1);
	cr_assert_eq(next(0), -1, "both are out");
	prefetch_return(&prefetch, &first);
	cr_assert(prefetch_next(&prefetch, &again));
	cr_assert_eq(again.first, first.first);
	claim(0, 0, BLOCK);
	prefetch_return(&prefetch, &again);
	cr_assert_eq(next(0), -1, "it has come");
}

Test(prefetch, every_region_has_its_turn_and_its_own_end)
{
	struct prefetch_block block;

	open_regions((const uint64_t[][2]){{BLOCK + 1, SMALL}, {1, SMALL}, {2, HUGE}}, 3);
	cr_assert_eq(next(0), 0);
	cr_assert(prefetch_next(&prefetch, &block));
	cr_assert(block.region == 0 && block.first == BLOCK && block.count == 1);
	cr_assert(prefetch_next(&prefetch, &block));
	cr_assert(block.region == 1 && block.first == 0 && block.count == 1);
	cr_assert_eq(next(2), 0);
	cr_assert_eq(next(2), 1);
	cr_assert_not(prefetch_next(&prefetch, &block));
}

Test(prefetch, a_huge_page_is_a_block_of_its_own)
{
	struct prefetch_block block;

	open_regions((const uint64_t[][2]){{9, HUGE}}, 1);
	prefetch_fault(&prefetch, 0, 4);
	cr_assert(prefetch_next(&prefetch, &block));
	cr_assert(block.first == 4 && block.count == 1);
	cr_assert_eq(next(0), 5);
	cr_assert_eq(next(0), 3);
}

Test(prefetch, the_beginning_comes_after_the_end_when_it_was_lost)
{
	struct prefetch_block blocks[4];

	open_blocks(4);
	for (unsigned i = 0; i < 4; i++)
		cr_assert(prefetch_next(&prefetch, &blocks[i]));
	claim(0, 2 * BLOCK, 2 * BLOCK);
	for (unsigned i = 0; i < 4; i++)
		prefetch_return(&prefetch, &blocks[i]);
	cr_assert_eq(next(0), 0);
	cr_assert_eq(next(0), 1);
	cr_assert_eq(next(0), -1);
}

Test(prefetch, only_so_many_blocks_are_out_at_once)
{
	struct prefetch_block block;

	open_blocks(PREFETCH_OUT_MAX + 10);
	for (unsigned i = 0; i < PREFETCH_OUT_MAX; i++)
		cr_assert(prefetch_next(&prefetch, &block));
	cr_assert_not(prefetch_next(&prefetch, &block));
	block.first = 0;
	prefetch_return(&prefetch, &block);
	cr_assert(prefetch_next(&prefetch, &block));
}

Test(prefetch, whatever_the_order_no_block_is_out_twice_and_none_is_left)
{
	enum { BLOCKS = 120, REGIONS = 3 };
	static const uint64_t regions[REGIONS][2] = {
		{BLOCKS * BLOCK, SMALL}, {BLOCKS * BLOCK - 100, SMALL}, {BLOCKS, HUGE}};
	static bool out[REGIONS][BLOCKS], done[REGIONS][BLOCKS];
	struct prefetch_block held[64];
	unsigned count = 0, left = REGIONS * BLOCKS;

	open_regions(regions, REGIONS);
	srand(3);
	while (left) {
		if (rand() % 3 == 0) {
			size_t region = (size_t)rand() % REGIONS;
			prefetch_fault(&prefetch, region,
				       (uint64_t)rand() % memory.regions[region].pages);
		}
		struct prefetch_block block;
		if (count < 64 && rand() % 2 && prefetch_next(&prefetch, &block)) {
			uint64_t index = block.first / prefetch.block_pages[block.region];
			cr_assert_not(out[block.region][index], "given out twice");
			cr_assert_not(done[block.region][index], "nothing is absent there");
			out[block.region][index] = true;
			held[count++] = block;
		} else if (count) {
			unsigned which = (unsigned)rand() % count;
			block = held[which];
			uint64_t index = block.first / prefetch.block_pages[block.region];
			if (rand() % 4) { /* else it was lost */
				claim(block.region, block.first, block.count);
				done[block.region][index] = true;
				left--;
			}
			out[block.region][index] = false;
			prefetch_return(&prefetch, &block);
			held[which] = held[--count];
		}
	}
}
