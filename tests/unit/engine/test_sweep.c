/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/sweep.h"

#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "engine/target/place.h"
#include "tests/unit/engine/world.h"

TestSuite(sweep, .timeout = 60);

#define PART  ((uint64_t)(PAGEMAP_PART_BYTES / PAGE))
#define PAGES (PART + 128) /* the second part is a short one */

static struct world world;
static struct sweep sweep;

static void place(uint64_t page)
{
	uint8_t bytes[PAGE];

	world_make(bytes, PAGE, page, 1);
	cr_assert_eq(place_pages(&world.shared, 0, page, 1, bytes), 0);
}

/* Some pages of the first part, all of the second, and one of the first is stale. */
static void open_placed(void)
{
	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	for (uint64_t page = 0; page < 8; page++)
		place(page);
	for (uint64_t page = PART; page < PAGES; page++)
		place(page);
	place_stale(&world.shared, 0, 5, 1);
	cr_assert_eq(sweep_open(&sweep, &world.shared), 0);
}

static bool reads_by_itself(uint64_t page)
{
	struct guest guest;

	guest_touch(&guest, world_at(&world, 0, page));
	guest_join(&guest);
	return world_made(world_at(&world, 0, page), PAGE, page, 1) && world_quiet(&world, 0);
}

Test(sweep, a_complete_part_leaves_the_userfaultfd_and_no_other)
{
	open_placed();
	sweep_release(&sweep, 64);
	cr_assert_eq(sweep.left, 1);
	cr_assert(reads_by_itself(PART + 3), "nobody had to map it");
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 0));
	world_serve_present(&world, 0, 0); /* the first part still needs a handler */
	guest_join(&guest);
	sweep_close(&sweep);
	world_close(&world);
}

Test(sweep, with_no_calls_left_nothing_leaves)
{
	open_placed();
	sweep_release(&sweep, 0);
	cr_assert_eq(sweep.left, 2);
	sweep_close(&sweep);
	world_close(&world);
}

Test(sweep, the_thread_maps_what_is_present_and_never_a_stale_copy)
{
	open_placed();
	cr_assert_eq(sweep_start(&sweep), 0);
	while (counter_get(&sweep.mapped) < 7)
		usleep(100);
	for (uint64_t page = 0; page < 8; page++)
		cr_assert(page == 5 || reads_by_itself(page));
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 5));
	guest_await_asleep(&guest);
	cr_assert(world_next_fault(&world, 0).minor, "its older copy is in the file");

	uint8_t newer[PAGE];
	uint64_t installed = 0;
	world_make(newer, PAGE, 5, 2);
	install_pages(&world.shared.install, 0, 5, 1, newer, &installed, &world.counters);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, 5), PAGE, 5, 2));
	sweep_close(&sweep);
	world_close(&world);
}

Test(sweep, what_the_guest_gave_back_stays_zeros)
{
	open_placed();
	cr_assert_eq(guestmem_punch(&world.shared.memory.regions[0], 2, 1), 0);
	cr_assert_eq(sweep_start(&sweep), 0);
	while (counter_get(&sweep.mapped) < 6)
		usleep(100);
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 2));
	world_serve_present(&world, 0, 2);
	guest_join(&guest);
	cr_assert(world_zero(world_at(&world, 0, 2), PAGE));
	sweep_close(&sweep);
	world_close(&world);
}
