/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/worker.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

TestSuite(worker, .timeout = 60);

static struct worker worker;
static _Atomic unsigned begun, pumped, ended;
static int begin_result;

static int begin(void *user, struct ring *ring)
{
	cr_assert_eq(user, &worker);
	cr_assert_not_null(ring);
	begun++;
	return begin_result;
}

static int64_t pump(void *user)
{
	(void)user;
	pumped++;
	return -1;
}

static void end(void *user)
{
	(void)user;
	ended++;
}

static const struct worker_ops ops = {.begin = begin, .pump = pump, .end = end};

static int start(void)
{
	return worker_start(&worker, "test", WORKER_NORMAL, &ops, &worker);
}

/* As one that never was started: nothing to stop, nobody to wake. */
static void expect_not_running(void)
{
	cr_assert_not(worker.running);
	cr_assert_null(worker.ring);
	worker_wake(&worker);
	worker_stop(&worker);
	cr_assert_eq(pumped, 0);
	cr_assert_eq(ended, 0);
}

Test(worker, a_beginning_that_fails_is_told_and_nothing_runs)
{
	begin_result = -ENODEV;
	cr_assert_eq(start(), -ENODEV);
	cr_assert_eq(begun, 1);
	expect_not_running();
}

Test(worker, without_a_ring_nothing_begins)
{
	struct rlimit before, none = {0, 0};

	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	none.rlim_max = before.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
	int result = start();
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	cr_assert_eq(result, -EMFILE, "%s", strerror(-result));
	cr_assert_eq(begun, 0);
	expect_not_running();
}

Test(worker, one_that_failed_can_be_started_again)
{
	begin_result = -ENODEV;
	cr_assert_eq(start(), -ENODEV);
	begin_result = 0;
	cr_assert_eq(start(), 0);
	worker_wake(&worker);
	worker_stop(&worker);
	cr_assert_eq(begun, 2);
	cr_assert_eq(ended, 1);
	worker_stop(&worker);
	cr_assert_eq(ended, 1);
}

#define SPIN_NS 20000000u

static int64_t spin(void *user)
{
	struct timespec now = {0};

	(void)user;
	while ((uint64_t)now.tv_nsec < SPIN_NS && !now.tv_sec)
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	pumped++;
	return -1;
}

Test(worker, its_time_on_a_cpu_is_told_while_it_lives_and_after)
{
	static const struct worker_ops spinning = {.pump = spin};

	if (access("/proc/self/schedstat", R_OK) < 0)
		cr_skip_test("the kernel keeps no account of it");
	cr_assert_eq(worker_start(&worker, "test", WORKER_NORMAL, &spinning, &worker), 0);
	while (worker_busy_ns(&worker) < SPIN_NS) /* told when it goes to sleep */
		usleep(1000);
	worker_stop(&worker);
	cr_assert_geq(worker_busy_ns(&worker), SPIN_NS);
}

/* --- Rank ----------------------------------------------------------------------------------------
 */

static int nice_of_worker;

static int note_nice(void *user, struct ring *ring)
{
	(void)user, (void)ring;
	nice_of_worker = getpriority(PRIO_PROCESS, 0);
	return 0;
}

static int nice_of(enum worker_rank rank)
{
	static const struct worker_ops noting = {.begin = note_nice, .pump = pump};

	cr_assert_eq(worker_start(&worker, "test", rank, &noting, &worker), 0);
	worker_stop(&worker);
	return nice_of_worker;
}

Test(worker, that_an_urgent_thread_starts_is_urgent_only_if_it_says_so)
{
	int before = getpriority(PRIO_PROCESS, 0);
	struct worker_rank_saved saved = worker_rank_raise();
	int raised = getpriority(PRIO_PROCESS, 0);

	if (raised == before) {
		worker_rank_restore(&saved);
		cr_skip_test("no permission to raise a thread's rank");
	}
	cr_expect_geq(nice_of(WORKER_NORMAL), 0);
	cr_expect_geq(nice_of(WORKER_BULK), 0);
	cr_expect_eq(nice_of(WORKER_URGENT), raised);
	worker_rank_restore(&saved);
	cr_expect_eq(getpriority(PRIO_PROCESS, 0), before);
	cr_expect_eq(nice_of(WORKER_BULK), before);
}
