/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "transport/ring.h"

TestSuite(ring, .timeout = 30);

static struct ring *ring;

static void open_ring(void)
{
	cr_assert_eq(ring_create(&ring, 8), 0);
}

/* --- Waiting and waking -------------------------------------------------------------- */

Test(ring, waiting_without_events_ends_by_the_timeout, .init = open_ring)
{
	cr_assert_eq(ring_wait(ring, 0), 0);
	cr_assert_eq(ring_wait(ring, 2000000), 0);
	ring_destroy(ring);
}

Test(ring, a_wake_up_before_the_wait_ends_it, .init = open_ring)
{
	ring_wake(ring);
	cr_assert_gt(ring_wait(ring, -1), 0);
	cr_assert_eq(ring_wait(ring, 0), 0, "one wake-up, one event");
	ring_destroy(ring);
}

Test(ring, wake_ups_before_a_wait_count_as_one_and_the_ring_can_be_woken_again, .init = open_ring)
{
	for (int round = 0; round < 1000; round++) {
		for (int i = 0; i < 5; i++)
			ring_wake(ring);
		cr_assert_gt(ring_wait(ring, -1), 0);
	}
	cr_assert_eq(ring_wait(ring, 0), 0);
	ring_destroy(ring);
}

static _Atomic unsigned turn;

static void *wake_in_turn(void *argument)
{
	for (unsigned i = 1; i <= 20000; i++) {
		atomic_store(&turn, i);
		ring_wake(ring);
		while (atomic_load(&turn) == i)
			sched_yield();
	}
	return NULL;
}

Test(ring, no_wake_up_from_another_thread_is_lost, .init = open_ring)
{
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, wake_in_turn, NULL), 0);
	for (unsigned seen = 0; seen < 20000; seen++) {
		while (atomic_load(&turn) != seen + 1)
			cr_assert_geq(ring_wait(ring, -1), 0);
		atomic_store(&turn, 0);
		/* The waker's next value is seen + 2: let 0 stand for "go on". */
		while (seen + 1 < 20000 && atomic_load(&turn) == 0)
			cr_assert_geq(ring_wait(ring, -1), 0);
	}
	pthread_join(thread, NULL);
	ring_destroy(ring);
}

static void wake_on_signal(int signal_number)
{
	ring_wake(ring);
}

static void do_nothing(int signal_number)
{
}

Test(ring, a_signal_handler_may_wake_the_ring_it_interrupts, .init = open_ring)
{
	struct itimerval soon = {.it_value = {.tv_usec = 1000}};

	signal(SIGALRM, wake_on_signal);
	cr_assert_eq(setitimer(ITIMER_REAL, &soon, NULL), 0);
	cr_assert_gt(ring_wait(ring, -1), 0);
	ring_destroy(ring);
}

static void *wake_after_signals(void *argument)
{
	pthread_t *waiter = argument;

	for (int i = 0; i < 50; i++) {
		pthread_kill(*waiter, SIGUSR1);
		sched_yield();
	}
	atomic_store(&turn, 1);
	ring_wake(ring);
	return NULL;
}

Test(ring, a_signal_alone_does_not_end_a_wait, .init = open_ring)
{
	struct sigaction action = {.sa_handler = do_nothing};
	pthread_t self = pthread_self(), thread;

	sigaction(SIGUSR1, &action, NULL);
	cr_assert_eq(pthread_create(&thread, NULL, wake_after_signals, &self), 0);
	cr_assert_gt(ring_wait(ring, -1), 0);
	cr_assert_eq(atomic_load(&turn), 1);
	pthread_join(thread, NULL);
	ring_destroy(ring);
}

/* --- Watches ------------------------------------------------------------------------- */

struct watched {
	struct ring_watch watch;
	unsigned calls;
	int mask;
	struct watched *remove; /* in the callback */
};

static void ready(void *user, int mask_or_error)
{
	struct watched *watched = user;
	uint64_t value;

	watched->calls++;
	watched->mask = mask_or_error;
	if (mask_or_error >= 0)
		cr_assert_eq(read(watched->watch.fd, &value, sizeof(value)), sizeof(value));
	if (watched->remove)
		ring_watch_remove(&watched->remove->watch);
}

static void watch_eventfd(struct watched *watched)
{
	watched->watch.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	watched->watch.ready = ready;
	watched->watch.user = watched;
	cr_assert_eq(ring_watch_add(ring, &watched->watch), 0);
}

static void signal_eventfd(const struct watched *watched)
{
	uint64_t one = 1;

	cr_assert_eq(write(watched->watch.fd, &one, sizeof(one)), sizeof(one));
}

Test(ring, a_watch_reports_each_event, .init = open_ring)
{
	struct watched watched = {0};

	watch_eventfd(&watched);
	for (unsigned i = 1; i <= 100; i++) {
		signal_eventfd(&watched);
		while (watched.calls < i)
			cr_assert_gt(ring_wait(ring, -1), 0);
		cr_assert(watched.mask & POLLIN);
	}
	ring_watch_remove(&watched.watch);
	ring_destroy(ring);
}

Test(ring, a_file_that_was_readable_before_is_reported, .init = open_ring)
{
	struct watched watched = {0};

	watch_eventfd(&watched);
	ring_watch_remove(&watched.watch);
	signal_eventfd(&watched);
	cr_assert_eq(ring_watch_add(ring, &watched.watch), 0);
	while (!watched.calls)
		cr_assert_gt(ring_wait(ring, -1), 0);
	ring_watch_remove(&watched.watch);
	ring_destroy(ring);
}

Test(ring, a_removed_watch_is_not_called_even_if_its_event_is_there, .init = open_ring)
{
	struct watched watched = {0}, other = {0};

	watch_eventfd(&watched);
	watch_eventfd(&other);
	cr_assert_eq(ring_wait(ring, 0), 0);
	signal_eventfd(&watched);
	ring_watch_remove(&watched.watch);
	close(watched.watch.fd);
	signal_eventfd(&other);
	while (!other.calls)
		cr_assert_geq(ring_wait(ring, -1), 0);
	cr_assert_eq(watched.calls, 0);
	ring_watch_remove(&watched.watch); /* again, harmless */
	ring_watch_remove(&other.watch);
	ring_destroy(ring);
}

Test(ring, a_callback_may_remove_its_own_watch, .init = open_ring)
{
	struct watched watched = {0};

	watched.remove = &watched;
	watch_eventfd(&watched);
	signal_eventfd(&watched);
	cr_assert_gt(ring_wait(ring, -1), 0);
	cr_assert_eq(watched.calls, 1);
	signal_eventfd(&watched);
	while (ring_wait(ring, 0) > 0)
		;
	cr_assert_eq(watched.calls, 1);
	ring_destroy(ring);
}

Test(ring, of_two_ready_watches_that_remove_each_other_one_is_called, .init = open_ring)
{
	struct watched first = {0}, second = {0};

	first.remove = &second;
	second.remove = &first;
	watch_eventfd(&first);
	watch_eventfd(&second);
	cr_assert_eq(ring_wait(ring, 0), 0);
	signal_eventfd(&first);
	signal_eventfd(&second);
	while (ring_wait(ring, 0) > 0)
		;
	cr_assert_eq(first.calls + second.calls, 1);
	ring_destroy(ring);
}

Test(ring, a_watch_that_cannot_be_is_told_and_over, .init = open_ring)
{
	struct watched watched = {.watch = {.fd = -1, .ready = ready, .user = &watched}};

	cr_assert_eq(ring_watch_add(ring, &watched.watch), 0);
	while (!watched.calls)
		cr_assert_geq(ring_wait(ring, -1), 0);
	cr_assert_eq(watched.mask, -EBADF);
	cr_assert_null(watched.watch.poll);
	ring_watch_remove(&watched.watch);
	ring_destroy(ring);
}

Test(ring, more_watches_than_the_ring_is_deep_all_work, .init = open_ring)
{
	static struct watched watched[100];

	for (int i = 0; i < 100; i++)
		watch_eventfd(&watched[i]);
	for (int i = 0; i < 100; i++)
		signal_eventfd(&watched[i]);
	for (int i = 0; i < 100; i++)
		while (!watched[i].calls)
			cr_assert_gt(ring_wait(ring, -1), 0);
	ring_destroy(ring); /* with all of them */
	cr_assert_null(watched[0].watch.poll);
}

/* --- Operations ---------------------------------------------------------------------- */

struct noted {
	struct ring_operation operation;
	unsigned calls;
	int result;
	struct ring_operation *cancel;
	struct noted *expect_before;
};

static void note(struct ring_operation *operation, int result, unsigned flags)
{
	struct noted *noted = (struct noted *)operation;

	noted->calls++;
	noted->result = result;
	if (noted->expect_before)
		cr_assert_eq(noted->expect_before->calls, 1);
	if (noted->cancel)
		ring_cancel(ring, noted->cancel);
}

static void never_ready(struct noted *noted, int fd, uint64_t *value)
{
	io_uring_prep_read(ring_prepare(ring, &noted->operation), fd, value, sizeof(*value), 0);
}

Test(ring, a_cancelled_operation_is_done_when_ring_cancel_returns, .init = open_ring)
{
	struct noted noted = {.operation = {.done = note}};
	int fd = eventfd(0, EFD_CLOEXEC);
	uint64_t value;

	never_ready(&noted, fd, &value);
	ring_cancel(ring, &noted.operation); /* not submitted yet */
	cr_assert_eq(noted.calls, 1);
	cr_assert_eq(noted.result, -ECANCELED);
	never_ready(&noted, fd, &value);
	cr_assert_eq(ring_wait(ring, 0), 0);
	ring_cancel(ring, &noted.operation);
	cr_assert_eq(noted.calls, 2);
	cr_assert_eq(noted.result, -ECANCELED);
	ring_cancel(ring, &noted.operation); /* not in flight */
	cr_assert_eq(noted.calls, 2);
	cr_assert_eq(ring_wait(ring, 0), 0, "completions of cancel requests are no events");
	ring_destroy(ring);
}

Test(ring, cancelling_in_a_callback_calls_no_other_and_loses_none, .init = open_ring)
{
	struct noted blocked = {.operation = {.done = note}};
	struct noted nops[6];
	int fd = eventfd(0, EFD_CLOEXEC);
	uint64_t value;

	never_ready(&blocked, fd, &value);
	for (int i = 0; i < 6; i++) {
		nops[i] = (struct noted){.operation = {.done = note}};
		if (i)
			nops[i].expect_before = &nops[i - 1];
		io_uring_prep_nop(ring_prepare(ring, &nops[i].operation));
	}
	nops[0].cancel = &blocked.operation;
	for (int left = 7; left > 0;) {
		int events = ring_wait(ring, -1);
		cr_assert_gt(events, 0);
		left -= events;
		if (blocked.calls && left == 7 - events)
			left--; /* done inside ring_cancel(), which counts nothing */
	}
	cr_assert_eq(blocked.calls, 1);
	for (int i = 0; i < 6; i++)
		cr_assert_eq(nops[i].calls, 1);
	ring_destroy(ring);
}

Test(ring, a_callback_may_cancel_what_has_completed_but_was_not_dispatched, .init = open_ring)
{
	struct noted first = {.operation = {.done = note}}, second = first, third = first;

	first.cancel = &third.operation;
	third.expect_before = &first;
	second.expect_before =
		&third; /* third was served out of turn, inside the callback of first */
	io_uring_prep_nop(ring_prepare(ring, &first.operation));
	io_uring_prep_nop(ring_prepare(ring, &second.operation));
	io_uring_prep_nop(ring_prepare(ring, &third.operation));
	while (first.calls + second.calls + third.calls < 3)
		cr_assert_gt(ring_wait(ring, -1), 0);
	cr_assert_eq(first.calls, 1);
	cr_assert_eq(second.calls, 1);
	cr_assert_eq(third.calls, 1);
	ring_destroy(ring);
}

Test(ring, what_is_over_already_is_told_without_sleep_and_in_order, .init = open_ring)
{
	struct noted first = {.operation = {.done = note}}, second = first;

	second.expect_before = &first;
	ring_complete(ring, &first.operation);
	ring_complete(ring, &second.operation);
	cr_assert_eq(first.calls, 0);
	cr_assert_eq(ring_wait(ring, -1), 2);
	cr_assert_eq(first.calls, 1);
	cr_assert_eq(first.result, 0);
	cr_assert_eq(second.calls, 1);
	cr_assert_not(first.operation.in_flight);
	cr_assert_eq(ring_wait(ring, 0), 0);
	ring_destroy(ring);
}

Test(ring, what_is_over_already_can_be_cancelled_before_it_is_told, .init = open_ring)
{
	struct noted noted = {.operation = {.done = note}};

	ring_complete(ring, &noted.operation);
	ring_cancel(ring, &noted.operation);
	cr_assert_eq(noted.calls, 1);
	cr_assert_eq(ring_wait(ring, 0), 0);
	cr_assert_eq(noted.calls, 1);
	ring_destroy(ring);
}

struct restless {
	struct ring_operation operation;
	unsigned left;
};

static void go_on(struct ring_operation *operation, int result, unsigned flags)
{
	struct restless *restless = (struct restless *)operation;

	if (restless->left && --restless->left)
		ring_complete(ring, operation);
}

Test(ring, who_always_has_something_to_tell_does_not_keep_others_from_it, .init = open_ring)
{
	struct noted noted = {.operation = {.done = note}};
	struct restless restless = {.operation = {.done = go_on}, .left = 10000};
	int fd = eventfd(0, EFD_CLOEXEC);
	uint64_t value;

	never_ready(&noted, fd, &value);
	cr_assert_eq(ring_submit(ring), 0);
	/* Ready only now: the kernel defers the completion until it is told to run it. */
	cr_assert_eq(eventfd_write(fd, 1), 0);
	ring_complete(ring, &restless.operation);
	while (!noted.calls && restless.left)
		cr_assert_gt(ring_wait(ring, -1), 0);
	cr_assert_eq(noted.calls, 1);
	cr_assert_gt(restless.left, 10000 - 100, "it took %u times", 10000 - restless.left);
	while (restless.left)
		ring_wait(ring, -1);
	ring_destroy(ring);
}

Test(ring, more_operations_than_the_queues_hold_all_complete, .init = open_ring)
{
	enum { MANY = 1000 };
	static struct noted noted[MANY];

	for (int i = 0; i < MANY; i++) {
		noted[i].operation.done = note;
		io_uring_prep_nop(ring_prepare(ring, &noted[i].operation));
	}
	for (int left = MANY; left > 0;) {
		int events = ring_wait(ring, -1);
		cr_assert_gt(events, 0);
		left -= events;
	}
	for (int i = 0; i < MANY; i++)
		cr_assert_eq(noted[i].calls, 1);
	ring_destroy(ring);
}

Test(ring, submitting_calls_nobody_back, .init = open_ring)
{
	struct noted noted = {.operation = {.done = note}};

	io_uring_prep_nop(ring_prepare(ring, &noted.operation));
	cr_assert_eq(ring_submit(ring), 0);
	cr_assert_eq(noted.calls, 0);
	cr_assert_gt(ring_wait(ring, -1), 0);
	cr_assert_eq(noted.calls, 1);
	ring_destroy(ring);
}

/* --- Tasks
 * ------------------------------------------------------------------------------------------------
 */

struct counted {
	struct ring_task task;
	unsigned runs;
	struct counted *then;
};

static void run_counted(struct ring_task *task)
{
	struct counted *counted = (struct counted *)task;

	counted->runs++;
	if (counted->then)
		ring_defer(ring, &counted->then->task);
}

Test(ring, deferred_tasks_run_once_before_the_next_submission, .init = open_ring)
{
	struct counted tasks[4] = {{.task = {.run = run_counted}},
				   {.task = {.run = run_counted}},
				   {.task = {.run = run_counted}},
				   {.task = {.run = run_counted}}};

	tasks[0].then = &tasks[3];
	for (int i = 0; i < 3; i++) {
		ring_defer(ring, &tasks[i].task);
		ring_defer(ring, &tasks[i].task);
	}
	ring_undefer(ring, &tasks[2].task);
	ring_undefer(ring, &tasks[2].task);
	cr_assert_eq(ring_wait(ring, 0), 0);
	cr_assert_eq(tasks[0].runs, 1);
	cr_assert_eq(tasks[1].runs, 1);
	cr_assert_eq(tasks[2].runs, 0);
	cr_assert_eq(tasks[3].runs, 1, "deferred by a task");
	ring_defer(ring, &tasks[2].task);
	cr_assert_eq(ring_submit(ring), 0);
	cr_assert_eq(tasks[2].runs, 1);
	cr_assert_eq(ring_wait(ring, 0), 0);
	cr_assert_eq(tasks[0].runs, 1);
	ring_destroy(ring);
}
