/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop of one thread, over io_uring.
 *
 * Created, used and destroyed by one and the same thread (SINGLE_ISSUER, DEFER_TASKRUN where the
 * kernel has them); only ring_wake() may be called from others. Everything queued since the last
 * call is submitted by ring_wait(), in the same system call that waits. Callbacks run inside
 * ring_wait(); they may queue work and may remove any watch, their own included.
 */
#ifndef TRANSPORT_RING_H
#define TRANSPORT_RING_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

struct ring;
struct io_uring_sqe;

/* `depth`: submissions queued at once without a system call of their own. -errno: ENOSYS the kernel
 * is too old (5.11 is the oldest that will do), EPERM io_uring is forbidden here, ENOMEM. */
int ring_create(struct ring **out, unsigned depth);
/* Ends every watch and operation first, without callbacks. */
void ring_destroy(struct ring *ring);

/* Submits what is queued, waits for at least one event (timeout_ns < 0: for ever; 0: not at all)
 * and dispatches all that are there. Returns how many, 0 on timeout, or -errno of the ring itself.
 * A wake-up counts as an event; a signal ends nothing. Not to be called from a callback. */
int ring_wait(struct ring *ring, int64_t timeout_ns);

/* Submits what is queued without waiting, and without callbacks. 0 or -errno. */
int ring_submit(struct ring *ring);

/* Makes a ring_wait() of the owning thread return, now or the next time. Any thread; also async-
 * signal-safe. */
void ring_wake(struct ring *ring);

/* --- Readiness of a file descriptor --------------------------------------------------------------
 */

/* Watches `fd` for POLLIN, multishot: `ready` is called once for each event that the file signals
 * (edge-triggered: read until it is empty) with the poll mask, or with -errno when the watch ended.
 * The watch object is the caller's and must stay until removed. */
struct ring_watch {
	void (*ready)(void *user, int mask_or_error);
	void *user;
	int fd;
	struct ring_poll *poll; /* the ring's own; NULL: not watching */
};

/* `poll` must be NULL. -ENOMEM. */
int ring_watch_add(struct ring *ring, struct ring_watch *watch);
/* No callback after it returns, and the file may be closed. A watch that has ended, or was never
 * added (all zero), may be removed too. */
void ring_watch_remove(struct ring_watch *watch);

/* --- For transports ------------------------------------------------------------------------------
 */

/* An operation in flight. The kernel may write its buffers until `done` was called with `in_flight`
 * false (a multishot operation calls it more than once). */
struct ring_operation {
	void (*done)(struct ring_operation *operation, int result, unsigned cqe_flags);
	bool in_flight;
	/* the ring's own */
	bool silent;
	unsigned position;
	struct ring_operation *next;
};

/* A fresh submission entry tied to `operation`, never NULL (submits when the queue is full); the
 * caller preps it with an io_uring_prep_ function at once. */
struct io_uring_sqe *ring_prepare(struct ring *ring, struct ring_operation *operation);

/* Has `done` called with result 0 by the coming ring_wait(), which does not sleep before: for what
 * is known to be over, at the price of no system call. The operation must not be in flight. */
void ring_complete(struct ring *ring, struct ring_operation *operation);

/* Whether the kernel (Linux 5.17) can leave out the completion of what succeeds. */
bool ring_has_silence(const struct ring *ring);

/* As ring_prepare(), for an operation that is over once it is submitted: one that neither waits nor
 * is polled for (MSG_DONTWAIT). The caller preps it and sets IOSQE_CQE_SKIP_SUCCESS. If all went
 * well `done` gets RING_SILENT, and the ring_wait() that submitted it does not return for that: so
 * a request goes out and its answer is waited for in one system call. */
struct io_uring_sqe *ring_prepare_silent(struct ring *ring, struct ring_operation *operation);
#define RING_SILENT INT_MAX

/* Asks the kernel to end an operation that is in flight; `done` follows, mostly with -ECANCELED. */
void ring_cancel_later(struct ring *ring, struct ring_operation *operation);

/* Cancels an operation and calls its `done` before it returns. No other callback runs meanwhile:
 * what else arrives is kept, in order, for the next ring_wait(). So it may be called from anywhere.
 */
void ring_cancel(struct ring *ring, struct ring_operation *operation);

/* Work to be done just before the next submission: where many calls of a user become one
 * submission entry. `run` may prepare entries; it must not call users back. */
struct ring_task {
	void (*run)(struct ring_task *task);
	struct ring_task *next;
	bool queued;
};
void ring_defer(struct ring *ring, struct ring_task *task); /* does nothing if it is queued */
void ring_undefer(struct ring *ring, struct ring_task *task);

#endif
