/* SPDX-License-Identifier: Apache-2.0 */
/* Which tracker is taken for which memory. */
#include "engine/source/tracker.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/source/dirty.h"

TestSuite(tracker, .timeout = 60);

/* The kernel keeps no soft-dirty bits for it, and says nothing. */
Test(tracker, soft_dirty_is_refused_for_memory_of_huge_pages)
{
	struct guestmem memory = {.region_count = 2};
	struct jaunt_vm_ops ops = {.driver = "none"};
	struct dirty dirty = {0};
	struct tracker *tracker = NULL;
	struct jaunt_error error = {0};

	memory.regions[0] = (struct guest_region){.pages = 8, .page_bytes = 4096};
	memory.regions[1] =
		(struct guest_region){.pages = 8, .page_bytes = 2 << 20, .hugetlb = true};
	cr_assert_eq(
		tracker_open(&tracker, TRACKER_SOFT_DIRTY, &ops, NULL, &memory, &dirty, &error),
		-ENOTSUP);
	cr_assert_null(tracker);
	cr_assert_str_eq(error.reason, "no-tracker");
	cr_assert(strstr(error.text, "huge pages"), "%s", error.text);
}

/* --- Devices that write late --------------------------------------------------------------------
 */

static bool late, standing;
static unsigned pauses;

static int pause_it(void *vm, uint64_t *when_ns, struct jaunt_error *error)
{
	standing = true;
	pauses++;
	return 0;
}

static int resume_it(void *vm, uint64_t *when_ns, struct jaunt_error *error)
{
	standing = false;
	return 0;
}

static bool writes_late(void *vm)
{
	return late;
}

static const struct jaunt_vm_ops ops_of_late = {
	.driver = "none", .pause = pause_it, .resume = resume_it, .writes_late = writes_late};

/* Starts, collects once from a VM that runs and once from one that does not, and ends. */
static void track(bool is_late)
{
	struct guestmem memory = {.region_count = 1};
	struct dirty dirty = {0};
	struct tracker *tracker = NULL;
	struct jaunt_error error = {0};
	size_t bytes = 64 * 4096;
	int fd = memfd_create("jaunt-test-tracker", MFD_CLOEXEC);

	late = is_late;
	cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
	char *view = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(view, MAP_FAILED);
	memory.regions[0] = (struct guest_region){
		.pages = 64, .page_bytes = 4096, .fd = fd, .vm_view = (uint8_t *)view};
	cr_assert_eq(dirty_open(&dirty, &memory), 0);
	int result = tracker_open(&tracker, TRACKER_WRITE_PROTECT, &ops_of_late, NULL, &memory,
				  &dirty, &error);
	if (result == -ENOTSUP)
		cr_skip_test("this kernel has no asynchronous write-protection");
	cr_assert_eq(result, 0, "%s", error.text);
	pauses = 0;
	cr_assert_eq(tracker_start(tracker, &error), 0, "%s", error.text);
	cr_assert_eq(pauses, is_late);
	view[4096 * 5] = 1;
	cr_assert_eq(tracker_collect(tracker, true, &error), 0, "%s", error.text);
	cr_assert_eq(pauses, 2 * is_late);
	cr_assert(!standing);
	/* Armed again by that: what follows is seen, too. */
	view[4096 * 9] = 1;
	cr_assert_eq(tracker_collect(tracker, false, &error), 0, "%s", error.text);
	cr_assert_eq(pauses, 2 * is_late);
	cr_assert_geq(dirty_count_all(&dirty), 2);
	tracker_close(tracker);
	dirty_close(&dirty);
	munmap(view, bytes);
	close(fd);
}

Test(tracker, is_armed_only_while_the_vm_stands_still_where_devices_write_late)
{
	track(true);
}

Test(tracker, needs_no_pause_where_they_do_not)
{
	track(false);
}
