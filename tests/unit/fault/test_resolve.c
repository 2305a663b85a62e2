/* SPDX-License-Identifier: Apache-2.0 */
/* What COPY, CONTINUE, ZEROPAGE and WAKE answer, and whom they wake, for each state of a page. The
 * rules of installing pages rest on these answers. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fault/views.h"

TestSuite(resolve, .timeout = 30);

static uint8_t *filled(uint64_t bytes, uint8_t value)
{
	uint8_t *data = aligned_alloc(PAGE, bytes);
	memset(data, value, bytes);
	return data;
}

/* A toucher of the page, its fault read, itself asleep. */
static void sleeper(struct views *views, struct toucher *toucher, uint64_t offset, bool write)
{
	toucher_start(toucher, views->vm + offset, write, 9);
	views_next_fault(views);
	toucher_await_sleep(toucher);
}

Test(resolve, copy_wakes_the_waiter_with_the_bytes)
{
	struct views views;
	struct toucher toucher;
	uint8_t *data = filled(PAGE, 42);

	views_open(&views, 1);
	sleeper(&views, &toucher, 7, false);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE, UFFD_WAKE), PAGE);
	cr_assert_eq(toucher_join(&toucher), 42);
	free(data);
	views_close(&views);
}

Test(resolve, a_copied_page_takes_writes_without_another_fault)
{
	struct views views;
	uint8_t *data = filled(PAGE, 1);

	views_open(&views, 1);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE, UFFD_WAKE), PAGE);
	views.vm[0] = 2;
	cr_assert(views_quiet(&views));
	cr_assert_eq(views.engine[0], 2);
	free(data);
	views_close(&views);
}

Test(resolve, a_continued_page_takes_writes_without_another_fault)
{
	struct views views;

	views_open(&views, 1);
	views.engine[0] = 1;
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE), PAGE);
	views.vm[0] = 2;
	cr_assert(views_quiet(&views));
	cr_assert_eq(views.engine[0], 2);
	views_close(&views);
}

Test(resolve, without_wake_the_waiter_sleeps_on_until_woken)
{
	struct views views;
	struct toucher toucher;
	uint8_t *data = filled(PAGE, 5);

	views_open(&views, 1);
	sleeper(&views, &toucher, 0, false);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE, UFFD_DONT_WAKE),
		     PAGE);
	cr_assert(toucher_asleep(&toucher));
	cr_assert_eq(uffd_wake(&views.uffd, views_address(&views, 0), PAGE), 0);
	cr_assert_eq(toucher_join(&toucher), 5);
	free(data);
	views_close(&views);
}

Test(resolve, copy_onto_a_mapped_page_says_eexist_and_wakes_nobody)
{
	struct views views;
	struct toucher toucher;
	uint8_t *data = filled(PAGE, 5), *other = filled(PAGE, 6);

	views_open(&views, 1);
	sleeper(&views, &toucher, 0, false);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE, UFFD_DONT_WAKE),
		     PAGE);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), other, PAGE, UFFD_WAKE),
		     -EEXIST);
	cr_assert(toucher_asleep(&toucher));
	cr_assert_eq(uffd_wake(&views.uffd, views_address(&views, 0), PAGE), 0);
	cr_assert_eq(toucher_join(&toucher), 5);
	free(data);
	free(other);
	views_close(&views);
}

Test(resolve, copy_onto_a_page_that_is_only_in_the_file_says_eexist_too)
{
	struct views views;
	uint8_t *data = filled(PAGE, 5);

	views_open(&views, 1);
	views.engine[0] = 1;
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE, UFFD_WAKE),
		     -EEXIST);
	cr_assert_eq(views.engine[0], 1);
	free(data);
	views_close(&views);
}

Test(resolve, a_copy_that_meets_a_present_page_counts_and_wakes_only_what_lies_before_it)
{
	struct views views;
	struct toucher before, behind;
	uint8_t *data = filled(4 * PAGE, 5);

	views_open(&views, 4);
	views.engine[2 * PAGE] = 1;
	sleeper(&views, &before, PAGE, false);
	sleeper(&views, &behind, 3 * PAGE, false);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, 4 * PAGE, UFFD_WAKE),
		     2 * PAGE);
	cr_assert_eq(toucher_join(&before), 5);
	cr_assert(toucher_asleep(&behind));
	cr_assert_eq(
		uffd_copy(&views.uffd, views_address(&views, 2 * PAGE), data, 2 * PAGE, UFFD_WAKE),
		-EEXIST);
	cr_assert(toucher_asleep(&behind));
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 3 * PAGE), data, PAGE, UFFD_WAKE),
		     PAGE);
	cr_assert_eq(toucher_join(&behind), 5);
	free(data);
	views_close(&views);
}

Test(resolve, of_two_racing_copies_exactly_one_wins_each_page)
{
	enum { PAGES = 512 };
	struct views views;
	uint8_t *mine = filled(PAGE, 1), *theirs = filled(PAGE, 2);

	views_open(&views, PAGES);
	bool *won = mmap(NULL, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bool *go = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = fork();
	if (!child) {
		/* The ioctl works on the address space of whoever opened the userfaultfd. */
		while (!__atomic_load_n(go, __ATOMIC_ACQUIRE))
			;
		for (uint64_t i = 0; i < PAGES; i++)
			won[i] = uffd_copy(&views.uffd, views_address(&views, i * PAGE), theirs,
					   PAGE, UFFD_WAKE) == (int64_t)PAGE;
		_exit(0);
	}
	bool own[PAGES];
	__atomic_store_n(go, true, __ATOMIC_RELEASE);
	for (uint64_t i = PAGES; i-- > 0;)
		own[i] = uffd_copy(&views.uffd, views_address(&views, i * PAGE), mine, PAGE,
				   UFFD_WAKE) == (int64_t)PAGE;
	int status;
	waitpid(child, &status, 0);
	for (uint64_t i = 0; i < PAGES; i++) {
		cr_assert_eq(own[i] + won[i], 1, "page %lu", i);
		cr_assert_eq(views.engine[i * PAGE], own[i] ? 1 : 2);
	}
	free(mine);
	free(theirs);
	views_close(&views);
}

Test(resolve, continue_wakes_the_waiter_with_the_bytes_of_the_file)
{
	struct views views;
	struct toucher toucher;

	views_open(&views, 1);
	views.engine[3] = 33;
	sleeper(&views, &toucher, 3, false);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE), PAGE);
	cr_assert_eq(toucher_join(&toucher), 33);
	views_close(&views);
}

Test(resolve, continue_on_a_hole_says_efault)
{
	struct views views;
	views_open(&views, 1);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE),
		     -EFAULT);
	views_close(&views);
}

Test(resolve, continue_counts_up_to_a_hole)
{
	struct views views;
	views_open(&views, 3);
	views.engine[0] = 1;
	views.engine[PAGE] = 1;
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), 3 * PAGE, UFFD_WAKE),
		     2 * PAGE);
	views_close(&views);
}

Test(resolve, continue_on_a_mapped_page_says_eexist_and_wakes_nobody)
{
	struct views views;
	struct toucher toucher;

	views_open(&views, 1);
	views.engine[0] = 4;
	sleeper(&views, &toucher, 0, false);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), PAGE, UFFD_DONT_WAKE),
		     PAGE);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE),
		     -EEXIST);
	cr_assert(toucher_asleep(&toucher));
	cr_assert_eq(uffd_wake(&views.uffd, views_address(&views, 0), PAGE), 0);
	cr_assert_eq(toucher_join(&toucher), 4);
	views_close(&views);
}

Test(resolve, zeropage_fills_a_hole_with_zeros_and_wakes)
{
	struct views views;
	struct toucher toucher;

	views_open(&views, 1);
	sleeper(&views, &toucher, 100, false);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE), PAGE);
	cr_assert_eq(toucher_join(&toucher), 0);
	views.vm[0] = 8;
	cr_assert(views_quiet(&views));
	cr_assert_eq(views.engine[0], 8);
	views_close(&views);
}

Test(resolve, zeropage_never_replaces_bytes_mapped_or_only_in_the_file)
{
	struct views views;
	views_open(&views, 2);
	views.engine[0] = 1;
	views.engine[PAGE] = 2;
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE), PAGE);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE),
		     -EEXIST);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, PAGE), PAGE, UFFD_WAKE),
		     -EEXIST);
	cr_assert_eq(views.engine[0], 1);
	cr_assert_eq(views.engine[PAGE], 2);
	views_close(&views);
}

Test(resolve, a_wake_with_nobody_waiting_does_no_harm)
{
	struct views views;
	views_open(&views, 4);
	cr_assert_eq(uffd_wake(&views.uffd, views_address(&views, 0), 4 * PAGE), 0);
	views_close(&views);
}

Test(resolve, a_bare_wake_of_a_missing_page_only_makes_it_fault_again)
{
	struct views views;
	struct toucher toucher;

	views_open(&views, 1);
	sleeper(&views, &toucher, 0, false);
	cr_assert_eq(uffd_wake(&views.uffd, views_address(&views, 0), PAGE), 0);
	cr_assert_not(views_next_fault(&views).minor);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, 0), PAGE, UFFD_WAKE), PAGE);
	toucher_join(&toucher);
	views_close(&views);
}

Test(resolve, on_an_unregistered_range_everything_but_wake_says_enoent)
{
	struct views views;
	uint8_t *data = filled(PAGE, 1);
	uint64_t address;

	views_open(&views, 2);
	address = views_address(&views, PAGE);
	views.engine[PAGE] = 1;
	cr_assert_eq(uffd_unregister(&views.uffd, address, PAGE), 0);
	cr_assert_eq(uffd_copy(&views.uffd, address, data, PAGE, UFFD_WAKE), -ENOENT);
	cr_assert_eq(uffd_continue(&views.uffd, address, PAGE, UFFD_WAKE), -ENOENT);
	cr_assert_eq(uffd_zeropage(&views.uffd, address, PAGE, UFFD_WAKE), -ENOENT);
	cr_assert_eq(uffd_wake(&views.uffd, address, PAGE), 0);
	free(data);
	views_close(&views);
}

Test(resolve, unregistering_wakes_the_waiters)
{
	struct views views;
	struct toucher toucher;

	views_open(&views, 1);
	sleeper(&views, &toucher, 0, true);
	views.engine[1] = 3;
	cr_assert_eq(uffd_unregister(&views.uffd, views_address(&views, 0), PAGE), 0);
	toucher_join(&toucher);
	cr_assert_eq(views.vm[0], 9);
	cr_assert_eq(views.vm[1], 3);
	views_close(&views);
}

Test(resolve, a_range_that_is_no_multiple_of_a_page_is_refused)
{
	struct views views;
	uint8_t *data = filled(PAGE, 1);
	views_open(&views, 1);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE / 2, UFFD_WAKE),
		     -EINVAL);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 8), PAGE, UFFD_WAKE),
		     -EINVAL);
	free(data);
	views_close(&views);
}

Test(resolve, a_full_file_system_says_so_after_counting_what_fitted)
{
	char directory[] = "/tmp/jaunt-full-XXXXXX", path[64];
	struct views views;
	uint8_t *data = filled(4 * PAGE, 7);

	cr_assert_not_null(mkdtemp(directory));
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("jaunt", directory, "tmpfs", 0, "size=8k")) {
		rmdir(directory);
		cr_skip_test("needs root to mount a small tmpfs");
	}
	snprintf(path, sizeof(path), "%s/memory", directory);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	cr_assert(fd >= 0 && !ftruncate(fd, 4 * PAGE));
	views_open_fd(&views, fd, 4 * PAGE);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, 4 * PAGE, UFFD_WAKE),
		     2 * PAGE);
	int64_t done =
		uffd_copy(&views.uffd, views_address(&views, 2 * PAGE), data, 2 * PAGE, UFFD_WAKE);
	cr_assert(done == -ENOMEM || done == -ENOSPC, "%ld", done);
	free(data);
	views_close(&views);
	umount2(directory, MNT_DETACH);
	rmdir(directory);
}
