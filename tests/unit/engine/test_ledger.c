/* SPDX-License-Identifier: Apache-2.0 */
/* The installer is compiled in with its hooks, to look at pages when they are visible and not yet
 * present. */
#ifndef JAUNT_INJECT
#define JAUNT_INJECT
#endif
#include "engine/inject.c"
#include "engine/target/install.c"

#include "engine/target/ledger.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/target/target.h"
#include "tests/unit/engine/world.h"

#define PAGES 1000u

static struct guestmem memory;
static struct ledger ledger;
static struct world world;

TestSuite(ledger, .timeout = 60);

/* --- The file -----------------------------------------------------------------------------------
 */

static void create(void)
{
	struct jaunt_error error = {0};

	memory = (struct guestmem){.region_count = 2, .pages = PAGES + 1};
	memory.regions[0] = (struct guest_region){
		.name = "ram", .guest_address = 0, .pages = PAGES, .page_bytes = PAGE};
	memory.regions[1] = (struct guest_region){
		.name = "rom", .guest_address = GIB(1), .pages = 1, .page_bytes = PAGE};
	cr_assert(ledger_fits(&memory));
	cr_assert_eq(ledger_create(&ledger, &memory, NULL, &error), 0, "%s", error.text);
	struct ledger_header *header = ledger.header;
	header->streams = header->shards = 1;
	header->port = 7420;
	strcpy(header->peer, "tcp:127.0.0.1");
}

/* This program's own: it passes the call on, unless a test has other plans. */
static int refused_with, refusals;

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
	if (refusals && refusals--) {
		errno = refused_with;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, offset, bytes);
}

/* Its owner dies, and the copy that somebody else keeps is opened. */
static void find_again(void)
{
	struct jaunt_error error = {0};
	int fd = dup(ledger.fd);

	ledger_close(&ledger);
	cr_assert_eq(ledger_open(&ledger, fd, &error), 0, "%s", error.text);
}

static void expect_refused(int fd, const char *reason)
{
	struct jaunt_error error = {0};
	struct ledger other;

	cr_assert_lt(ledger_open(&other, fd, &error), 0);
	cr_assert_str_eq(error.reason, reason, "%s", error.text);
	cr_assert_not(ledger_is_open(&other));
}

Test(ledger, what_was_written_is_found_again)
{
	create();
	memset(ledger.header->secret, 7, sizeof(ledger.header->secret));
	atomic_store(&ledger.header->state, LEDGER_RAN);
	atomic_store(&ledger.claimed[0][PAGES / 64], 5);
	atomic_store(&ledger.present[0][0], 3);
	atomic_store(&ledger.written[1][0], 1);
	atomic_store(&ledger.in_file[1][0], 1);
	find_again();
	cr_assert_eq(ledger.header->secret[31], 7);
	cr_assert_eq(atomic_load(&ledger.header->state), LEDGER_RAN);
	cr_assert_eq(atomic_load(&ledger.claimed[0][PAGES / 64]), 5);
	cr_assert_eq(atomic_load(&ledger.present[0][0]), 3);
	cr_assert_eq(atomic_load(&ledger.written[1][0]), 1);
	cr_assert_eq(atomic_load(&ledger.in_file[1][0]), 1);
	cr_assert_eq(atomic_load(&ledger.claimed[1][0]), 0, "no two bitmaps overlap");
	cr_assert_eq(ledger_missing(&ledger), PAGES + 1 - 2);
	cr_assert(ledger_matches(&ledger, &memory));
	memory.regions[1].guest_address = 0;
	cr_assert_not(ledger_matches(&ledger, &memory));
	ledger_close(&ledger);
}

/* The last wish for push, as both sides' commands change it. */
Test(ledger, push_is_as_it_was_wished_last)
{
	struct target target = {.ledger = LEDGER_NONE};

	target_note_push(&target); /* of a VM that has none, nothing is noted */
	create();
	target.ledger = ledger;
	for (unsigned push = 0; push < 3; push++) {
		atomic_store(&target.shared.push, push % 2);
		target_note_push(&target);
		find_again();
		target.ledger = ledger;
		cr_assert_eq(atomic_load(&ledger.header->push), push % 2);
	}
	ledger_close(&ledger);
}

Test(ledger, one_at_a_time_has_it)
{
	create();
	int kept = dup(ledger.fd);
	expect_refused(dup(kept), "name-taken");
	ledger_close(&ledger); /* the copy that is kept does not hold the lock */
	struct jaunt_error error = {0};
	cr_assert_eq(ledger_open(&ledger, kept, &error), 0, "%s", error.text);
	expect_refused(dup(kept), "name-taken");
	ledger_close(&ledger);
}

Test(ledger, nobody_can_cut_it_short)
{
	create();
	cr_assert_lt(ftruncate(ledger.fd, 4096), 0);
	cr_assert_lt(ftruncate(ledger.fd, (off_t)GIB(1)), 0);
	ledger_close(&ledger);
}

/* Who keeps the file can write to it at any time. */
Test(ledger, what_was_checked_stays_as_it_was)
{
	create();
	find_again();
	struct ledger_header *header = ledger.header;
	header->streams = header->shards = header->port = UINT32_MAX;
	header->region_count = UINT64_MAX;
	header->regions[0].pages = header->regions[0].page_bytes = 0;
	memset(header->peer, 'x', sizeof(header->peer));
	memset(header->vm, 'x', sizeof(header->vm));
	cr_assert_eq(ledger.found.streams, 1);
	cr_assert_eq(ledger.found.shards, 1);
	cr_assert_eq(ledger.found.port, 7420);
	cr_assert_str_eq(ledger.found.peer, "tcp:127.0.0.1");
	cr_assert_str_eq(ledger.found.vm, "");
	cr_assert(ledger_matches(&ledger, &memory));
	cr_assert_eq(ledger_missing(&ledger), PAGES + 1);
	ledger_close(&ledger);
}

Test(ledger, huge_pages_have_none)
{
	memory = (struct guestmem){.region_count = 1, .pages = 4};
	memory.regions[0] = (struct guest_region){.pages = 4, .page_bytes = HUGE_PAGE};
	cr_assert_not(ledger_fits(&memory));
}

Test(ledger, what_makes_no_sense_is_refused)
{
	create();
	struct ledger_header good = *ledger.header, bad;
	uint64_t bytes = ledger.bytes;
	cr_assert_null(ledger_fault(&good, bytes));
	cr_assert_not_null(ledger_fault(&good, bytes + 4096));
#define REFUSES(change)                                                                            \
	do {                                                                                       \
		bad = good;                                                                        \
		change;                                                                            \
		cr_assert_not_null(ledger_fault(&bad, bytes), #change);                            \
	} while (0)
	REFUSES(bad.magic++);
	REFUSES(bad.version++);
	REFUSES(bad.header_bytes--);
	REFUSES(bad.region_count = 0);
	REFUSES(bad.region_count = JAUNT_MAX_REGIONS + 1);
	REFUSES(bad.regions[0].pages = 0);
	REFUSES(bad.regions[0].pages = UINT64_MAX);
	REFUSES(bad.regions[1].pages = 1u << 30);
	REFUSES(bad.regions[0].page_bytes = HUGE_PAGE);
	REFUSES(memset(bad.regions[0].name, 'x', sizeof(bad.regions[0].name)));
	REFUSES(memset(bad.peer, 'x', sizeof(bad.peer)));
	REFUSES(memset(bad.mode, 'x', sizeof(bad.mode)));
	REFUSES(bad.port = 0);
	REFUSES(bad.port = 65536);
	REFUSES(bad.streams = 0);
	REFUSES(bad.streams = TARGET_STREAMS_MAX + 1);
	REFUSES(bad.shards = INSTALL_SHARDS_MAX + 1);
	REFUSES(atomic_store(&bad.state, LEDGER_RAN + 1));
	/* The version is told by a word of its own. */
	bad = good;
	bad.version++;
	cr_assert(strstr(ledger_fault(&bad, bytes), "version"));
	ledger_close(&ledger);
}

Test(ledger, other_files_are_refused)
{
	int file = memfd_create("other", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	expect_refused(dup(file), "bad-ledger");
	cr_assert_eq(ftruncate(file, 1 << 20), 0);
	expect_refused(dup(file), "bad-ledger");
	/* The right bytes in a file that could shrink under its reader. */
	create();
	cr_assert_eq(ftruncate(file, (off_t)ledger.bytes), 0);
	cr_assert_eq(pwrite(file, ledger.header, sizeof(*ledger.header), 0),
		     (ssize_t)sizeof(*ledger.header));
	expect_refused(dup(file), "bad-ledger");
	close(file);
	ledger_close(&ledger);
}

/* Whatever keeps it from being made is said. */
Test(ledger, that_cannot_be_made_says_why)
{
	struct rlimit before, none = {.rlim_cur = 0};
	struct jaunt_error error = {.code = 0};

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	none.rlim_max = before.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
	int result = ledger_create(&ledger, &memory, NULL, &error);
	setrlimit(RLIMIT_NOFILE, &before);
	cr_assert_eq(result, -EMFILE);
	cr_assert_eq(error.code, EMFILE);
	cr_assert(strstr(error.text, "page map"), "%s", error.text);
	cr_assert_not(ledger_is_open(&ledger));
}

/* --- The page map in it -------------------------------------------------------------------------
 */

Test(ledger, a_page_map_goes_on_where_it_was)
{
	struct pagemap map;

	create();
	cr_assert_eq(pagemap_open_ledger(&map, &memory, &ledger), 0);
	cr_assert_eq(pagemap_missing(&map), PAGES + 1);
	pagemap_claim(&map, 0, 0, 0xff);
	pagemap_set_present(&map, 0, 0, 0x0f);
	pagemap_claim(&map, 1, 0, 1);
	pagemap_set_present(&map, 1, 0, 1);
	pagemap_close(&map);
	find_again();
	cr_assert_eq(pagemap_open_ledger(&map, &memory, &ledger), 0);
	cr_assert_eq(pagemap_missing(&map), PAGES + 1 - 5);
	cr_assert(pagemap_part_complete(&map, 1, 0));
	cr_assert_eq(pagemap_state(&map, 0, 3), PAGE_PRESENT);
	cr_assert_eq(pagemap_state(&map, 0, 4), PAGE_FILLING);
	/* Of the four in doubt one may have been seen. */
	pagemap_settle(&map, 0, 0, 0xf0, 0x40);
	cr_assert_eq(pagemap_state(&map, 0, 6), PAGE_PRESENT);
	cr_assert_eq(pagemap_state(&map, 0, 4), PAGE_ABSENT);
	cr_assert_eq(pagemap_missing(&map), PAGES + 1 - 6);
	pagemap_close(&map);
	ledger_close(&ledger);
}

/* --- Room for it --------------------------------------------------------------------------------
 */

/* Or a first touch could find none, which is a signal. */
Test(ledger, has_all_of_its_memory_from_the_beginning)
{
	struct stat file;

	refusals = 2;
	refused_with = EINTR;
	create();
	cr_assert_eq(refusals, 0, "a signal is no reason to give up");
	cr_assert_eq(fstat(ledger.fd, &file), 0);
	cr_assert_gt(file.st_size, 0);
	cr_assert_geq(file.st_blocks * 512, file.st_size);
	ledger_close(&ledger);
}

static void expect_no_room(const char *root)
{
	struct jaunt_error error = {0};

	cr_assert_eq(ledger_create(&ledger, &memory, root, &error), -ENOMEM);
	cr_assert(strcmp(error.reason, "no-memory") == 0 ||
			  strcmp(error.reason, "cgroup-memory") == 0,
		  "%s", error.reason);
	cr_assert(strstr(error.text, "page map"), "%s", error.text);
	cr_assert(!ledger_is_open(&ledger));
	cr_assert_eq(ledger.fd, -1);
}

/* A pretended host on which so much memory is available. */
static void build_host(char *root, unsigned kib)
{
	char path[64];

	cr_assert_not_null(mkdtemp(root));
	snprintf(path, sizeof(path), "%s/proc", root);
	cr_assert_eq(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/proc/meminfo", root);
	FILE *file = fopen(path, "we");
	cr_assert_not_null(file);
	fprintf(file, "MemTotal: 16777216 kB\nMemAvailable: %u kB\n", kib);
	fclose(file);
}

static void clear_host(const char *root)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/proc/meminfo", root);
	cr_assert_eq(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/proc", root);
	cr_assert_eq(rmdir(path), 0);
	cr_assert_eq(rmdir(root), 0);
}

Test(ledger, that_finds_no_room_is_an_error)
{
	char root[] = "/tmp/jaunt-ledger-XXXXXX";

	create();
	ledger_close(&ledger);
	refusals = 1;
	refused_with = ENOSPC;
	expect_no_room(NULL);
	/* Where it is known that there is none, nobody is asked for it. */
	build_host(root, 4);
	refusals = 1;
	expect_no_room(root);
	cr_assert_eq(refusals, 1);
	clear_host(root);
}

/* --- Pages in doubt: whether the guest may have seen them ----------------------------------------
 */

static void open_world(void)
{
	struct jaunt_error error = {0};

	if (!world_open_pages(&world, 1024)) /* of two chunks */
		cr_skip_test("%s", world.lack);
	cr_assert_eq(ledger_create(&ledger, &world.shared.memory, NULL, &error), 0, "%s",
		     error.text);
	world.shared.install.written[0] = ledger.written[0];
}

static void close_world(void)
{
	world_close(&world);
	ledger_close(&ledger);
}

static uint64_t seen(uint64_t page)
{
	return install_seen(&world.shared.install, 0, page / 64, UINT64_C(1) << (page % 64));
}

/* Called when pages are visible, and the process might die before it says so. */
static void expect_seen(void *user, size_t region, uint64_t word, uint64_t mask)
{
	cr_assert_eq(install_seen(&world.shared.install, region, word, mask), mask);
	++*(unsigned *)user;
}

static void install_one(uint64_t page)
{
	uint8_t bytes[PAGE];
	uint64_t installed = 0;

	world_make(bytes, PAGE, page, 2);
	cr_assert_eq(install_pages(&world.shared.install, 0, page, 1, bytes, &installed,
				   &world.counters),
		     0);
	cr_assert_eq(installed, 1);
}

static void zero_one(uint64_t page, bool now)
{
	uint64_t installed = 0;

	cr_assert_eq(
		install_zeros(&world.shared.install, 0, page, 1, now, &installed, &world.counters),
		0);
	cr_assert_eq(installed, 1);
}

Test(ledger, a_claimed_page_that_nothing_was_placed_for_was_not_seen)
{
	open_world();
	pagemap_claim(&world.shared.map, 0, 0, 1);
	cr_assert_eq(seen(0), 0, "the file is empty");
	world_put_stale(&world, 0, 512, 1);
	pagemap_claim(&world.shared.map, 0, 8, 1);
	cr_assert_eq(seen(512), 0, "the file has an older copy");
	close_world();
}

Test(ledger, what_is_visible_counts_as_seen_before_it_is_present)
{
	unsigned times = 0;

	open_world();
	for (uint64_t page = 512; page < 516; page++)
		world_put_stale(&world, 0, page, 1);
	install_hooks.before_present = expect_seen;
	install_hooks.user = &times;
	install_one(0);       /* COPY */
	zero_one(1, true);    /* ZEROPAGE */
	install_one(512);     /* over an older copy, CONTINUE */
	zero_one(513, true);  /* an older copy punched, ZEROPAGE */
	zero_one(514, false); /* punched: zeros at the first touch */
	install_one(700);     /* of a chunk with copies, this page being a hole */
	install_hooks.before_present = NULL;
	cr_assert_eq(times, 6);
	/* A copy beside them that nobody has replaced. */
	cr_assert_eq(seen(515), 0);
	close_world();
}

Test(ledger, a_page_that_the_guest_gave_back_is_not_taken_for_seen)
{
	open_world();
	install_one(3);
	cr_assert_neq(seen(3), 0);
	cr_assert_eq(guestmem_punch(&world.shared.memory.regions[0], 3, 1), 0);
	cr_assert_eq(seen(3), 0, "its bytes may be anything, so the source's as well");
	close_world();
}
