/* SPDX-License-Identifier: Apache-2.0 */
/* Written pages by asynchronous write-protection: what is reported, and that nothing is missed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault/soft_dirty.h"
#include "fault/wp.h"
#include "tests/unit/fault/descriptor.h"

#define PAGE  4096ul
#define BLOCK WP_BLOCK_BYTES

TestSuite(wp, .timeout = 60);

struct world {
	uint8_t *view;
	struct uffd uffd;
	struct wp wp;
	uint8_t *reported; /* one a page, by the last collect */
	uint64_t reports;  /* pages */
};

static void report(void *context, uint64_t first, uint64_t count)
{
	struct world *world = context;
	cr_assert_leq((first + count) * world->wp.page_bytes, world->wp.bytes);
	memset(world->reported + first, 1, count);
	__atomic_fetch_add(&world->reports, count, __ATOMIC_RELAXED);
}

/* A sparse mapping of a memory file; nothing is tracked yet. */
static void open_world(struct world *world, uint64_t bytes)
{
	struct jaunt_error error = {0};
	int fd = memfd_create("guest", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
	memset(world, 0, sizeof(*world));
	world->view = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	cr_assert(world->view != MAP_FAILED);
	world->reported = calloc(bytes / PAGE, 1);
	if (uffd_open(&world->uffd, &error))
		cr_skip_test("%s", error.text);
	world->wp = (struct wp){.uffd = &world->uffd,
				.address = (uintptr_t)world->view,
				.bytes = bytes,
				.page_bytes = PAGE,
				.fd = fd};
	int result = wp_open(&world->wp, &error);
	if (result == -ENOTSUP)
		cr_skip_test("%s", error.text);
	cr_assert_eq(result, 0, "%s", error.text);
}

static void start(struct world *world)
{
	struct jaunt_error error = {0};
	cr_assert_eq(wp_start(&world->wp, &error), 0, "%s", error.text);
}

static void collect(struct world *world, bool again)
{
	struct jaunt_error error = {0};
	memset(world->reported, 0, world->wp.bytes / PAGE);
	world->reports = 0;
	cr_assert_eq(wp_collect(&world->wp, again, report, world, &error), 0, "%s", error.text);
}

static void expect_only(struct world *world, uint64_t page)
{
	cr_expect(world->reported[page], "page %lu is not reported", page);
	cr_expect_eq(world->reports, 1, "%lu pages are reported", world->reports);
}

static void close_world(struct world *world)
{
	wp_stop(&world->wp);
	wp_close(&world->wp);
	uffd_close(&world->uffd);
	munmap(world->view, world->wp.bytes);
	close(world->wp.fd);
	free(world->reported);
}

Test(wp, reports_what_was_written_once)
{
	struct world world;
	open_world(&world, 4 * BLOCK);
	memset(world.view, 1, 2 * BLOCK);
	start(&world);
	collect(&world, true);
	cr_expect_eq(world.reports, 0);
	world.view[7 * PAGE + 5] = 2;
	collect(&world, true);
	expect_only(&world, 7);
	collect(&world, true);
	cr_expect_eq(world.reports, 0);
	world.view[7 * PAGE] = 3;
	collect(&world, true);
	expect_only(&world, 7);
	close_world(&world);
}

Test(wp, a_look_that_does_not_protect_again_is_told_again)
{
	struct world world;
	open_world(&world, 4 * BLOCK);
	memset(world.view, 1, BLOCK);
	start(&world);
	world.view[3 * PAGE] = 2;
	world.view[2 * BLOCK] = 2; /* a block that is new */
	for (int i = 0; i < 3; i++) {
		collect(&world, i == 2);
		cr_expect(world.reported[3] && world.reported[2 * BLOCK / PAGE]);
		cr_expect_eq(world.reports, 2);
	}
	collect(&world, false);
	cr_expect_eq(world.reports, 0);
	close_world(&world);
}

/* What is remembered of the blocks ends with them: the sanitizer watches that nothing behind is
 * read. */
Test(wp, blocks_that_fill_whole_words_are_looked_at_to_the_last)
{
	struct world world;
	open_world(&world, 64 * BLOCK);
	uint64_t last = 64 * BLOCK - PAGE;
	world.view[last] = 1;
	start(&world);
	collect(&world, true);
	cr_expect_eq(world.reports, 0);
	world.view[last] = 2;
	collect(&world, true);
	expect_only(&world, last / PAGE);
	close_world(&world);
}

/* As reclaim leaves it: the entry is gone, the page is in the file or in swap. */
Test(wp, reports_a_written_page_that_is_mapped_no_more)
{
	struct world world;
	open_world(&world, BLOCK);
	memset(world.view, 1, BLOCK);
	start(&world);
	world.view[9 * PAGE] = 2;
	cr_assert_eq(madvise(world.view, BLOCK, MADV_DONTNEED), 0);
	collect(&world, true);
	expect_only(&world, 9);
	close_world(&world);
}

Test(wp, sees_the_first_write_to_a_page_that_only_the_file_had)
{
	struct world world;
	char byte = 1;
	open_world(&world, 2 * BLOCK);
	cr_assert_eq(pwrite(world.wp.fd, &byte, 1, BLOCK + 5 * PAGE), 1);
	cr_assert_eq(pwrite(world.wp.fd, &byte, 1, BLOCK + 6 * PAGE), 1);
	start(&world);
	collect(&world, true);
	cr_expect_eq(world.reports, 0);
	cr_expect_eq(*(volatile uint8_t *)&world.view[BLOCK + 6 * PAGE], 1);
	collect(&world, true);
	cr_expect_eq(world.reports, 0, "reading is not writing");
	world.view[BLOCK + 5 * PAGE] = 2;
	collect(&world, true);
	expect_only(&world, (BLOCK + 5 * PAGE) / PAGE);
	world.view[BLOCK + 6 * PAGE] = 2;
	collect(&world, true);
	expect_only(&world, (BLOCK + 6 * PAGE) / PAGE);
	close_world(&world);
}

static long page_table_kib(void)
{
	char line[128];
	long kib = -1;
	FILE *file = fopen("/proc/self/status", "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "VmPTE: %ld", &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib;
}

Test(wp, holes_are_neither_reported_nor_given_page_tables)
{
	struct world world;
	uint64_t gib = UINT64_C(1) << 30;
	open_world(&world, 64 * gib);
	world.view[5 * gib + 3 * PAGE] = 1;
	long before = page_table_kib();
	start(&world);
	world.view[5 * gib + 4 * PAGE] = 1;
	world.view[40 * gib + 4 * PAGE] = 1; /* in a block that had nothing */
	collect(&world, true);
	cr_expect(world.reported[40 * gib / PAGE + 4]);
	cr_expect(world.reported[5 * gib / PAGE + 4]);
	cr_expect_eq(world.reports, 2, "%lu", world.reports);
	world.view[63 * gib] = 1;
	collect(&world, true);
	expect_only(&world, 63 * gib / PAGE);
	cr_expect_lt(page_table_kib() - before, 512);
	close_world(&world);
}

/* A VM that came by post-copy leaves by the same userfaultfd: there is no second negotiation. */
Test(wp, works_on_a_userfaultfd_that_has_served_missing_pages)
{
	struct world world;
	struct jaunt_error error = {0};
	static uint8_t bytes[PAGE] = {1};
	open_world(&world, BLOCK);
	cr_assert_eq(uffd_register(&world.uffd, world.wp.address, BLOCK, &error), 0);
	for (uint64_t page = 0; page < 16; page++)
		cr_assert_eq(uffd_copy(&world.uffd, world.wp.address + page * PAGE, bytes, PAGE,
				       UFFD_WAKE),
			     PAGE);
	cr_assert_eq(uffd_unregister(&world.uffd, world.wp.address, BLOCK), 0);
	start(&world);
	world.view[3 * PAGE] = 2;
	collect(&world, true);
	expect_only(&world, 3);
	close_world(&world);
}

Test(wp, starts_anew_after_it_was_stopped)
{
	struct world world;
	open_world(&world, 2 * BLOCK);
	memset(world.view, 1, 2 * BLOCK);
	start(&world);
	world.view[0] = 2;
	wp_stop(&world.wp);
	world.view[PAGE] = 2;
	start(&world);
	collect(&world, true);
	cr_expect_eq(world.reports, 0);
	world.view[2 * PAGE] = 2;
	collect(&world, true);
	expect_only(&world, 2);
	close_world(&world);
}

Test(wp, tells_when_somebody_mapped_the_memory_anew)
{
	struct world world;
	struct jaunt_error error = {0};
	open_world(&world, BLOCK);
	memset(world.view, 1, BLOCK);
	start(&world);
	cr_assert_neq(mmap(world.view, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			   world.wp.fd, 0),
		      MAP_FAILED);
	cr_expect_lt(wp_collect(&world.wp, true, report, &world, &error), 0);
	close_world(&world);
}

/* --- A writer that knows what it wrote
 * ------------------------------------------------------------ */

#define WRITERS 2
#define PAGES   (3 * BLOCK / PAGE)

static struct {
	uint8_t *view;
	_Atomic bool over;
} writers;

/* The page's own count of the writes to it. */
static uint32_t *count_in(uint8_t *view, uint64_t page)
{
	return (uint32_t *)(view + page * PAGE);
}

static void *write_on(void *argument)
{
	uint64_t state = (uintptr_t)argument + 1;
	while (!atomic_load(&writers.over)) {
		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		__atomic_fetch_add(count_in(writers.view, (state >> 33) % PAGES), 1,
				   __ATOMIC_RELAXED);
	}
	return NULL;
}

/* What a page holds before a collect began is no newer than what is copied after that collect, or
 * was copied after an earlier one: else it was written since, and that was not told. */
Test(wp, misses_nothing_that_a_writer_wrote_between_two_collects)
{
	struct world world;
	pthread_t threads[WRITERS];
	static uint32_t before[PAGES], copied[PAGES];
	uint64_t written = 0;
	open_world(&world, PAGES * PAGE);
	writers.view = world.view;
	start(&world);
	for (uintptr_t i = 0; i < WRITERS; i++)
		pthread_create(&threads[i], NULL, write_on, (void *)i);
	for (unsigned round = 0; round < 400; round++) {
		usleep(round % 3 * 300);
		for (uint64_t page = 0; page < PAGES; page++)
			before[page] =
				__atomic_load_n(count_in(world.view, page), __ATOMIC_SEQ_CST);
		collect(&world, true);
		for (uint64_t page = 0; page < PAGES; page++) {
			written += before[page] != copied[page];
			if (world.reported[page])
				copied[page] = __atomic_load_n(count_in(world.view, page),
							       __ATOMIC_SEQ_CST);
			cr_assert_leq(before[page], copied[page], "round %u missed page %lu", round,
				      page);
		}
	}
	atomic_store(&writers.over, true);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	cr_expect_gt(written, 0);
	close_world(&world);
}

/* --- Another process
 * ------------------------------------------------------------------------------ */

/* Writes the pages it is told, one byte a page number; answers each. */
static void obey(int from, uint8_t *memory)
{
	uint8_t page;
	send_descriptor(from, (int)syscall(SYS_userfaultfd, O_CLOEXEC));
	while (read(from, &page, 1) == 1) {
		memory[page * PAGE]++;
		if (write(from, &page, 1) != 1)
			_exit(1);
	}
	_exit(0);
}

static void tell(int to, uint8_t page)
{
	uint8_t answer;
	cr_assert_eq(write(to, &page, 1), 1);
	cr_assert_eq(read(to, &answer, 1), 1);
}

Test(wp, sees_what_another_process_writes)
{
	struct world world = {0};
	struct jaunt_error error = {0};
	int ends[2], status, fd = memfd_create("guest", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, BLOCK), 0);
	world.view = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	world.reported = calloc(BLOCK / PAGE, 1);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	pid_t child = fork();
	if (!child) {
		close(ends[0]);
		obey(ends[1], world.view);
	}
	close(ends[1]);
	int uffd = receive_descriptor(ends[0]);
	int result = uffd < 0 ? -ENOTSUP : uffd_adopt(&world.uffd, uffd, false, &error);
	world.wp = (struct wp){.uffd = &world.uffd,
			       .pid = child,
			       .address = (uintptr_t)world.view,
			       .bytes = BLOCK,
			       .page_bytes = PAGE,
			       .fd = fd};
	if (!result)
		result = wp_open(&world.wp, &error);
	if (result) {
		close(ends[0]);
		waitpid(child, &status, 0);
		cr_skip_test("%s", error.text);
	}
	tell(ends[0], 3);
	start(&world);
	collect(&world, true);
	cr_expect_eq(world.reports, 0);
	tell(ends[0], 200);
	collect(&world, true);
	expect_only(&world, 200);
	tell(ends[0], 3);
	collect(&world, true);
	expect_only(&world, 3);
	close(ends[0]);
	waitpid(child, &status, 0);
	cr_expect_lt(wp_collect(&world.wp, true, report, &world, &error), 0, "the process is gone");
	close_world(&world);
}

/* --- Soft-dirty bits, where the kernel has them
 * --------------------------------------------------- */

Test(wp, soft_dirty_bits_tell_the_same_where_there_are_any)
{
	struct world world;
	struct soft_dirty bits;
	struct jaunt_error error = {0};
	int result = soft_dirty_open(&bits, 0, &error);
	cr_assert_eq(result == 0, soft_dirty_supported());
	if (result)
		cr_skip_test("%s", error.text);
	open_world(&world, 4 * BLOCK);
	struct soft_dirty_range range = {.address = world.wp.address,
					 .bytes = world.wp.bytes,
					 .page_bytes = PAGE,
					 .fd = world.wp.fd};
	memset(world.view, 1, BLOCK);
	cr_assert_eq(soft_dirty_clear(&bits, &error), 0);
	world.view[7 * PAGE] = 2;
	world.view[3 * BLOCK] = 2;
	cr_assert_eq(soft_dirty_read(&bits, &range, report, &world, &error), 0);
	cr_expect(world.reported[7] && world.reported[3 * BLOCK / PAGE]);
	cr_expect_eq(world.reports, 2);
	soft_dirty_close(&bits);
	close_world(&world);
}
