/* SPDX-License-Identifier: Apache-2.0 */
/* The same questions on hugetlbfs, where some answers differ. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault/uffd_abi.h"
#include "tests/unit/fault/views.h"

#define POOL           "/proc/sys/vm/nr_hugepages"
#define WANTED_IN_POOL 16l

static long pool_before = -1;

static long pool_size(void)
{
	long pages = -1;
	FILE *file = fopen(POOL, "re");
	if (file && fscanf(file, "%ld", &pages) != 1)
		pages = -1;
	if (file)
		fclose(file);
	return pages;
}

static void set_pool_size(long pages)
{
	FILE *file = fopen(POOL, "we");
	if (!file)
		return;
	fprintf(file, "%ld\n", pages);
	fclose(file);
}

/* Each test runs in a process of its own, one after the other: see meson.build. */
static void borrow_pool(void)
{
	pool_before = pool_size();
	if (pool_before >= 0 && pool_before < WANTED_IN_POOL)
		set_pool_size(WANTED_IN_POOL);
}

static void give_pool_back(void)
{
	if (pool_before >= 0 && pool_before < WANTED_IN_POOL)
		set_pool_size(pool_before);
}

TestSuite(hugetlb, .init = borrow_pool, .fini = give_pool_back, .timeout = 30);

/* Skipping leaves a test without its fini. */
static void open_views(struct views *views, unsigned pages)
{
	if (pool_size() < (long)pages)
		give_pool_back();
	views_open_huge(views, pages);
}

static uint8_t *filled(uint8_t value)
{
	uint8_t *data = aligned_alloc(HUGE_PAGE, HUGE_PAGE);
	memset(data, value, HUGE_PAGE);
	return data;
}

Test(hugetlb, is_adopted_when_it_is_needed)
{
	struct views views;
	struct jaunt_error error = {0};
	struct uffd uffd;

	open_views(&views, 1);
	int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		cr_skip_test("/dev/userfaultfd: %s", strerror(errno));
	int made = ioctl(fd, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	close(fd);
	cr_assert_eq(uffd_adopt(&uffd, made, true, &error), 0, "%s", error.text);
	cr_assert(uffd.features & UFFD_FEATURE_MINOR_HUGETLBFS);
	uffd_close(&uffd);
	views_close(&views);
}

Test(hugetlb, copy_brings_a_whole_page_and_wakes)
{
	struct views views;
	struct toucher toucher;
	uint8_t *data = filled(21);

	open_views(&views, 1);
	toucher_start(&toucher, views.vm + 12345, false, 0);
	struct fault_event event = views_next_fault(&views);
	cr_assert_not(event.minor);
	cr_assert_eq(event.address, views_address(&views, 12345));
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, HUGE_PAGE, UFFD_WAKE),
		     HUGE_PAGE);
	cr_assert_eq(toucher_join(&toucher), 21);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, HUGE_PAGE, UFFD_WAKE),
		     -EEXIST);
	free(data);
	views_close(&views);
}

Test(hugetlb, a_page_in_the_file_faults_as_minor_and_continue_maps_it)
{
	struct views views;
	struct toucher toucher;

	open_views(&views, 1);
	views.engine[HUGE_PAGE - 1] = 9;
	toucher_start(&toucher, views.vm + HUGE_PAGE - 1, false, 0);
	cr_assert(views_next_fault(&views).minor);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), HUGE_PAGE, UFFD_WAKE),
		     HUGE_PAGE);
	cr_assert_eq(toucher_join(&toucher), 9);
	views.vm[0] = 4;
	cr_assert(views_quiet(&views));
	cr_assert_eq(views.engine[0], 4);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), HUGE_PAGE, UFFD_WAKE),
		     -EEXIST);
	views_close(&views);
}

Test(hugetlb, continue_on_a_hole_says_efault)
{
	struct views views;
	open_views(&views, 1);
	cr_assert_eq(uffd_continue(&views.uffd, views_address(&views, 0), HUGE_PAGE, UFFD_WAKE),
		     -EFAULT);
	views_close(&views);
}

Test(hugetlb, has_no_zeropage_and_no_pwrite)
{
	struct views views;
	open_views(&views, 1);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, 0), HUGE_PAGE, UFFD_WAKE),
		     -EINVAL);
	cr_assert_eq(pwrite(views.fd, "x", 1, 0), -1);
	cr_assert_eq(errno, EINVAL);
	views_close(&views);
}

Test(hugetlb, a_punched_page_is_missing_again)
{
	struct views views;
	struct toucher toucher;
	uint8_t *data = filled(3);

	open_views(&views, 1);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, HUGE_PAGE, UFFD_WAKE),
		     HUGE_PAGE);
	views_punch(&views, 0, HUGE_PAGE);
	toucher_start(&toucher, views.vm, false, 0);
	cr_assert_not(views_next_fault(&views).minor);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, HUGE_PAGE, UFFD_WAKE),
		     HUGE_PAGE);
	cr_assert_eq(toucher_join(&toucher), 3);
	free(data);
	views_close(&views);
}

Test(hugetlb, part_of_a_page_is_refused)
{
	struct views views;
	uint8_t *data = filled(3);
	open_views(&views, 1);
	cr_assert_eq(uffd_copy(&views.uffd, views_address(&views, 0), data, PAGE, UFFD_WAKE),
		     -EINVAL);
	free(data);
	views_close(&views);
}
