/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/holes.h"

#include <criterion/criterion.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "tests/unit/engine/world.h"

TestSuite(holes, .timeout = 60);

#define PAGES_MAX 8192u

static struct world world;
static struct holes holes;
static sem_t found;
static uint8_t told[2][PAGES_MAX];
static uint64_t told_to[2];

static void note_found(void *user)
{
	cr_assert_eq(user, &world);
	sem_post(&found);
}

/* The source's memory, through its own view: what is not written is a hole. */
static void put_data(size_t region, uint64_t page)
{
	const struct guest_region *at = &world.shared.memory.regions[region];
	world_make(at->view + page * at->page_bytes, at->page_bytes, page, 1);
}

static void open_regions(const struct world_region *regions, size_t count)
{
	if (!world_open(&world, regions, count, 1))
		cr_skip_test("%s", world.lack);
	sem_init(&found, 0, 0);
	holes_init(&holes, &world.shared.memory, note_found, &world);
}

/* Takes runs until all of every region is told. */
static void search(void)
{
	const struct guestmem *memory = &world.shared.memory;
	struct timespec end;
	bool all = false;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += WORLD_WAIT_MS / 1000;
	cr_assert_eq(holes_start(&holes), 0);
	while (!all) {
		struct hole_run run;
		if (!holes_take(&holes, &run)) {
			cr_assert_eq(sem_timedwait(&found, &end), 0, "the search stopped short");
			continue;
		}
		cr_assert_lt(run.region, memory->region_count);
		cr_assert_geq(run.told, told_to[run.region], "told less than before");
		cr_assert_leq(run.first + run.count, memory->regions[run.region].pages);
		cr_assert_leq(run.first + run.count, run.told + (run.count == 0) * UINT32_MAX);
		told_to[run.region] = run.told;
		for (uint64_t i = 0; i < run.count; i++)
			told[run.region][run.first + i]++;
		all = true;
		for (size_t i = 0; i < memory->region_count; i++)
			all &= told_to[i] == memory->regions[i].pages;
	}
	holes_stop(&holes);
}

static void expect_told(size_t region, bool (*is_data)(uint64_t page))
{
	for (uint64_t page = 0; page < world.shared.memory.regions[region].pages; page++)
		cr_assert_eq(told[region][page], is_data(page) ? 0 : 1, "page %lu", page);
}

static bool odd_places(uint64_t page)
{
	return page == 0 || page == 63 || page == 64 || page == 511 || (page > 600 && page < 700) ||
	       page % 97 == 5 || page == 999;
}

static bool none(uint64_t page)
{
	(void)page;
	return false;
}

static bool all(uint64_t page)
{
	(void)page;
	return true;
}

static bool last(uint64_t page)
{
	return page == 299;
}

Test(holes, every_hole_of_a_memory_file_is_told_once_and_no_data_is)
{
	open_regions((const struct world_region[]){{1000, PAGE, 0}, {300, PAGE, 7 * PAGE}}, 2);
	for (uint64_t page = 0; page < 1000; page++)
		if (odd_places(page))
			put_data(0, page);
	put_data(1, 299);
	/* Data around the region in its file is no affair of the region. */
	cr_assert_eq(pwrite(world.regions[1].fd, "x", 1, 6 * PAGE), 1);
	cr_assert_eq(pwrite(world.regions[1].fd, "x", 1, 307 * PAGE), 1);
	search();
	expect_told(0, odd_places);
	expect_told(1, last);
	world_close(&world);
}

Test(holes, an_empty_file_is_one_hole_and_a_full_one_has_none)
{
	open_regions((const struct world_region[]){{500, PAGE, PAGE}, {200, PAGE, 0}}, 2);
	for (uint64_t page = 0; page < 200; page++)
		put_data(1, page);
	search();
	expect_told(0, none);
	expect_told(1, all);
	world_close(&world);
}

static bool every_other(uint64_t page)
{
	return page % 2;
}

Test(holes, more_holes_than_the_queue_takes_wait_for_room)
{
	open_regions(&(struct world_region){PAGES_MAX, PAGE, 0}, 1);
	for (uint64_t page = 1; page < PAGES_MAX; page += 2)
		put_data(0, page);
	search();
	expect_told(0, every_other);
	world_close(&world);
}

Test(holes, the_search_can_be_stopped_while_it_waits_for_room)
{
	struct hole_run run;

	open_regions(&(struct world_region){PAGES_MAX, PAGE, 0}, 1);
	for (uint64_t page = 1; page < PAGES_MAX; page += 2)
		put_data(0, page);
	cr_assert_eq(holes_start(&holes), 0);
	cr_assert_eq(sem_wait(&found), 0);
	holes_stop(&holes);
	holes_stop(&holes); /* twice is once */
	cr_assert(holes_take(&holes, &run));
	world_close(&world);
}

Test(holes, nothing_is_found_before_the_search_starts)
{
	struct hole_run run;

	open_regions(&(struct world_region){16, PAGE, 0}, 1);
	cr_assert_not(holes_take(&holes, &run));
	world_close(&world);
}

Test(holes, searching_fills_no_hole)
{
	open_regions(&(struct world_region){256, PAGE, 0}, 1);
	put_data(0, 100);
	search();
	for (uint64_t page = 0; page < 256; page++)
		cr_assert_eq(world_hole(&world, 0, page), page != 100);
	world_close(&world);
}

static bool first_and_third(uint64_t page)
{
	return page == 0 || page == 2;
}

Test(holes_huge, holes_of_a_hugetlb_file_are_told_though_it_says_all_data, .timeout = 60)
{
	open_regions(&(struct world_region){4, HUGE_PAGE, 0}, 1);
	put_data(0, 0);
	put_data(0, 2);
	/* In the file, mapped by nobody. */
	madvise(world.shared.memory.regions[0].view, 4 * HUGE_PAGE, MADV_DONTNEED);
	search();
	expect_told(0, first_and_third);
	world_close(&world);
}
