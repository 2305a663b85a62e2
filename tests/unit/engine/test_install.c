/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/install.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "tests/unit/engine/world.h"

static struct world world;

TestSuite(install, .timeout = 60);

static void open_regions(const struct world_region *regions, size_t count, unsigned shards)
{
	if (!world_open(&world, regions, count, shards))
		cr_skip_test("%s", world.lack);
}

static void open_pages(uint64_t pages)
{
	open_regions(&(struct world_region){pages, PAGE, 0}, 1, 1);
}

static void open_huge(uint64_t pages)
{
	open_regions(&(struct world_region){pages, HUGE_PAGE, 0}, 1, 1);
}

/* Installs a run; returns how many pages were. */
static uint64_t install(size_t region, uint64_t first, uint64_t count, uint64_t version)
{
	uint64_t page_bytes = world.shared.memory.regions[region].page_bytes;
	uint8_t *bytes = malloc(count * page_bytes);
	uint64_t installed = 0;

	for (uint64_t i = 0; i < count; i++)
		world_make(bytes + i * page_bytes, page_bytes, first + i, version);
	cr_assert_eq(install_pages(&world.shared.install, region, first, count, bytes, &installed,
				   &world.counters),
		     0);
	free(bytes);
	return installed;
}

static uint64_t zeros(size_t region, uint64_t first, uint64_t count, bool now)
{
	uint64_t installed = 0;
	cr_assert_eq(install_zeros(&world.shared.install, region, first, count, now, &installed,
				   &world.counters),
		     0);
	return installed;
}

static void expect_made(size_t region, uint64_t first, uint64_t count, uint64_t version)
{
	uint64_t page_bytes = world.shared.memory.regions[region].page_bytes;

	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&world, region, page), PAGE_PRESENT);
		cr_assert(world_made(world_at(&world, region, page), page_bytes, page, version),
			  "page %lu", page);
	}
	for (unsigned shard = 0; shard < world.shared.install.shards; shard++)
		cr_assert(world_quiet(&world, shard), "a touch of a visible page faulted");
}

static void expect_untouched(size_t region, uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&world, region, page), PAGE_ABSENT);
		cr_assert(world_hole(&world, region, page), "page %lu", page);
	}
}

Test(install, pages_into_an_empty_file_are_visible_and_nothing_else_is)
{
	open_pages(64);
	cr_assert_eq(install(0, 10, 5, 1), 5);
	expect_made(0, 10, 5, 1);
	expect_untouched(0, 0, 10);
	expect_untouched(0, 15, 49);
	cr_assert_eq(pagemap_missing(&world.shared.map), 59);
	world_close(&world);
}

Test(install, an_older_copy_in_the_file_is_written_over_before_it_can_be_seen)
{
	struct guest guest;

	open_pages(64);
	for (uint64_t page = 0; page < 64; page++)
		world_put_stale(&world, 0, page, 1);
	guest_touch(&guest, world_at(&world, 0, 3) + 4088);
	cr_assert(world_next_fault(&world, 0).minor);
	cr_assert_eq(install(0, 0, 32, 2), 32);
	guest_join(&guest);
	expect_made(0, 0, 32, 2);
	for (uint64_t page = 32; page < 64; page++) /* not to be seen, and not touched */
		cr_assert(world_made(world.shared.memory.regions[0].view + page * PAGE, PAGE, page,
				     1));
	world_close(&world);
}

Test(install, the_flag_of_older_copies_covers_whole_chunks_and_no_more)
{
	open_pages(3 * 512);
	install_mark_in_file(&world.shared.install, 0, 511, 2); /* the first two chunks */
	cr_assert_eq(atomic_load(&world.shared.install.in_file[0][0]), 3);
	cr_assert_eq(install(0, 500, 600, 1), 600); /* both ways in one run */
	expect_made(0, 500, 600, 1);
	world_close(&world);
}

Test(install, a_run_over_a_word_border_and_many_ioctls_is_whole)
{
	open_pages(1000);
	cr_assert_eq(install(0, 1, 997, 1), 997);
	expect_made(0, 1, 997, 1);
	expect_untouched(0, 0, 1);
	expect_untouched(0, 998, 2);
	world_close(&world);
}

Test(install, a_run_over_a_gib_border_is_served_by_both_shards)
{
	struct guest before, behind;
	uint64_t border = GIB(1) / PAGE;

	open_regions(&(struct world_region){2 * border, PAGE, 0}, 1, 2);
	guest_touch(&before, world_at(&world, 0, border - 1));
	guest_touch(&behind, world_at(&world, 0, border));
	cr_assert_eq(world_next_fault(&world, 0).address,
		     (uintptr_t)world_at(&world, 0, border - 1));
	cr_assert_eq(world_next_fault(&world, 1).address, (uintptr_t)world_at(&world, 0, border));
	cr_assert_eq(install(0, border - 40, 80, 1), 80);
	guest_join(&before);
	guest_join(&behind);
	expect_made(0, border - 40, 80, 1);
	world_close(&world);
}

Test(install, zeros_over_a_gib_border_wake_the_waiters_of_both_shards)
{
	struct guest before, behind;
	uint64_t border = GIB(1) / PAGE;

	open_regions(&(struct world_region){2 * border, PAGE, 0}, 1, 2);
	guest_touch(&before, world_at(&world, 0, border - 1));
	guest_touch(&behind, world_at(&world, 0, border));
	world_next_fault(&world, 0);
	world_next_fault(&world, 1);
	cr_assert_eq(zeros(0, 0, 2 * border, false), 2 * border);
	world_serve_present(&world, 0, border - 1);
	world_serve_present(&world, 0, border);
	cr_assert_eq(guest_join(&before) | guest_join(&behind), 0);
	cr_assert_eq(pagemap_missing(&world.shared.map), 0);
	world_close(&world);
}

Test(install, a_region_that_begins_within_its_file_is_written_at_its_own_place)
{
	open_regions((const struct world_region[]){{64, PAGE, 16 * PAGE}, {64, PAGE, 0}}, 2, 1);
	world_put_stale(&world, 0, 5, 1);
	cr_assert_eq(install(0, 0, 64, 2), 64);
	cr_assert_eq(install(1, 0, 64, 3), 64);
	expect_made(0, 0, 64, 2);
	expect_made(1, 0, 64, 3);
	uint8_t beyond[PAGE];
	cr_assert_eq(pread(world.regions[0].fd, beyond, PAGE, 15 * PAGE), PAGE);
	cr_assert(world_zero(beyond, PAGE));
	cr_assert_eq(pread(world.regions[0].fd, beyond, PAGE, 80 * PAGE), PAGE);
	cr_assert(world_zero(beyond, PAGE));
	world_close(&world);
}

Test(install, zeros_into_an_empty_file_cost_nothing_until_they_are_touched)
{
	struct guest guest;

	open_pages(640);
	cr_assert_eq(zeros(0, 0, 640, false), 640);
	for (uint64_t page = 0; page < 640; page++) {
		cr_assert_eq(world_state(&world, 0, page), PAGE_PRESENT);
		cr_assert(world_hole(&world, 0, page));
	}
	guest_touch(&guest, world_at(&world, 0, 77));
	world_serve_present(&world, 0, 77);
	cr_assert_eq(guest_join(&guest), 0);
	world_close(&world);
}

Test(install, zeros_over_an_older_copy_hide_it)
{
	struct guest guest;

	open_pages(64);
	for (uint64_t page = 0; page < 64; page++)
		world_put_stale(&world, 0, page, 1);
	cr_assert_eq(zeros(0, 8, 16, false), 16);
	for (uint64_t page = 0; page < 64; page++)
		cr_assert_eq(world_hole(&world, 0, page), page >= 8 && page < 24);
	guest_touch(&guest, world_at(&world, 0, 9));
	world_serve_present(&world, 0, 9);
	cr_assert_eq(guest_join(&guest), 0);
	world_close(&world);
}

Test(install, zeros_that_somebody_waits_for_are_there_at_once)
{
	struct guest guest;

	open_pages(128);
	world_put_stale(&world, 0, 70, 1);
	guest_touch(&guest, world_at(&world, 0, 70));
	world_next_fault(&world, 0);
	cr_assert_eq(zeros(0, 60, 20, true), 20);
	cr_assert_eq(guest_join(&guest), 0);
	for (uint64_t page = 60; page < 80; page++)
		cr_assert(world_zero(world_at(&world, 0, page), PAGE));
	cr_assert(world_quiet(&world, 0));
	world_close(&world);
}

Test(install, what_comes_twice_is_dropped_and_counted_page_by_page)
{
	open_pages(64);
	cr_assert_eq(install(0, 4, 4, 1), 4);
	cr_assert_eq(zeros(0, 10, 2, false), 2);
	cr_assert_eq(install(0, 0, 16, 2), 10);
	cr_assert_eq(counter_get(&world.counters.duplicate), 6);
	cr_assert_eq(zeros(0, 0, 20, true), 4);
	cr_assert_eq(counter_get(&world.counters.duplicate), 22);
	expect_made(0, 4, 4, 1);
	expect_made(0, 0, 4, 2);
	expect_made(0, 12, 4, 2);
	cr_assert_eq(pagemap_missing(&world.shared.map), 64 - 20);
	world_close(&world);
}

Test(install, a_conflict_stops_only_the_run_it_is_in)
{
	uint64_t installed = 0;
	uint8_t *bytes = malloc(96 * PAGE);

	open_pages(96);
	for (uint64_t i = 0; i < 96; i++)
		world_make(bytes + i * PAGE, PAGE, i, 1);
	/* Somebody maps a page in the middle one of three runs. */
	uffd_zeropage(&world.shared.install.uffds[0], (uintptr_t)world_at(&world, 0, 40), PAGE,
		      UFFD_WAKE);
	cr_assert_eq(
		install_pages(&world.shared.install, 0, 0, 96, bytes, &installed, &world.counters),
		-EEXIST);
	cr_assert_eq(installed, 64);
	cr_assert_eq(counter_get(&world.counters.conflicts), 1);
	expect_made(0, 0, 32, 1);
	expect_made(0, 64, 32, 1);
	for (uint64_t page = 32; page < 64; page++)
		cr_assert_eq(world_state(&world, 0, page), PAGE_FILLING);
	free(bytes);
	world_close(&world);
}

Test(install, zeros_where_somebody_mapped_a_page_are_a_conflict)
{
	uint64_t installed = 0;

	open_pages(64);
	uffd_zeropage(&world.shared.install.uffds[0], (uintptr_t)world_at(&world, 0, 1), PAGE,
		      UFFD_WAKE);
	cr_assert_eq(
		install_zeros(&world.shared.install, 0, 0, 4, true, &installed, &world.counters),
		-EEXIST);
	cr_assert_eq(counter_get(&world.counters.conflicts), 1);
	cr_assert_eq(installed, 0);
	cr_assert_eq(world_state(&world, 0, 1), PAGE_FILLING);
	world_close(&world);
}

static unsigned completions;

static void complete(void *user)
{
	cr_assert_eq(user, &world);
	completions++;
}

Test(install, whoever_brings_the_last_page_says_so_once)
{
	open_pages(100);
	world.shared.install.complete = complete;
	world.shared.install.user = &world;
	install(0, 0, 50, 1);
	zeros(0, 51, 49, false);
	cr_assert_eq(completions, 0);
	install(0, 40, 20, 1);
	cr_assert_eq(completions, 1);
	install(0, 0, 100, 2);
	zeros(0, 0, 100, true);
	cr_assert_eq(completions, 1);
	world_close(&world);
}

/* --- Faults on present pages --------------------------------------------------------------------
 */

static void touch_present(uint64_t page, uint64_t expected)
{
	struct guest guest;

	guest_touch(&guest, world_at(&world, 0, page));
	world_serve_present(&world, 0, page);
	cr_assert_eq(guest_join(&guest), expected);
}

Test(install, a_present_page_that_was_unmapped_is_mapped_again)
{
	uint64_t first_word;

	open_pages(64);
	install(0, 0, 64, 1);
	memcpy(&first_word, world_at(&world, 0, 5), 8);
	cr_assert_eq(madvise(world_at(&world, 0, 5), PAGE, MADV_DONTNEED), 0);
	touch_present(5, first_word);
	cr_assert_eq(counter_get(&world.counters.discarded), 0);
	expect_made(0, 0, 64, 1);
	world_close(&world);
}

Test(install, a_present_page_that_the_guest_gave_back_reads_as_zeros)
{
	open_pages(64);
	install(0, 0, 64, 1);
	cr_assert_eq(madvise(world_at(&world, 0, 5), PAGE, MADV_REMOVE), 0);
	touch_present(5, 0);
	cr_assert_eq(counter_get(&world.counters.discarded), 1);
	cr_assert(world_zero(world_at(&world, 0, 5), PAGE));
	expect_made(0, 6, 58, 1);
	world_close(&world);
}

Test(install, a_page_given_back_between_its_fault_and_the_answer_reads_as_zeros)
{
	struct guest guest;

	open_pages(64);
	install(0, 0, 64, 1);
	cr_assert_eq(madvise(world_at(&world, 0, 5), PAGE, MADV_DONTNEED), 0);
	guest_touch(&guest, world_at(&world, 0, 5));
	struct fault_event event = world_next_fault(&world, 0);
	cr_assert(event.minor);
	cr_assert_eq(guestmem_punch(&world.shared.memory.regions[0], 5, 1), 0);
	cr_assert_eq(install_present(&world.shared.install, 0, 5, event.minor, &world.counters), 0);
	cr_assert_eq(guest_join(&guest), 0);
	cr_assert_eq(counter_get(&world.counters.discarded), 1);
	world_close(&world);
}

Test(install, a_fault_that_another_answered_is_no_error)
{
	open_pages(64);
	install(0, 0, 64, 1);
	cr_assert_eq(install_present(&world.shared.install, 0, 5, true, &world.counters), 0);
	cr_assert_eq(install_present(&world.shared.install, 0, 5, false, &world.counters), 0);
	cr_assert_eq(counter_get(&world.counters.discarded), 0);
	expect_made(0, 0, 64, 1);
	world_close(&world);
}

Test(install, a_fault_on_a_present_page_that_is_unregistered_meanwhile_is_done)
{
	open_pages(64);
	install(0, 0, 64, 1);
	uffd_unregister(&world.shared.install.uffds[0], (uintptr_t)world_at(&world, 0, 0),
			64 * PAGE);
	cr_assert_eq(install_present(&world.shared.install, 0, 5, true, &world.counters), 0);
	cr_assert_eq(install_present(&world.shared.install, 0, 5, false, &world.counters), 0);
	cr_assert_not(atomic_load(&world.shared.install.broken));
	world_close(&world);
}

/* --- Huge pages ---------------------------------------------------------------------------------
 */

Test(install_huge, pages_are_installed_one_by_one_and_older_copies_written_over, .timeout = 60)
{
	open_huge(4);
	world_put_stale(&world, 0, 1, 1);
	cr_assert_eq(install(0, 0, 3, 2), 3);
	expect_made(0, 0, 3, 2);
	cr_assert_eq(world_state(&world, 0, 3), PAGE_ABSENT);
	world_close(&world);
}

/* What is given back to the pool may be gone when it is needed again. */
Test(install_huge, zeros_of_a_round_leave_the_page_in_the_file, .timeout = 60)
{
	uint8_t *bytes = malloc(HUGE_PAGE);
	struct guest guest;

	open_huge(4);
	world_make(bytes, HUGE_PAGE, 1, 1);
	cr_assert_eq(install_place(&world.shared.install, 0, 1, 1, bytes), 0);
	cr_assert_eq(install_unplace(&world.shared.install, 0, 0, 1u << 1), 0);
	cr_assert(world_zero(world.shared.memory.regions[0].view + HUGE_PAGE, HUGE_PAGE));
	guest_touch(&guest, world_at(&world, 0, 1));
	cr_assert(world_next_fault(&world, 0).minor, "it is still there");
	cr_assert_eq(install(0, 1, 1, 2), 1);
	guest_join(&guest);
	expect_made(0, 1, 1, 2);
	free(bytes);
	world_close(&world);
}

/* A hole that was told is in the map, and the file has nothing there. */
Test(install_huge, zeros_of_a_round_over_a_hole_leave_the_file_empty, .timeout = 60)
{
	struct stat file;

	open_huge(4);
	cr_assert_eq(install_unplace(&world.shared.install, 0, 0, 1u << 1), 0);
	cr_assert_eq(fstat(world.shared.memory.regions[0].fd, &file), 0);
	cr_assert_eq(file.st_blocks, 0);
	cr_assert_eq(install(0, 1, 1, 2), 1);
	expect_made(0, 1, 1, 2);
	world_close(&world);
}

/* One that the guest gave back, or a hole beside a page that was placed. */
Test(install_huge, a_page_that_the_file_has_not_is_copied_and_not_written, .timeout = 60)
{
	open_huge(4);
	world_put_stale(&world, 0, 1, 1);
	world_put_stale(&world, 0, 2, 1);
	cr_assert_eq(guestmem_punch(&world.shared.memory.regions[0], 2, 1), 0);
	cr_assert_eq(install(0, 0, 4, 2), 4);
	for (uint64_t page = 0; page < 4; page++) {
		unsigned char resident = 0;
		uint8_t *view = world.shared.memory.regions[0].view + page * HUGE_PAGE;
		cr_assert_eq(mincore(view, 4096, &resident), 0);
		cr_assert_eq(resident & 1, page == 1, "page %lu", page);
	}
	expect_made(0, 0, 4, 2);
	world_close(&world);
}

Test(install_huge, zeros_come_when_touched_or_at_once_when_somebody_waits, .timeout = 60)
{
	struct guest guest;

	open_huge(4);
	world_put_stale(&world, 0, 1, 1);
	guest_touch(&guest, world_at(&world, 0, 1));
	world_next_fault(&world, 0);
	cr_assert_eq(zeros(0, 1, 1, true), 1);
	cr_assert_eq(guest_join(&guest), 0);
	cr_assert(world_zero(world_at(&world, 0, 1), HUGE_PAGE));
	cr_assert_eq(zeros(0, 0, 4, false), 3);
	touch_present(3, 0);
	cr_assert_eq(pagemap_missing(&world.shared.map), 0);
	world_close(&world);
}

Test(install_huge, a_page_given_back_reads_as_zeros, .timeout = 60)
{
	open_huge(2);
	install(0, 0, 2, 1);
	cr_assert_eq(guestmem_punch(&world.shared.memory.regions[0], 1, 1), 0);
	touch_present(1, 0);
	cr_assert_eq(counter_get(&world.counters.discarded), 1);
	expect_made(0, 0, 1, 1);
	world_close(&world);
}
