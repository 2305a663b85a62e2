/* SPDX-License-Identifier: Apache-2.0 */
/* Installing where the host has no memory left: a tmpfs of its own, as full as it can be. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/target/install.h"
#include "tests/unit/engine/world.h"

TestSuite(install_memory, .timeout = 60);

#define PAGES 64

static struct world world;
static int ballast; /* what fills the tmpfs */
static _Alignas(4096) uint8_t bytes[PAGES * PAGE];

/* A file system of so many pages that no path leads to; -1: it cannot be had here. */
static int make_tmpfs(const char *size)
{
	int context = fsopen("tmpfs", FSOPEN_CLOEXEC), mount = -1;

	if (context >= 0 && !fsconfig(context, FSCONFIG_SET_STRING, "size", size, 0) &&
	    !fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		mount = fsmount(context, FSMOUNT_CLOEXEC, 0);
	if (context >= 0)
		close(context);
	return mount;
}

static void fill_up(void)
{
	while (write(ballast, bytes, PAGE) > 0)
		;
	cr_assert_eq(errno, ENOSPC);
}

/* Guest memory whose file cannot get a page more. */
static void open_full(void)
{
	int mount = make_tmpfs("1M");

	if (mount < 0)
		cr_skip_test("no tmpfs of one's own here");
	struct world_region region = {PAGES, PAGE, 0,
				      openat(mount, "ram", O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
	ballast = openat(mount, "ballast", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	close(mount);
	cr_assert_gt(region.fd, 0);
	cr_assert_gt(ballast, 0);
	if (!world_open(&world, &region, 1, 1))
		cr_skip_test("%s", world.lack);
	fill_up();
	for (uint64_t page = 0; page < PAGES; page++)
		world_make(bytes + page * PAGE, PAGE, page, 1);
}

static void make_room(void)
{
	cr_assert_eq(ftruncate(ballast, 0), 0);
}

static void close_full(void)
{
	world_close(&world);
	close(ballast);
}

/* --- Installing on a thread of its own, since it waits ------------------------------------------
 */

enum way { COPIED, WRITTEN, ZEROED };

struct filler {
	enum way way;
	uint64_t first, count, installed;
	int result;
	pthread_t thread;
};

static void *filler_main(void *argument)
{
	struct filler *filler = argument;

	filler->result =
		filler->way == ZEROED
			? install_zeros(&world.shared.install, 0, filler->first, filler->count,
					true, &filler->installed, &world.counters)
			: install_pages(&world.shared.install, 0, filler->first, filler->count,
					bytes + filler->first * PAGE, &filler->installed,
					&world.counters);
	return NULL;
}

static void await_no_memory(void)
{
	uint64_t end = clock_ns() + WORLD_WAIT_MS * UINT64_C(1000000);

	while (!atomic_load(&world.shared.install.no_memory)) {
		cr_assert_lt(clock_ns(), end, "it does not wait for memory");
		sched_yield();
	}
}

static void start(struct filler *filler)
{
	if (filler->way == WRITTEN) /* an older copy may be there, and happens not to be */
		install_mark_in_file(&world.shared.install, 0, filler->first, filler->count);
	cr_assert_eq(pthread_create(&filler->thread, NULL, filler_main, filler), 0);
	await_no_memory();
}

static void check_keeps_and_goes_on(enum way way)
{
	struct filler filler = {.way = way, .first = 3, .count = 20};
	struct guest guest;

	open_full();
	guest_touch(&guest, world_at(&world, 0, 3));
	guest_await_asleep(&guest);
	start(&filler);
	await_no_memory(); /* still */
	for (uint64_t page = 3; page < 23; page++)
		cr_assert_eq(world_state(&world, 0, page), PAGE_FILLING, "page %lu", page);
	cr_assert(guest_asleep(&guest));
	cr_assert_not(atomic_load(&world.shared.install.broken));
	make_room();
	pthread_join(filler.thread, NULL);
	cr_assert_eq(filler.result, 0);
	cr_assert_eq(filler.installed, 20);
	cr_assert_eq(guest_join(&guest), way == ZEROED ? 0 : *(uint64_t *)(bytes + 3 * PAGE));
	for (uint64_t page = 3; page < 23; page++) {
		const uint8_t *at = world_at(&world, 0, page);
		cr_assert_eq(world_state(&world, 0, page), PAGE_PRESENT);
		cr_assert(way == ZEROED ? world_zero(at, PAGE) : world_made(at, PAGE, page, 1),
			  "page %lu", page);
	}
	cr_assert_eq(atomic_load(&world.shared.install.no_memory), 0);
	close_full();
}

Test(install_memory, a_copy_is_kept_until_there_is_room)
{
	check_keeps_and_goes_on(COPIED);
}

Test(install_memory, what_is_written_over_an_older_copy_is_kept_until_there_is_room)
{
	check_keeps_and_goes_on(WRITTEN);
}

Test(install_memory, zeros_that_are_waited_for_come_when_there_is_room)
{
	check_keeps_and_goes_on(ZEROED);
}

static void *serve_present(void *ignored)
{
	(void)ignored;
	world_serve_present(&world, 0, 9);
	return NULL;
}

Test(install_memory, what_the_guest_gave_back_is_zero_when_there_is_room)
{
	struct guest guest;
	pthread_t server;
	uint64_t installed = 0;

	open_full();
	make_room();
	install_pages(&world.shared.install, 0, 9, 1, bytes + 9 * PAGE, &installed,
		      &world.counters);
	cr_assert_eq(madvise(world_at(&world, 0, 9), PAGE, MADV_REMOVE), 0);
	fill_up();
	guest_touch(&guest, world_at(&world, 0, 9));
	guest_await_asleep(&guest);
	cr_assert_eq(pthread_create(&server, NULL, serve_present, NULL), 0);
	await_no_memory();
	cr_assert(guest_asleep(&guest));
	make_room();
	pthread_join(server, NULL);
	cr_assert_eq(guest_join(&guest), 0);
	close_full();
}

Test(install_memory, whoever_stops_waiting_leaves_the_page_claimed_and_unseen)
{
	struct filler filler = {.way = COPIED, .first = 0, .count = 1};

	open_full();
	start(&filler);
	atomic_store(&world.shared.install.stop, true);
	pthread_join(filler.thread, NULL);
	cr_assert_eq(filler.result, -ECANCELED);
	cr_assert_eq(filler.installed, 0);
	cr_assert_eq(world_state(&world, 0, 0), PAGE_FILLING);
	make_room();
	cr_assert(world_hole(&world, 0, 0));
	close_full();
}
