/* SPDX-License-Identifier: Apache-2.0 */
/* The map of dirty pages: marks, takes, walks, counts. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/source/dirty.h"

#define PAGES (3 * DIRTY_GROUP_PAGES + 100) /* the last group and the last word are partial */

TestSuite(dirty, .timeout = 60);

/* Two regions; only sizes matter to the map. */
static struct guestmem memory = {
	.region_count = 2,
	.regions = {{.pages = PAGES, .page_bytes = 4096}, {.pages = 70, .page_bytes = 2 << 20}}};

static struct dirty opened(void)
{
	struct dirty dirty;
	cr_assert_eq(dirty_open(&dirty, &memory), 0);
	return dirty;
}

static void expect_take(struct dirty *dirty, size_t region, uint64_t from, uint64_t end,
			uint64_t most, uint64_t first, uint64_t count)
{
	uint64_t got_first = 0, got_count = 0;
	cr_assert(dirty_take(dirty, region, from, end, most, &got_first, &got_count));
	cr_expect_eq(got_first, first, "first %lu, not %lu", got_first, first);
	cr_expect_eq(got_count, count, "count %lu, not %lu", got_count, count);
}

static void expect_none(struct dirty *dirty, size_t region, uint64_t from, uint64_t end)
{
	uint64_t first, count;
	cr_expect_not(dirty_take(dirty, region, from, end, UINT64_MAX, &first, &count));
	cr_expect_eq(dirty_next(dirty, region, from, end),
		     end < memory.regions[region].pages ? end : memory.regions[region].pages);
}

Test(dirty, is_empty_when_opened)
{
	struct dirty dirty = opened();
	expect_none(&dirty, 0, 0, UINT64_MAX);
	expect_none(&dirty, 1, 0, UINT64_MAX);
	cr_expect_eq(dirty_count_all(&dirty), 0);
	dirty_close(&dirty);
}

Test(dirty, is_taken_where_another_map_has_marks)
{
	struct dirty dirty = opened(), there = opened();
	cr_expect_eq(dirty_subtract(&dirty, &there), 0);
	dirty_mark(&dirty, 0, 4000, 300);
	dirty_mark(&dirty, 0, PAGES - 2, 2);
	dirty_mark(&dirty, 1, 3, 1);
	dirty_mark(&there, 0, 4090, 10);
	dirty_mark(&there, 0, 4280, 100);
	dirty_mark(&there, 0, PAGES - 1, 1);
	dirty_mark(&there, 1, 4, 66);
	cr_expect_eq(dirty_subtract(&dirty, &there), 10 + 20 + 1);
	cr_expect_eq(dirty_count(&dirty, 0), 300 + 2 - 31);
	cr_expect_eq(dirty_count(&dirty, 1), 1);
	cr_expect_eq(dirty_count_all(&there), 10 + 100 + 1 + 66, "it is only read");
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, 4000, 90);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, 4100, 180);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, PAGES - 2, 1);
	expect_none(&dirty, 0, 0, UINT64_MAX);
	expect_take(&dirty, 1, 0, UINT64_MAX, UINT64_MAX, 3, 1);
	cr_expect_eq(dirty_subtract(&dirty, &there), 0);
	cr_expect_eq(dirty_count_all(&dirty), 0);
	dirty_close(&dirty);
	dirty_close(&there);
}

Test(dirty, gives_back_a_run_over_words_and_groups_once)
{
	struct dirty dirty = opened();
	dirty_mark(&dirty, 0, 4000, 300);
	cr_expect_eq(dirty_count(&dirty, 0), 300);
	cr_expect_eq(dirty_next(&dirty, 0, 0, UINT64_MAX), 4000);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, 4000, 300);
	expect_none(&dirty, 0, 0, UINT64_MAX);
	cr_expect_eq(dirty_count(&dirty, 0), 0);
	dirty_close(&dirty);
}

Test(dirty, takes_no_more_than_asked_for_and_nothing_outside_of_the_bounds)
{
	struct dirty dirty = opened();
	dirty_mark(&dirty, 0, 100, 200);
	expect_none(&dirty, 0, 0, 100);
	expect_none(&dirty, 0, 300, 4096);
	expect_take(&dirty, 0, 0, 150, UINT64_MAX, 100, 50);
	expect_take(&dirty, 0, 160, 4096, 70, 160, 70);
	expect_take(&dirty, 0, 0, 4096, UINT64_MAX, 150, 10);
	expect_take(&dirty, 0, 0, 4096, UINT64_MAX, 230, 70);
	expect_none(&dirty, 0, 0, UINT64_MAX);
	dirty_close(&dirty);
}

Test(dirty, marked_twice_is_taken_once)
{
	struct dirty dirty = opened();
	dirty_mark(&dirty, 0, 10, 20);
	dirty_mark(&dirty, 0, 0, 64);
	cr_expect_eq(dirty_count(&dirty, 0), 64);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, 0, 64);
	expect_none(&dirty, 0, 0, UINT64_MAX);
	dirty_close(&dirty);
}

Test(dirty, marked_after_it_was_taken_is_dirty_again)
{
	struct dirty dirty = opened();
	dirty_mark(&dirty, 0, 63, 2);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, 63, 2);
	dirty_mark(&dirty, 0, 64, 1);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, 64, 1);
	expect_none(&dirty, 0, 0, UINT64_MAX);
	dirty_close(&dirty);
}

Test(dirty, ignores_what_is_outside_of_a_region)
{
	struct dirty dirty = opened();
	dirty_mark(&dirty, 0, PAGES, 1);
	dirty_mark(&dirty, 0, UINT64_MAX, UINT64_MAX);
	dirty_mark(&dirty, 7, 0, 1);
	dirty_mark(&dirty, 0, 0, 0);
	cr_expect_eq(dirty_count_all(&dirty), 0);
	dirty_mark(&dirty, 0, PAGES - 3, UINT64_MAX);
	expect_take(&dirty, 0, 0, UINT64_MAX, UINT64_MAX, PAGES - 3, 3);
	dirty_close(&dirty);
}

Test(dirty, keeps_regions_apart_and_weighs_them_by_their_pages)
{
	struct dirty dirty = opened();
	dirty_mark(&dirty, 1, 60, 10);
	dirty_mark(&dirty, 0, 5, 1);
	cr_expect_eq(dirty_count_all(&dirty), 11);
	cr_expect_eq(dirty_bytes(&dirty, &memory), 10 * (UINT64_C(2) << 20) + 4096);
	expect_take(&dirty, 1, 0, UINT64_MAX, UINT64_MAX, 60, 10);
	expect_none(&dirty, 1, 0, UINT64_MAX);
	dirty_clear(&dirty);
	cr_expect_eq(dirty_count_all(&dirty), 0);
	expect_none(&dirty, 0, 0, UINT64_MAX);
	dirty_close(&dirty);
}

/* Against a plain array of flags, with random operations. */
Test(dirty, agrees_with_a_plain_array)
{
	struct dirty dirty = opened();
	static bool truth[PAGES];
	unsigned seed = 7;

	for (unsigned step = 0; step < 20000; step++) {
		uint64_t from = (uint64_t)rand_r(&seed) % PAGES;
		uint64_t span = (uint64_t)rand_r(&seed) % (rand_r(&seed) % 4 ? 80 : 5000) + 1;
		uint64_t end = from + span < PAGES ? from + span : PAGES, first, count;
		if (rand_r(&seed) % 2) {
			dirty_mark(&dirty, 0, from, span);
			memset(truth + from, true, end - from);
			continue;
		}
		uint64_t most = (uint64_t)rand_r(&seed) % 200 + 1, at = from, run = 0;
		while (at < end && !truth[at])
			at++;
		while (at + run < end && run < most && truth[at + run])
			run++;
		cr_assert_eq(dirty_next(&dirty, 0, from, end), at);
		cr_assert_eq(dirty_take(&dirty, 0, from, end, most, &first, &count), run > 0);
		if (run) {
			cr_assert_eq(first, at);
			cr_assert_eq(count, run);
			memset(truth + at, false, run);
		}
	}
	uint64_t left = 0;
	for (size_t i = 0; i < PAGES; i++)
		left += truth[i];
	cr_assert_eq(dirty_count(&dirty, 0), left);
	dirty_close(&dirty);
}
