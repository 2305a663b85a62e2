/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/pagemap.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bits.h"

static struct guestmem memory;
static struct pagemap map;

static void open_map(uint64_t first_pages, uint64_t second_pages)
{
	memory.region_count = second_pages ? 2 : 1;
	memory.regions[0].pages = first_pages;
	memory.regions[1].pages = second_pages;
	memory.regions[0].page_bytes = memory.regions[1].page_bytes = 4096;
	memory.pages = first_pages + second_pages;
	cr_assert_eq(pagemap_open(&map, &memory), 0);
}

TestSuite(pagemap, .timeout = 60);

Test(pagemap, every_page_is_absent_at_first_and_missing)
{
	open_map(130, 1);
	for (uint64_t page = 0; page < 130; page++)
		cr_assert_eq(pagemap_state(&map, 0, page), PAGE_ABSENT);
	cr_assert_eq(pagemap_state(&map, 1, 0), PAGE_ABSENT);
	cr_assert_eq(pagemap_missing(&map), 131);
	pagemap_close(&map);
}

Test(pagemap, a_claim_is_won_once)
{
	open_map(128, 0);
	cr_assert_eq(pagemap_claim(&map, 0, 1, 0xf0), 0xf0);
	cr_assert_eq(pagemap_claim(&map, 0, 1, 0xf0), 0);
	cr_assert_eq(pagemap_claim(&map, 0, 1, 0x3c), 0x0c, "only those that were free");
	cr_assert_eq(pagemap_claim(&map, 0, 0, 0xf0), 0xf0, "another word");
	cr_assert_eq(pagemap_state(&map, 0, 64 + 4), PAGE_FILLING);
	cr_assert_eq(pagemap_missing(&map), 128, "a claim makes nothing present");
	pagemap_close(&map);
}

Test(pagemap, a_released_claim_can_be_won_again)
{
	open_map(64, 0);
	cr_assert_eq(pagemap_claim(&map, 0, 0, 0xff), 0xff);
	pagemap_release(&map, 0, 0, 0x0f);
	cr_assert_eq(pagemap_state(&map, 0, 0), PAGE_ABSENT);
	cr_assert_eq(pagemap_state(&map, 0, 4), PAGE_FILLING);
	cr_assert_eq(pagemap_claim(&map, 0, 0, 0xff), 0x0f);
	pagemap_close(&map);
}

Test(pagemap, present_pages_are_counted_down_and_stay_claimed)
{
	open_map(64, 3);
	cr_assert_eq(pagemap_claim(&map, 0, 0, ~UINT64_C(0)), ~UINT64_C(0));
	cr_assert_eq(pagemap_set_present(&map, 0, 0, 0xff), 59);
	cr_assert_eq(pagemap_state(&map, 0, 7), PAGE_PRESENT);
	cr_assert_eq(pagemap_state(&map, 0, 8), PAGE_FILLING);
	cr_assert_eq(pagemap_claim(&map, 0, 0, 0xff), 0);
	cr_assert_eq(pagemap_set_present(&map, 0, 0, ~UINT64_C(0xff)), 3);
	cr_assert_eq(pagemap_claim(&map, 1, 0, 0x7), 0x7);
	cr_assert_eq(pagemap_set_present(&map, 1, 0, 0x7), 0);
	pagemap_close(&map);
}

struct run {
	uint64_t first, count;
};

static struct run find(uint64_t from, uint64_t end)
{
	struct run run = {0, 0};
	return pagemap_find_absent(&map, 0, from, end, &run.first, &run.count) ? run
									       : (struct run){0, 0};
}

#define expect_run(from, end, a, b)                                                                \
	do {                                                                                       \
		struct run r = find(from, end);                                                    \
		cr_assert_eq(r.first, (uint64_t)(a));                                              \
		cr_assert_eq(r.count, (uint64_t)(b));                                              \
	} while (0)

Test(pagemap, absent_runs_are_found_across_words_and_end_with_the_region)
{
	open_map(200, 0);
	expect_run(0, UINT64_MAX, 0, 200);
	expect_run(0, 200, 0, 200);
	expect_run(63, 65, 63, 2);
	expect_run(64, 128, 64, 64);
	expect_run(199, 1000, 199, 1);
	expect_run(200, 1000, 0, 0);
	expect_run(10, 10, 0, 0);
	pagemap_claim(&map, 0, 0, UINT64_C(1) << 63);
	expect_run(0, 200, 0, 63);
	expect_run(63, 200, 64, 136);
	expect_run(63, 64, 0, 0);
	pagemap_claim(&map, 0, 1, 1);
	expect_run(63, 200, 65, 135);
	pagemap_claim(&map, 0, 2, ~UINT64_C(0));
	expect_run(65, 200, 65, 63);
	expect_run(128, 200, 192, 8);
	pagemap_claim(&map, 0, 3, 0xff);
	expect_run(128, 200, 0, 0);
	pagemap_close(&map);
}

Test(pagemap, absent_runs_agree_with_a_page_by_page_search)
{
	enum { PAGES = 777 };
	bool claimed[PAGES] = {false};

	open_map(PAGES, 0);
	srand(1);
	for (unsigned round = 0; round < 3000; round++) {
		uint64_t first = (uint64_t)rand() % PAGES;
		uint64_t count = 1 + (uint64_t)rand() % 70;
		for (uint64_t page = first; page < first + count && page < PAGES; page++) {
			uint64_t bit = UINT64_C(1) << page % 64;
			bool claim = rand() % 2;
			if (claim == claimed[page])
				continue;
			if (claim)
				cr_assert_eq(pagemap_claim(&map, 0, page / 64, bit), bit);
			else
				pagemap_release(&map, 0, page / 64, bit);
			claimed[page] = claim;
		}
		uint64_t from = (uint64_t)rand() % PAGES, end = (uint64_t)rand() % (PAGES + 50);
		struct run want = {0, 0};
		for (uint64_t page = from; page < end && page < PAGES; page++) {
			if (!claimed[page] && !want.count++)
				want.first = page;
			else if (claimed[page] && want.count)
				break;
		}
		expect_run(from, end, want.first, want.count);
	}
	pagemap_close(&map);
}

enum { RACERS = 4, RACE_PAGES = 64 * 64 };

struct racer {
	pthread_t thread;
	uint64_t won, last;
	bool torn;
};

static void *race(void *argument)
{
	struct racer *racer = argument;

	for (uint64_t word = 0; word < RACE_PAGES / 64; word++)
		for (unsigned first = 0; first < 64; first += 4) {
			uint64_t mask = bits_mask(first, 4);
			uint64_t won = pagemap_claim(&map, 0, word, mask);
			racer->torn |= (won & ~mask) != 0;
			for (uint64_t rest = won; rest; rest &= rest - 1) {
				racer->won++;
				if (pagemap_set_present(&map, 0, word, rest & -rest) == 0)
					racer->last++;
			}
		}
	return NULL;
}

Test(pagemap, of_many_claimers_each_page_has_one_and_one_of_them_sees_the_last)
{
	struct racer racers[RACERS] = {{.won = 0}};
	uint64_t won = 0, last = 0;

	open_map(RACE_PAGES, 0);
	for (unsigned i = 0; i < RACERS; i++)
		pthread_create(&racers[i].thread, NULL, race, &racers[i]);
	for (unsigned i = 0; i < RACERS; i++) {
		pthread_join(racers[i].thread, NULL);
		won += racers[i].won;
		last += racers[i].last;
		cr_assert_not(racers[i].torn);
	}
	cr_assert_eq(won, RACE_PAGES);
	cr_assert_eq(last, 1);
	cr_assert_eq(pagemap_missing(&map), 0);
	pagemap_close(&map);
}

Test(pagemap, the_map_of_a_huge_sparse_guest_takes_no_memory_until_it_is_used)
{
	open_map(GIB(1024) / 4096, 0);
	cr_assert_eq(map.bytes, GIB(1024) / 4096 / 4);
	cr_assert_eq(pagemap_claim(&map, 0, map.regions[0].words - 1, 1), 1);
	expect_run(map.regions[0].pages - 63, UINT64_MAX, map.regions[0].pages - 63, 63);
	pagemap_close(&map);
}

Test(pagemap, what_is_placed_before_the_epoch_is_present_and_what_is_stale_is_absent_again)
{
	open_map(128, 0);
	pagemap_place(&map, 0, 1, 0xff);
	pagemap_place(&map, 0, 1, 0xf0f); /* a newer copy counts once */
	cr_assert_eq(pagemap_missing(&map), 128 - 12);
	cr_assert_eq(pagemap_claim(&map, 0, 1, 0xfff), 0, "what is present cannot be claimed");
	pagemap_stale(&map, 0, 1, 0x3);
	pagemap_stale(&map, 0, 0, 0x3); /* never placed: nothing to take back */
	cr_assert_eq(pagemap_missing(&map), 128 - 10);
	cr_assert_eq(pagemap_state(&map, 0, 64), PAGE_ABSENT);
	cr_assert_eq(pagemap_state(&map, 0, 66), PAGE_PRESENT);
	cr_assert_eq(pagemap_claim(&map, 0, 1, 0x7), 0x3, "and what is stale can");
	pagemap_close(&map);
}

Test(pagemap, what_is_absent_behind_complete_parts_is_found)
{
	uint64_t part = PAGEMAP_PART_BYTES / 4096, first, count;

	open_map(3 * part, 0);
	for (uint64_t word = 0; word < 2 * part / 64; word++)
		pagemap_place(&map, 0, word, ~UINT64_C(0));
	cr_assert(pagemap_find_absent(&map, 0, 0, UINT64_MAX, &first, &count));
	cr_assert_eq(first, 2 * part);
	cr_assert_eq(count, part);
	cr_assert_not(pagemap_find_absent(&map, 0, 0, 2 * part, &first, &count));
	pagemap_stale(&map, 0, part / 64 + 1, 0x6);
	cr_assert(pagemap_find_absent(&map, 0, 0, UINT64_MAX, &first, &count));
	cr_assert_eq(first, part + 65);
	cr_assert_eq(count, 2);
	cr_assert(pagemap_find_absent(&map, 0, part + 66, UINT64_MAX, &first, &count));
	cr_assert_eq(first, part + 66);
	pagemap_close(&map);
}

Test(pagemap, a_part_is_complete_when_its_last_page_is_present)
{
	uint64_t part = PAGEMAP_PART_BYTES / 4096;

	open_map(part + 64, 0);
	pagemap_place(&map, 0, part / 64, ~UINT64_C(0));
	cr_assert(pagemap_part_complete(&map, 0, 1), "the short one at the end");
	cr_assert_not(pagemap_part_complete(&map, 0, 0));
	pagemap_stale(&map, 0, part / 64, 0x10);
	cr_assert_not(pagemap_part_complete(&map, 0, 1));
	cr_assert_eq(pagemap_claim(&map, 0, part / 64, 0x10), 0x10);
	pagemap_set_present(&map, 0, part / 64, 0x10);
	cr_assert(pagemap_part_complete(&map, 0, 1));
	pagemap_close(&map);
}
