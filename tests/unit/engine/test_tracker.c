/* SPDX-License-Identifier: Apache-2.0 */
/* Which tracker is taken for which memory. */
#include "engine/source/tracker.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
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

static bool late, standing, cannot_resume;
static unsigned pauses;

static int pause_it(void *vm, uint64_t *when_ns, struct jaunt_error *error)
{
	standing = true;
	pauses++;
	return 0;
}

static int resume_it(void *vm, uint64_t *when_ns, struct jaunt_error *error)
{
	if (cannot_resume)
		return error_set(error, EIO, "no-luck", "it does not go on");
	standing = false;
	return 0;
}

static bool writes_late(void *vm)
{
	return late;
}

static const struct jaunt_vm_ops ops_of_late = {
	.driver = "none", .pause = pause_it, .resume = resume_it, .writes_late = writes_late};

/* Starts, collects from a VM that runs and once from one that does not, and ends. */
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
	cr_assert_not(tracker_pauses(tracker));
	cr_assert_eq(tracker_collect_stale(tracker, &error), 0, "%s", error.text);
	cr_assert_eq(pauses, 2 * is_late);
	cr_assert_eq(dirty_next(&dirty, 0, 6, 64), 9);
	/* And by that. */
	view[4096 * 13] = 1;
	cr_assert_eq(tracker_collect(tracker, false, &error), 0, "%s", error.text);
	cr_assert_eq(pauses, 2 * is_late);
	cr_assert_eq(dirty_next(&dirty, 0, 10, 64), 13);
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

/* --- Starts that fail ---------------------------------------------------------------------------
 */

static struct guestmem watched = {.region_count = 1,
				  .regions = {{.pages = 64, .page_bytes = 4096, .fd = -1}}};

/* A tracker of that memory from outside, ready to start. */
static struct tracker *open_outside(struct dirty *dirty)
{
	struct tracker *tracker = NULL;
	struct jaunt_error error = {0};

	if (watched.regions[0].fd < 0) {
		int fd = memfd_create("jaunt-test-tracker", MFD_CLOEXEC);
		cr_assert_eq(ftruncate(fd, 64 * 4096), 0);
		watched.regions[0].fd = fd;
		watched.regions[0].vm_view =
			mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		cr_assert_neq(watched.regions[0].vm_view, MAP_FAILED);
	}
	cr_assert_eq(dirty_open(dirty, &watched), 0);
	int result = tracker_open(&tracker, TRACKER_WRITE_PROTECT, &ops_of_late, NULL, &watched,
				  dirty, &error);
	if (result == -ENOTSUP)
		cr_skip_test("this kernel has no asynchronous write-protection");
	cr_assert_eq(result, 0, "%s", error.text);
	return tracker;
}

Test(tracker, that_comes_second_takes_nothing_from_the_first)
{
	struct dirty dirty, of_second;
	struct jaunt_error error = {0};
	struct tracker *first = open_outside(&dirty), *second = open_outside(&of_second);

	cr_assert_eq(tracker_start(first, &error), 0, "%s", error.text);
	cr_assert_lt(tracker_start(second, &error), 0);
	tracker_close(second);
	watched.regions[0].vm_view[4096 * 5] = 1;
	cr_assert_eq(tracker_collect(first, true, &error), 0, "%s", error.text);
	cr_assert_eq(dirty_next(&dirty, 0, 0, 64), 5);
	tracker_close(first);
	dirty_close(&dirty);
	dirty_close(&of_second);
}

Test(tracker, that_cannot_let_the_vm_go_on_lets_go_of_its_memory)
{
	struct dirty dirty, of_second;
	struct jaunt_error error = {0};
	struct tracker *first = open_outside(&dirty), *second = open_outside(&of_second);

	late = cannot_resume = true;
	cr_assert_eq(tracker_start(first, &error), -EIO);
	cr_assert(tracker_stands_still(first));
	late = cannot_resume = false;
	cr_assert_eq(tracker_start(second, &error), 0, "%s", error.text);
	tracker_close(second);
	tracker_close(first);
	dirty_close(&dirty);
	dirty_close(&of_second);
}

/* --- A driver that shows a sample, and then cannot track
 * ------------------------------------------
 */

static unsigned samples, stops, stop_fails;
static int sample_fails;

static int start_nothing(void *vm, struct jaunt_error *error)
{
	return error_set(error, ENOTSUP, "no-tracker", "this VM's writes are not noted");
}

static int collect_nothing(void *vm, jaunt_dirty_run *emit, void *context,
			   struct jaunt_error *error)
{
	return error_set(error, EPROTO, "bug", "what was not started is collected");
}

static int stop_nothing(void *vm, struct jaunt_error *error)
{
	return stops++ < stop_fails ? error_set(error, ENOMEM, "kvm", "no memory to stop it") : 0;
}

static int show_sample(void *vm, unsigned every)
{
	samples++;
	return -sample_fails;
}

static int64_t count_sample(void *vm)
{
	return 5;
}

static int no_userfaultfd(void *vm, struct jaunt_error *error)
{
	return error_set(error, ENOTSUP, "no-userfaultfd", "there is none");
}

static const struct jaunt_vm_ops ops_of_promising = {.driver = "promising",
						     .userfaultfd = no_userfaultfd,
						     .track_start = start_nothing,
						     .track_collect = collect_nothing,
						     .track_stop = stop_nothing,
						     .track_sample = show_sample,
						     .track_sampled = count_sample};

/* Huge pages keep soft-dirty out of it: nothing is left to go over to. */
static void open_promising(struct tracker **tracker, enum tracker_kind kind)
{
	static struct guestmem memory = {
		.region_count = 1,
		.regions = {{.pages = 8, .page_bytes = 2 << 20, .hugetlb = true}}};
	static struct dirty dirty;
	struct jaunt_error error = {0};

	samples = stops = 0;
	cr_assert_eq(tracker_open(tracker, kind, &ops_of_promising, NULL, &memory, &dirty, &error),
		     0, "%s", error.text);
	cr_assert_eq(tracker_sample(*tracker, 16), 0);
	cr_assert_eq(tracker_sampled(*tracker), 5);
}

Test(tracker, that_cannot_do_more_than_a_sample_says_so_and_can_be_asked_again)
{
	struct jaunt_error error = {0};
	struct tracker *tracker = NULL;

	open_promising(&tracker, TRACKER_AUTO);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(tracker_start(tracker, &error), -ENOTSUP);
		cr_assert_str_eq(error.reason, "no-tracker");
		cr_assert_eq(stops, 1, "the sample is to be off");
	}
	cr_assert_eq(tracker_kind(tracker), TRACKER_AUTO);
	cr_assert_eq(tracker_collect(tracker, true, &error), -EINVAL);
	cr_assert_eq(tracker_sample(tracker, 16), -ENOTSUP);
	cr_assert_eq(tracker_sampled(tracker), -EINVAL);
	cr_assert_eq(samples, 1);
	cr_assert_eq(tracker_stop(tracker, &error), 0);
	tracker_close(tracker);
	cr_assert_eq(stops, 1);
}

Test(tracker, that_was_asked_for_by_name_is_kept_when_it_cannot_start)
{
	struct jaunt_error error = {0};
	struct tracker *tracker = NULL;

	open_promising(&tracker, TRACKER_DRIVER);
	cr_assert_eq(tracker_start(tracker, &error), -ENOTSUP);
	cr_assert(strstr(error.text, "not noted"), "%s", error.text);
	cr_assert_eq(tracker_kind(tracker), TRACKER_DRIVER);
	cr_assert_eq(tracker_sampled(tracker), -EINVAL, "the start ends the sample");
	cr_assert_eq(stops, 1, "what has failed may be half on");
	cr_assert_eq(tracker_collect(tracker, true, &error), -EINVAL);
	cr_assert_eq(tracker_collect_stale(tracker, &error), -EINVAL);
	cr_assert_str_eq(error.reason, "bug");
	tracker_close(tracker);
	cr_assert_eq(stops, 1);
}

Test(tracker, that_was_left_half_on_is_stopped_in_the_end)
{
	struct jaunt_error error = {0};
	struct tracker *tracker = NULL;

	open_promising(&tracker, TRACKER_DRIVER);
	stop_fails = 1;
	cr_assert_eq(tracker_start(tracker, &error), -ENOTSUP);
	cr_assert(strstr(error.text, "not noted"), "%s", error.text);
	cr_assert_eq(stops, 1);
	cr_assert_eq(tracker_stop(tracker, &error), 0);
	cr_assert_eq(stops, 2);
	tracker_close(tracker);
	cr_assert_eq(stops, 2);
}

Test(tracker, whose_sample_fails_is_stopped)
{
	struct jaunt_error error = {0};
	struct tracker *tracker = NULL;

	open_promising(&tracker, TRACKER_DRIVER);
	cr_assert_eq(tracker_stop(tracker, &error), 0);
	sample_fails = ENOMEM;
	cr_assert_eq(tracker_sample(tracker, 16), -ENOMEM);
	cr_assert_eq(tracker_sampled(tracker), -EINVAL);
	cr_assert_eq(stops, 2);
	tracker_close(tracker);
	cr_assert_eq(stops, 2);
}

Test(tracker, that_could_not_be_stopped_is_stopped_again)
{
	struct jaunt_error error = {0};
	struct tracker *tracker = NULL;

	open_promising(&tracker, TRACKER_DRIVER);
	stop_fails = 2;
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(tracker_stop(tracker, &error), -ENOMEM);
		cr_assert(strstr(error.text, "no memory to stop it"), "%s", error.text);
		cr_assert_eq(tracker_sampled(tracker), -EINVAL);
	}
	cr_assert_eq(tracker_stop(tracker, &error), 0);
	cr_assert_eq(tracker_stop(tracker, &error), 0);
	cr_assert_eq(stops, 3, "what is off is left alone");
	tracker_close(tracker);
	cr_assert_eq(stops, 3);
}

Test(tracker, whose_sample_cannot_be_ended_is_not_passed_over)
{
	struct jaunt_error error = {0};
	struct tracker *tracker = NULL;

	open_promising(&tracker, TRACKER_AUTO);
	stop_fails = 1;
	cr_assert_eq(tracker_start(tracker, &error), -ENOMEM);
	cr_assert_eq(tracker_kind(tracker), TRACKER_DRIVER);
	tracker_close(tracker);
	cr_assert_eq(stops, 2);
}
