/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM that refuses, or is slow, where dirty tracking asks it. This program's ioctl() stands before
 * the library's: it passes everything on, but for the calls that a test has chosen.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

TestSuite(track_fails, .timeout = 120);

#define MIB   (UINT64_C(1) << 20)
#define BYTES (UINT64_C(4096) * MIB) /* in several slots of KVM's */
#define PAGES (BYTES / 4096)

int ioctl(int fd, unsigned long request, ...);

static _Atomic unsigned long refused; /* a request; 0: none */
static _Atomic unsigned refuse_from;  /* so many of them pass first */
static _Atomic int refused_with;
static _Atomic unsigned seen;
static _Atomic unsigned switched_on, switched_off_first; /* slots' logs; off before any was on */
static atomic_bool sleepy; /* a thread that resets its rings sleeps meanwhile */

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	va_start(list, request);
	void *argument = va_arg(list, void *);
	va_end(list);
	if (request == refused && seen++ >= refuse_from) {
		errno = refused_with;
		return -1;
	}
	if (request == KVM_SET_USER_MEMORY_REGION) {
		const struct kvm_userspace_memory_region *slot = argument;
		if (slot->flags & KVM_MEM_LOG_DIRTY_PAGES)
			switched_on++;
		else
			switched_off_first += !switched_on;
	}
	if (request == KVM_RESET_DIRTY_RINGS && sleepy) {
		struct timespec time = {.tv_nsec = 1000000};
		nanosleep(&time, NULL);
	}
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

static void refuse(unsigned long request, unsigned from, int with)
{
	refuse_from = from;
	refused_with = with;
	seen = 0;
	refused = request;
}

static struct microvm *create(enum microvm_tracking tracking, const char *workload)
{
	struct jaunt_error error = {0};
	struct microvm *vm = NULL;
	struct microvm_config config = {.name = "test",
					.memory_bytes = BYTES,
					.vcpus = 1,
					.page_bytes = 4096,
					.workload = workload,
					.tracking = tracking};

	harness_require(HARNESS_KVM);
	int result = microvm_create(&vm, &config, &error);
	if (result && strcmp(error.reason, "no-dirty-ring") == 0)
		cr_skip("%s", error.text);
	cr_assert(!result, "%s", error.text);
	cr_assert(!microvm_start(vm, &error), "start: %s", error.text);
	cr_assert(!microvm_wait_ready(vm, HARNESS_PATIENCE_MS, &error), "ready: %s", error.text);
	return vm;
}

static void ignore(void *context, size_t region, uint64_t first, uint64_t count)
{
	(void)context, (void)region, (void)first, (void)count;
}

/* Switching off is refused from that slot on, twice; then it is done, and tracking can begin anew.
 */
static void expect_stopped_again(enum microvm_tracking tracking, unsigned every)
{
	struct jaunt_error error = {0};
	struct microvm *vm = create(tracking, "random:ws=16m");
	int result =
		every ? microvm_ops.track_sample(vm, every) : microvm_ops.track_start(vm, &error);

	if (every && result == -ENOTSUP)
		cr_skip("KVM cannot note the writes to some pages alone here");
	cr_assert_eq(result, 0, "%s", error.text);
	refuse(KVM_SET_USER_MEMORY_REGION, 1, ENOMEM);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), -ENOMEM);
	cr_expect_str_eq(error.reason, "kvm");
	cr_expect(strstr(error.text, "off"), "%s", error.text);
	cr_expect_gt(seen, 2, "it went on behind the slot that failed");
	cr_expect_eq(microvm_ops.track_collect(vm, ignore, NULL, &error), -EINVAL);
	refuse(KVM_SET_USER_MEMORY_REGION, 0, ENOMEM);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), -ENOMEM);
	cr_expect_eq(microvm_ops.track_start(vm, &error), -ENOMEM);
	result = microvm_ops.track_sample(vm, 16);
	cr_expect(result == -ENOMEM || result == -ENOTSUP, "%d", result);
	refuse(0, 0, 0);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), 0, "%s", error.text);
	cr_expect_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	cr_expect_eq(microvm_ops.track_collect(vm, ignore, NULL, &error), 0, "%s", error.text);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), 0, "%s", error.text);
	harness_pause(vm);
	harness_resume(vm);
	harness_check(vm);
	microvm_destroy(vm);
}

Test(track_fails, a_log_that_was_not_switched_off_can_be_switched_off_again)
{
	expect_stopped_again(MICROVM_DIRTY_LOG, 0);
}

Test(track_fails, so_can_the_log_of_a_sample)
{
	expect_stopped_again(MICROVM_DIRTY_LOG, 16);
}

Test(track_fails, so_can_rings)
{
	expect_stopped_again(MICROVM_DIRTY_RING, 0);
}

Test(track_fails, a_start_that_fails_half_way_is_taken_back_by_the_next)
{
	struct jaunt_error error = {0};
	struct microvm *vm = create(MICROVM_DIRTY_LOG, "random:ws=16m");

	refuse(KVM_SET_USER_MEMORY_REGION, 1, ENOMEM);
	cr_expect_eq(microvm_ops.track_start(vm, &error), -ENOMEM);
	cr_expect(strstr(error.text, "on: "), "%s", error.text);
	refuse(0, 0, 0);
	switched_on = switched_off_first = 0;
	cr_expect_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	cr_expect_gt(switched_on, 1, "nothing is tested");
	cr_expect_geq(switched_off_first, switched_on, "the log of a slot was left on");
	cr_expect_eq(microvm_ops.track_collect(vm, ignore, NULL, &error), 0, "%s", error.text);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), 0, "%s", error.text);
	microvm_destroy(vm);
}

Test(track_fails, rings_that_are_not_reset_are_an_error_of_their_own)
{
	struct jaunt_error error = {0};
	struct microvm *vm = create(MICROVM_DIRTY_RING, "random:ws=16m");

	refuse(KVM_RESET_DIRTY_RINGS, 0, EINVAL);
	cr_expect_eq(microvm_ops.track_start(vm, &error), -EIO);
	cr_expect(strstr(error.text, "does not reset"), "%s", error.text);
	refuse(0, 0, 0);
	cr_expect_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	cr_expect_eq(microvm_ops.track_stop(vm, &error), 0, "%s", error.text);
	microvm_destroy(vm);
}

/* --- A reset that may have been cut short -------------------------------------------------------
 */

static void mark(void *context, size_t region, uint64_t first, uint64_t count)
{
	uint8_t *pages = context;
	(void)region;
	memset(pages + first, 1, count);
}

/* Pages of a collect while the VM ran that a second one tells again, though the guest has no time
 * to write them twice: it writes one in 10 ms. */
static void collect_twice(struct microvm *vm, uint64_t *once, uint64_t *again)
{
	static uint8_t first[PAGES], second[PAGES];
	struct jaunt_error error = {0};
	struct timespec time = {.tv_nsec = 200000000};

	memset(first, 0, sizeof(first));
	memset(second, 0, sizeof(second));
	nanosleep(&time, NULL);
	cr_assert_eq(microvm_ops.track_collect(vm, mark, first, &error), 0, "%s", error.text);
	cr_assert_eq(microvm_ops.track_collect(vm, mark, second, &error), 0, "%s", error.text);
	*once = *again = 0;
	for (uint64_t i = 0; i < sizeof(first); i++) {
		*once += first[i];
		*again += first[i] & second[i];
	}
}

Test(track_fails, what_was_noted_is_told_again_if_the_thread_slept_in_the_reset)
{
	struct jaunt_error error = {0};
	struct microvm *vm = create(MICROVM_DIRTY_RING, "random:ws=16m,rate=200");
	uint64_t once = 0, again = 0;

	cr_assert_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	sleepy = true;
	collect_twice(vm, &once, &again);
	cr_expect_gt(once, 4, "%lu pages: nothing is tested", once);
	cr_expect_eq(again, once, "%lu of %lu pages", again, once);
	sleepy = false;
	/* It stays so until tracking begins anew. */
	collect_twice(vm, &once, &again);
	cr_expect_eq(again, once, "%lu of %lu pages", again, once);
	cr_assert_eq(microvm_ops.track_stop(vm, &error), 0, "%s", error.text);
	cr_assert_eq(microvm_ops.track_start(vm, &error), 0, "%s", error.text);
	collect_twice(vm, &once, &again);
	cr_expect_lt(again, once, "%lu of %lu pages: it forgets nothing any more", again, once);
	microvm_destroy(vm);
}
