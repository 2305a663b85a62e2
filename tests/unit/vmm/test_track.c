/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No write is missed. The test does what a migration does: a copy of all memory, then in rounds of
 * what trackers and discards report, taken while the vCPUs write. Again and again the VM is paused,
 * the rest collected and copied, and then the copy must equal the memory, byte by byte.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "engine/source/tracker.h"
#include "harness.h"

TestSuite(track, .timeout = 120);

#define MIB (UINT64_C(1) << 20)

struct copy {
	struct microvm *vm;
	struct guestmem memory;
	struct dirty dirty;
	struct tracker *tracker;
	uint8_t *bytes;
	uint64_t copied; /* pages, by rounds */
};

static void discarded(void *context, uint64_t guest_address, uint64_t bytes)
{
	struct copy *copy = context;
	uint64_t page = copy->memory.region_count ? copy->memory.regions[0].page_bytes : 0;
	if (page)
		dirty_mark(&copy->dirty, 0, guest_address / page, bytes / page);
}

static void copy_pages(struct copy *copy, uint64_t first, uint64_t count)
{
	const struct guest_region *region = &copy->memory.regions[0];
	uint8_t *to = copy->bytes + first * region->page_bytes;
	if (region->hugetlb) /* holes are few, and reading them costs pages of the pool only */
		memcpy(to, region->view + first * region->page_bytes, count * region->page_bytes);
	else
		cr_assert_eq(guestmem_read(region, first, count, to), 0);
}

static void copy_dirty(struct copy *copy, bool running)
{
	struct jaunt_error error = {0};
	uint64_t first, count;
	cr_assert_eq(tracker_collect(copy->tracker, running, &error), 0, "%s", error.text);
	for (uint64_t from = 0; dirty_take(&copy->dirty, 0, from, UINT64_MAX, 512, &first, &count);
	     from = first + count) {
		copy_pages(copy, first, count);
		copy->copied += count;
	}
}

static void rest(unsigned ms)
{
	struct timespec time = {.tv_nsec = ms * 1000000L};
	while (nanosleep(&time, &time) < 0)
		;
}

static void sample(const struct copy *copy, unsigned every)
{
	int64_t most = (int64_t)(copy->memory.regions[0].pages / every), last = 0;
	int result = tracker_sample(copy->tracker, every);
	if (result == -ENOTSUP)
		cr_skip("KVM cannot note the writes to some pages alone here");
	cr_assert_eq(result, 0, "%s", strerror(-result));
	for (unsigned i = 0; i < 5; i++) {
		rest(2);
		int64_t pages = tracker_sampled(copy->tracker);
		cr_assert(pages >= last && pages <= most, "%ld pages behind %ld of %ld", pages,
			  last, most);
		last = pages;
	}
	cr_assert_gt(last, 0);
}

static void start_copy(struct copy *copy, unsigned every)
{
	struct jaunt_error error = {0};
	if (every)
		sample(copy, every);
	cr_assert_eq(tracker_start(copy->tracker, &error), 0, "%s", error.text);
	copy_pages(copy, 0, copy->memory.regions[0].pages);
}

static void stop_copy(struct copy *copy)
{
	struct jaunt_error error = {0};
	cr_assert_eq(tracker_stop(copy->tracker, &error), 0, "%s", error.text);
}

static void expect_equal(const struct copy *copy)
{
	const struct guest_region *region = &copy->memory.regions[0];
	uint64_t missed = 0, example = 0;
	uint8_t *now = malloc(region->page_bytes);
	for (uint64_t page = 0; page < region->pages; page++) {
		if (region->hugetlb)
			memcpy(now, region->view + page * region->page_bytes, region->page_bytes);
		else
			cr_assert_eq(guestmem_read(region, page, 1, now), 0);
		if (memcmp(now, copy->bytes + page * region->page_bytes, region->page_bytes)) {
			missed++;
			example = page;
		}
	}
	free(now);
	cr_assert_eq(missed, 0, "%lu pages were written and not reported, page %lu is one", missed,
		     example);
}

struct plan {
	enum harness_backing backing;
	enum microvm_tracking tracking;
	enum tracker_kind kind;
	const char *workload;
	uint64_t page_bytes;
	uint32_t ring_entries;
	unsigned pauses, rounds, round_ms;
	unsigned every; /* a sample is looked at first; 0: none is */
};

static void open_copy(struct copy *copy, const struct plan *plan)
{
	struct jaunt_error error = {0};
	struct jaunt_description description;
	struct microvm_config config = {.name = "test",
					.memory_bytes = 64 * MIB,
					.vcpus = 2,
					.page_bytes = plan->page_bytes ? plan->page_bytes : 4096,
					.workload = plan->workload,
					.thread_backed = plan->backing == HARNESS_THREAD,
					.tracking = plan->tracking,
					.ring_entries = plan->ring_entries,
					.discarded = discarded,
					.discarded_context = copy};

	harness_require(plan->backing);
	int result = microvm_create(&copy->vm, &config, &error);
	if (result && (strcmp(error.reason, "no-hugepages") == 0 ||
		       strcmp(error.reason, "no-dirty-ring") == 0))
		cr_skip("%s", error.text);
	cr_assert(!result, "%s", error.text);
	cr_assert(!microvm_ops.describe(copy->vm, &description, &error), "%s", error.text);
	cr_assert_eq(guestmem_open(&copy->memory, &description, false, &error), 0, "%s",
		     error.text);
	cr_assert_eq(dirty_open(&copy->dirty, &copy->memory), 0);
	copy->bytes = mmap(NULL, config.memory_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	cr_assert(copy->bytes != MAP_FAILED);
	result = tracker_open(&copy->tracker, plan->kind, &microvm_ops, copy->vm, &copy->memory,
			      &copy->dirty, &error);
	if (result == -ENOTSUP)
		cr_skip("%s", error.text);
	cr_assert(!result, "%s", error.text);
	cr_assert(!microvm_start(copy->vm, &error), "start: %s", error.text);
	cr_assert(!microvm_wait_ready(copy->vm, HARNESS_PATIENCE_MS, &error), "ready: %s",
		  error.text);
}

static void close_copy(struct copy *copy)
{
	tracker_close(copy->tracker);
	microvm_destroy(copy->vm);
	munmap(copy->bytes, copy->memory.bytes);
	dirty_close(&copy->dirty);
	guestmem_close(&copy->memory);
}

static void expect_follows(struct plan plan)
{
	static struct copy copy;
	open_copy(&copy, &plan);
	start_copy(&copy, plan.every);
	for (unsigned pause = 0; pause < plan.pauses; pause++) {
		for (unsigned round = 0; round < plan.rounds; round++) {
			rest(plan.round_ms);
			copy_dirty(&copy, true);
		}
		harness_pause(copy.vm);
		copy_dirty(&copy, false);
		expect_equal(&copy);
		harness_resume(copy.vm);
	}
	cr_expect_gt(copy.copied, 0);
	/* Off and on again, as after a cancel. */
	stop_copy(&copy);
	rest(5);
	start_copy(&copy, plan.every);
	rest(plan.round_ms);
	copy_dirty(&copy, true);
	harness_pause(copy.vm);
	copy_dirty(&copy, false);
	expect_equal(&copy);
	stop_copy(&copy);
	harness_resume(copy.vm);
	harness_check(copy.vm);
	close_copy(&copy);
}

static void expect_all_followed(struct plan plan)
{
	static const char *const workloads[] = {"random:ws=16m", "sweep:ws=16m", "kv:ws=16m",
						"discard:ws=2m"};
	for (size_t i = 0; i < sizeof workloads / sizeof workloads[0]; i++) {
		plan.workload = workloads[i];
		plan.pauses = 10;
		plan.rounds = 4;
		plan.round_ms = 2;
		expect_follows(plan);
	}
}

Test(track, the_dirty_log_misses_nothing)
{
	expect_all_followed((struct plan){.kind = TRACKER_DRIVER});
}

Test(track, a_dirty_log_that_was_a_sample_at_first_misses_nothing)
{
	expect_all_followed((struct plan){.kind = TRACKER_DRIVER, .every = 16});
}

/* All of what is written shows in it in the end, and nothing else: the workload writes 16 MiB, and
 * a little beside them. */
Test(track, a_sample_is_of_the_size_that_was_asked_for)
{
	static struct copy copy;
	for (unsigned every = 1; every <= 256; every *= 16) {
		int64_t pages = 0, wanted = 4096 / every;
		open_copy(&copy,
			  &(struct plan){.kind = TRACKER_DRIVER, .workload = "sweep:ws=16m"});
		sample(&copy, every);
		for (unsigned i = 0; i < 1000 && pages < wanted * 3 / 4; i++) {
			rest(10);
			pages = tracker_sampled(copy.tracker);
		}
		cr_expect(pages >= wanted * 3 / 4 && pages <= wanted * 3 / 2, "%ld for %ld", pages,
			  wanted);
		stop_copy(&copy);
		cr_expect_lt(tracker_sampled(copy.tracker), 0, "it is over");
		close_copy(&copy);
	}
}

Test(track, where_there_is_no_log_there_is_no_sample_of_it)
{
	struct jaunt_error error = {0};
	struct microvm *vm = harness_create(HARNESS_THREAD, "random:ws=1m");
	cr_expect_eq(microvm_ops.track_sample(vm, 16), -ENOTSUP);
	microvm_destroy(vm);
	harness_require(HARNESS_KVM);
	vm = harness_create(HARNESS_KVM, "random:ws=1m");
	cr_expect_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	int result = microvm_ops.track_sample(vm, 16);
	cr_expect(result == -EALREADY || result == -ENOTSUP, "%d", result);
	microvm_destroy(vm);
}

Test(track, the_dirty_ring_misses_nothing)
{
	expect_all_followed((struct plan){.tracking = MICROVM_DIRTY_RING, .kind = TRACKER_DRIVER});
}

Test(track, write_protection_misses_nothing_of_vcpus_under_kvm)
{
	expect_all_followed((struct plan){.kind = TRACKER_WRITE_PROTECT});
}

Test(track, write_protection_misses_nothing_of_vcpus_on_threads)
{
	expect_all_followed(
		(struct plan){.backing = HARNESS_THREAD, .kind = TRACKER_WRITE_PROTECT});
}

/* Tried only where the kernel has it. */
Test(track, soft_dirty_bits_miss_nothing_of_vcpus_on_threads)
{
	expect_all_followed((struct plan){.backing = HARNESS_THREAD, .kind = TRACKER_SOFT_DIRTY});
}

/* Many times more pages than a ring has entries, between two collects. */
Test(track, a_full_dirty_ring_loses_nothing)
{
	expect_follows((struct plan){.tracking = MICROVM_DIRTY_RING,
				     .ring_entries = 1024,
				     .kind = TRACKER_DRIVER,
				     .workload = "sweep:ws=48m",
				     .pauses = 5,
				     .rounds = 2,
				     .round_ms = 200});
}

static void on_alarm(int signal)
{
	(void)signal;
}

/* As whoever embeds the engine may have them, and as the kick of a vCPU is one. */
Test(track, signals_in_the_midst_of_a_reset_lose_nothing)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	struct itimerval often = {{0, 100}, {0, 100}}, never = {0};

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	expect_follows((struct plan){.tracking = MICROVM_DIRTY_RING,
				     .kind = TRACKER_DRIVER,
				     .workload = "random:ws=32m",
				     .pauses = 10,
				     .rounds = 10,
				     .round_ms = 5});
	setitimer(ITIMER_REAL, &never, NULL);
}

static void expect_whole_pages(struct plan plan)
{
	plan.workload = "discard:ws=32m";
	plan.page_bytes = 2 * MIB;
	plan.pauses = 10;
	plan.rounds = 3;
	plan.round_ms = 2;
	expect_follows(plan);
	plan.workload = "random:ws=32m";
	expect_follows(plan);
}

Test(track, in_huge_pages_the_dirty_log_reports_whole_ones)
{
	expect_whole_pages((struct plan){.kind = TRACKER_DRIVER});
}

Test(track, in_huge_pages_the_dirty_ring_reports_whole_ones)
{
	expect_whole_pages((struct plan){.tracking = MICROVM_DIRTY_RING, .kind = TRACKER_DRIVER});
}

Test(track, in_huge_pages_write_protection_reports_whole_ones_under_kvm)
{
	expect_whole_pages((struct plan){.kind = TRACKER_WRITE_PROTECT});
}

Test(track, in_huge_pages_write_protection_reports_whole_ones_on_threads)
{
	expect_whole_pages((struct plan){.backing = HARNESS_THREAD, .kind = TRACKER_WRITE_PROTECT});
}

Test(track, without_a_choice_threads_are_tracked_from_outside_and_kvm_by_the_driver)
{
	static struct copy copy;
	struct plan plan = {.backing = HARNESS_THREAD, .kind = TRACKER_AUTO, .workload = "random"};
	open_copy(&copy, &plan);
	start_copy(&copy, 0);
	cr_expect_neq(tracker_kind(copy.tracker), TRACKER_DRIVER);
	copy_dirty(&copy, true);
	close_copy(&copy);
	plan.backing = HARNESS_KVM;
	open_copy(&copy, &plan);
	start_copy(&copy, 0);
	cr_expect_eq(tracker_kind(copy.tracker), TRACKER_DRIVER);
	copy_dirty(&copy, true);
	close_copy(&copy);
}

Test(track, an_idle_guest_has_next_to_nothing_to_report)
{
	static struct copy copy;
	open_copy(&copy, &(struct plan){.kind = TRACKER_DRIVER, .workload = "idle:ws=32m"});
	start_copy(&copy, 0);
	copy_dirty(&copy, true);
	copy.copied = 0;
	for (unsigned i = 0; i < 5; i++) {
		rest(10);
		copy_dirty(&copy, true);
	}
	cr_expect_lt(copy.copied, 1000, "%lu pages", copy.copied);
	close_copy(&copy);
}

Test(track, threads_have_no_tracking_of_their_own)
{
	struct jaunt_error error = {0};
	struct microvm *vm = harness_create(HARNESS_THREAD, "random:ws=1m");
	cr_expect_eq(microvm_ops.track_start(vm, &error), -ENOTSUP);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), 0);
	microvm_destroy(vm);
}

Test(track, collecting_what_was_not_started_is_an_error)
{
	struct jaunt_error error = {0};
	harness_require(HARNESS_KVM);
	struct microvm *vm = harness_create(HARNESS_KVM, "random:ws=1m");
	cr_expect_eq(microvm_ops.track_collect(vm, NULL, NULL, &error), -EINVAL);
	cr_expect_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	cr_expect_eq(microvm_ops.track_start(vm, &error), -EALREADY);
	microvm_destroy(vm);
}
