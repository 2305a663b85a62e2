/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One io_uring per thread. Users queue submission entries, each tied to a struct ring_operation
 * whose address is the entry's user_data; ring_wait() publishes them and sleeps in one and the same
 * io_uring_enter(), then hands every completion to its operation's `done`. liburing sets up the
 * ring and preps entries; entering is done here, because its wait-with-timeout makes a second
 * system call when the first one submitted something, and hides a timeout in that case.
 *
 * Callbacks never nest. ring_cancel() needs an operation to end *now*, inside whatever callback it
 * was called from; the completions of others that it finds on the way go to the backlog, which the
 * next dispatch serves before the completion queue. So a channel can free another one in a callback
 * without being called back itself in the middle of it.
 *
 * Tasks (ring_defer) run right before a submission: a channel that was given ten messages since the
 * last one makes a single entry of them, and one that was read, paused and resumed looks at its
 * state once.
 *
 * Silent operations. A send completes while it is being submitted, and its completion would end the
 * very wait that it was submitted with. Where nobody waits for it, IOSQE_CQE_SKIP_SUCCESS leaves it
 * out; and since such an operation may not wait (MSG_DONTWAIT), after the submission either the
 * completion of its failure is there or it has succeeded. finish_silent() looks which.
 *
 * Wake-ups. ring_wake() sets `woken` and, if it was clear, writes to an eventfd on which a read is
 * always in flight. The handler clears `woken` *before* it queues the next read: a waker that comes
 * later writes again and the counter keeps it for that read; one that came earlier found `woken`
 * set and is covered by the ring_wait() that is just returning. The exchange in ring_wake() and the
 * one in the handler are both acquire-release, so whatever a waker stored before is seen by the
 * owner after ring_wait() returned.
 *
 * When entering fails for good (which takes a kernel bug or a closed descriptor), `failed` is set:
 * entries go nowhere, operations end with that error as they are cancelled, ring_wait() returns it.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/ring_private.h"

#define NO_TIMEOUT   INT64_C(-1)
#define UNREAPED_MAX 16

/* --- Entering the kernel ------------------------------------------------------------- */

/* Publishes what is queued and, with `wait`, sleeps until there is a completion. 0, -ETIME, -EINTR
 * or another -errno; after a submission the kernel does not tell a timeout or a signal from
 * success. */
static int enter(struct ring *ring, unsigned wait, bool reap, int64_t timeout_ns)
{
	struct io_uring_sq *sq = &ring->uring.sq;
	struct __kernel_timespec timespec;
	struct io_uring_getevents_arg argument = {0};
	unsigned flags = ring->enter_flags;
	void *extra = NULL;
	size_t extra_bytes = 0;

	if (ring->failed)
		return ring->failed;
	/* Release: the kernel must see the entries before the new tail. */
	io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
	unsigned submit = sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
	if (wait || reap)
		flags |= IORING_ENTER_GETEVENTS;
	else if (!submit)
		return 0;
	if (wait && timeout_ns >= 0) {
		timespec.tv_sec = timeout_ns / 1000000000;
		timespec.tv_nsec = timeout_ns % 1000000000;
		argument.ts = (uintptr_t)&timespec;
		extra = &argument;
		extra_bytes = sizeof(argument);
		flags |= IORING_ENTER_EXT_ARG;
	}
	int result =
		io_uring_enter2((unsigned)ring->enter_fd, submit, wait, flags, extra, extra_bytes);
	return result < 0 ? result : 0;
}

/* Whether an error of enter() passes by itself, or by reaping completions. */
static bool is_transient(int error)
{
	return error == -EINTR || error == -ETIME || error == -EAGAIN || error == -EBUSY;
}

static void run_tasks(struct ring *ring)
{
	while (ring->tasks) {
		struct ring_task *task = ring->tasks;
		ring->tasks = task->next;
		if (!ring->tasks)
			ring->tasks_end = &ring->tasks;
		task->queued = false;
		task->run(task);
	}
}

void ring_defer(struct ring *ring, struct ring_task *task)
{
	if (task->queued)
		return;
	task->queued = true;
	task->next = NULL;
	*ring->tasks_end = task;
	ring->tasks_end = &task->next;
}

void ring_undefer(struct ring *ring, struct ring_task *task)
{
	if (!task->queued)
		return;
	struct ring_task **link = &ring->tasks;
	while (*link != task)
		link = &(*link)->next;
	*link = task->next;
	if (ring->tasks_end == &task->next)
		ring->tasks_end = link;
	task->queued = false;
}

/* --- Completions --------------------------------------------------------------------- */

static bool take_completion(struct ring *ring, struct completion *completion)
{
	struct io_uring_cq *cq = &ring->uring.cq;
	unsigned head = *cq->khead;

	if (head == io_uring_smp_load_acquire(cq->ktail))
		return false;
	const struct io_uring_cqe *cqe = &cq->cqes[head & cq->ring_mask];
	completion->operation = (struct ring_operation *)(uintptr_t)cqe->user_data;
	completion->result = cqe->res;
	completion->flags = cqe->flags;
	io_uring_smp_store_release(cq->khead, head + 1);
	return true;
}

static bool has_completions(const struct ring *ring)
{
	return ring->backlog_first != ring->backlog_end || ring->known ||
	       io_uring_cq_ready(&ring->uring);
}

static void forget_silent(struct ring *ring, struct ring_operation *operation)
{
	struct ring_operation **link = &ring->silent;

	while (*link != operation)
		link = &(*link)->next;
	*link = operation->next;
	operation->silent = false;
}

/* Returns whether it was somebody's: completions of cancel requests are nobody's. */
static bool complete(struct ring *ring, const struct completion *completion)
{
	struct ring_operation *operation = completion->operation;

	if (!operation)
		return false;
	if (operation->silent)
		forget_silent(ring, operation);
	if (!(completion->flags & IORING_CQE_F_MORE))
		operation->in_flight = false;
	operation->done(operation, completion->result, completion->flags);
	return true;
}

static void backlog_add(struct ring *ring, const struct completion *completion)
{
	if (ring->backlog_end == ring->backlog_room) {
		size_t room = ring->backlog_room * 2;
		struct completion *larger = realloc(ring->backlog, room * sizeof(*larger));
		if (!larger) {
			/* Not reached with bounded channels: the backlog starts as large as the
			 * completion queue. A callback out of turn is better than a lost one. */
			complete(ring, completion);
			return;
		}
		ring->backlog = larger;
		ring->backlog_room = room;
	}
	ring->backlog[ring->backlog_end++] = *completion;
}

/* Whether a silent operation was submitted and has failed in no completion that is still to come.
 */
static bool has_succeeded(const struct ring *ring, const struct ring_operation *operation)
{
	const struct io_uring_cq *cq = &ring->uring.cq;
	unsigned head = *cq->khead, tail = io_uring_smp_load_acquire(cq->ktail);

	if ((int)(io_uring_smp_load_acquire(ring->uring.sq.khead) - operation->position) < 0 ||
	    io_uring_cq_has_overflow(&ring->uring))
		return false;
	for (; head != tail; head++)
		if (cq->cqes[head & cq->ring_mask].user_data == (uintptr_t)operation)
			return false;
	for (size_t i = ring->backlog_first; i < ring->backlog_end; i++)
		if (ring->backlog[i].operation == operation)
			return false;
	return true;
}

static void finish_silent(struct ring *ring)
{
	struct ring_operation *next;

	for (struct ring_operation *operation = ring->silent; operation; operation = next) {
		next = operation->next;
		if (has_succeeded(ring, operation)) {
			struct completion completion = {operation, RING_SILENT, 0};
			complete(ring, &completion);
		}
	}
}

/* Takes it out if it is one of those of ring_complete(). */
static bool take_known(struct ring *ring, const struct ring_operation *operation)
{
	struct ring_operation **link = &ring->known;

	while (*link && *link != operation)
		link = &(*link)->next;
	if (!*link)
		return false;
	*link = operation->next;
	if (ring->known_end == &operation->next)
		ring->known_end = link;
	return true;
}

static int finish_known(struct ring *ring, unsigned due)
{
	int events = 0;

	for (; due && ring->known; due--) {
		struct completion completion = {ring->known, 0, 0};
		take_known(ring, completion.operation);
		events += complete(ring, &completion);
	}
	return events;
}

static unsigned count_known(const struct ring *ring)
{
	unsigned count = 0;

	for (const struct ring_operation *at = ring->known; at; at = at->next)
		count++;
	return count;
}

/* Dispatches what is there now; what callbacks bring about waits for the next time, lest one busy
 * file starve the caller of ring_wait(). */
static int dispatch(struct ring *ring)
{
	int events = 0;
	struct completion completion;
	unsigned known = count_known(ring);

	finish_silent(ring);
	for (size_t due = ring->backlog_end - ring->backlog_first; due; due--) {
		if (ring->backlog_first == ring->backlog_end)
			break; /* a nested ring_cancel() took the rest */
		completion = ring->backlog[ring->backlog_first++];
		if (ring->backlog_first == ring->backlog_end)
			ring->backlog_first = ring->backlog_end = 0;
		events += complete(ring, &completion);
	}
	for (unsigned due = io_uring_cq_ready(&ring->uring); due; due--) {
		/* A callback may have moved completions to the backlog: those come first. */
		if (ring->backlog_first != ring->backlog_end)
			break;
		if (!take_completion(ring, &completion))
			break;
		events += complete(ring, &completion);
	}
	return events + finish_known(ring, known);
}

/* Whether to let the kernel run what it deferred: where there is nothing else to do, and now and
 * then where there always is. */
static bool is_time_to_reap(struct ring *ring, bool ready)
{
	if (ready && ++ring->unreaped < UNREAPED_MAX)
		return false;
	ring->unreaped = 0;
	return true;
}

int ring_wait(struct ring *ring, int64_t timeout_ns)
{
	uint64_t deadline = timeout_ns > 0 ? clock_ns() + (uint64_t)timeout_ns : 0;
	int64_t left = timeout_ns;

	for (;;) {
		/* What was submitted meanwhile, lest its successor wait for an event. */
		finish_silent(ring);
		run_tasks(ring);
		bool ready = has_completions(ring);
		bool wait = !ready && timeout_ns != 0;
		/* With completions at hand and nothing to submit there is no system call. */
		int error = enter(ring, wait ? 1 : 0, is_time_to_reap(ring, ready), left);
		if (error && !is_transient(error)) {
			ring->failed = error;
			return error;
		}
		int events = dispatch(ring);
		if (events)
			return events;
		if (timeout_ns == 0 && !has_completions(ring))
			return 0;
		if (timeout_ns > 0) {
			uint64_t now = clock_ns();
			if (now >= deadline && !has_completions(ring))
				return 0;
			left = now >= deadline ? 0 : (int64_t)(deadline - now);
		}
	}
}

int ring_publish(struct ring *ring)
{
	return enter(ring, 0, false, NO_TIMEOUT);
}

int ring_submit(struct ring *ring)
{
	run_tasks(ring);
	int error = enter(ring, 0, false, NO_TIMEOUT);
	return is_transient(error) ? 0 : error;
}

/* --- Operations ---------------------------------------------------------------------- */

/* A free submission entry, at the price of a submission when there is none. */
static struct io_uring_sqe *next_entry(struct ring *ring)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&ring->uring))) {
		int error = enter(ring, 0, false, NO_TIMEOUT);
		if (error == -EBUSY || error == -EAGAIN) {
			/* The kernel wants its completions fetched first. */
			struct completion completion;
			while (take_completion(ring, &completion))
				backlog_add(ring, &completion);
			error = enter(ring, 0, true, NO_TIMEOUT);
		}
		if (error && !is_transient(error)) {
			ring->failed = error;
			sqe = &ring->sink;
			break;
		}
	}
	return sqe;
}

struct io_uring_sqe *ring_prepare(struct ring *ring, struct ring_operation *operation)
{
	struct io_uring_sqe *sqe = next_entry(ring);

	/* liburing 2.3 leaves user_data alone in io_uring_prep_*. */
	sqe->user_data = (uintptr_t)operation;
	operation->in_flight = true;
	return sqe;
}

void ring_complete(struct ring *ring, struct ring_operation *operation)
{
	operation->in_flight = true;
	operation->next = NULL;
	*ring->known_end = operation;
	ring->known_end = &operation->next;
}

bool ring_has_silence(const struct ring *ring)
{
	return ring->uring.features & IORING_FEAT_CQE_SKIP;
}

struct io_uring_sqe *ring_prepare_silent(struct ring *ring, struct ring_operation *operation)
{
	struct io_uring_sqe *sqe = ring_prepare(ring, operation);

	operation->silent = true;
	operation->position = ring->uring.sq.sqe_tail;
	operation->next = ring->silent;
	ring->silent = operation;
	return sqe;
}

void ring_cancel_later(struct ring *ring, struct ring_operation *operation)
{
	if (!operation->in_flight)
		return;
	struct io_uring_sqe *sqe = next_entry(ring);
	io_uring_prep_cancel64(sqe, (uintptr_t)operation, 0);
	sqe->user_data = 0;
}

/* Completes what the backlog holds of an operation; the rest keeps its order. */
static void complete_from_backlog(struct ring *ring, struct ring_operation *operation)
{
	for (size_t i = ring->backlog_first; i < ring->backlog_end; i++) {
		if (ring->backlog[i].operation != operation)
			continue;
		struct completion completion = ring->backlog[i];
		ring->backlog[i].operation = NULL;
		complete(ring, &completion);
	}
}

void ring_cancel(struct ring *ring, struct ring_operation *operation)
{
	complete_from_backlog(ring, operation);
	if (operation->in_flight && take_known(ring, operation)) {
		struct completion completion = {operation, 0, 0};
		complete(ring, &completion);
		return;
	}
	if (operation->silent)
		enter(ring, 0, false, NO_TIMEOUT); /* then it is over */
	while (operation->in_flight) {
		struct completion completion;
		if (operation->silent && has_succeeded(ring, operation)) {
			completion = (struct completion){operation, RING_SILENT, 0};
			complete(ring, &completion);
			return;
		}
		if (ring->failed) {
			completion = (struct completion){operation, ring->failed, 0};
			complete(ring, &completion);
			return;
		}
		if (!take_completion(ring, &completion)) {
			/* Asking again each time round also catches an operation that the first
			 * request missed because it was just being retried. */
			ring_cancel_later(ring, operation);
			int error = enter(ring, 1, true, NO_TIMEOUT);
			if (error && !is_transient(error))
				ring->failed = error;
		} else if (completion.operation == operation) {
			complete(ring, &completion);
		} else if (completion.operation) {
			backlog_add(ring, &completion);
		}
	}
}

/* --- Wake-ups ------------------------------------------------------------------------ */

static void wake_arm(struct ring *ring)
{
	struct io_uring_sqe *sqe = ring_prepare(ring, &ring->wake_read);
	io_uring_prep_read(sqe, ring->wake_fd, &ring->wake_count, sizeof(ring->wake_count), 0);
}

static void wake_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct ring *ring = (struct ring *)((char *)operation - offsetof(struct ring, wake_read));

	atomic_exchange_explicit(&ring->woken, false, memory_order_acq_rel);
	if (result != -ECANCELED)
		wake_arm(ring);
}

void ring_wake(struct ring *ring)
{
	int saved_errno = errno;
	static const uint64_t one = 1;

	if (!atomic_exchange_explicit(&ring->woken, true, memory_order_acq_rel)) {
		/* Cannot block or fail: the counter is never above 1. EINTR does not happen on a
		 * write that does not sleep. */
		ssize_t written = write(ring->wake_fd, &one, sizeof(one));
		(void)written;
	}
	errno = saved_errno;
}

/* --- Making and unmaking ------------------------------------------------------------- */

/* A ring may lie where one of another thread's has lain. The kernel orders the two; the library
 * maps and unmaps them past the eyes of the thread sanitizer, which is told here. */
static _Atomic unsigned rings_unmapped;

static int queue_init(struct ring *ring, unsigned depth)
{
	/* In order of preference; each kernel says EINVAL to flags it does not know. */
	static const unsigned modes[] = {
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
		IORING_SETUP_SUBMIT_ALL,
		0,
	};
	int error = -EINVAL;

	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]) && error == -EINVAL; i++) {
		struct io_uring_params params = {
			.flags = modes[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
			.cq_entries = depth * 4,
		};
		error = io_uring_queue_init_params(depth, &ring->uring, &params);
	}
	if (error)
		return error;
	(void)atomic_load_explicit(&rings_unmapped, memory_order_acquire);
	unsigned needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL;
	if ((ring->uring.features & needed) != needed) {
		io_uring_queue_exit(&ring->uring);
		return -ENOSYS;
	}
	io_uring_ring_dontfork(&ring->uring);
	/* A registered descriptor saves the lookup in each io_uring_enter() (Linux 5.18). */
	if (io_uring_register_ring_fd(&ring->uring) == 1)
		ring->enter_flags = IORING_ENTER_REGISTERED_RING;
	ring->enter_fd = ring->uring.enter_ring_fd;
	return 0;
}

int ring_create(struct ring **out, unsigned depth)
{
	struct ring *ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	ring->tasks_end = &ring->tasks;
	ring->known_end = &ring->known;
	ring->wake_read.done = wake_done;
	/* Not EFD_NONBLOCK: io_uring would fail the read with EAGAIN instead of waiting. */
	ring->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (ring->wake_fd < 0) {
		int error = -errno;
		free(ring);
		return error;
	}
	int error = queue_init(ring, depth);
	if (error) {
		close(ring->wake_fd);
		free(ring);
		return error;
	}
	ring->backlog_room = ring->uring.cq.ring_entries;
	ring->backlog = calloc(ring->backlog_room, sizeof(*ring->backlog));
	if (!ring->backlog) {
		io_uring_queue_exit(&ring->uring);
		close(ring->wake_fd);
		free(ring);
		return -ENOMEM;
	}
	wake_arm(ring);
	*out = ring;
	return 0;
}

void ring_destroy(struct ring *ring)
{
	if (!ring)
		return;
	ring->closing = true;
	ring_watch_end(ring);
	ring_cancel(ring, &ring->wake_read);
	atomic_fetch_add_explicit(&rings_unmapped, 1, memory_order_release);
	io_uring_queue_exit(&ring->uring);
	close(ring->wake_fd);
	free(ring->backlog);
	free(ring);
}
