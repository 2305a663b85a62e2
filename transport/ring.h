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

#include <stdbool.h>
#include <stdint.h>

struct ring;
struct io_uring_sqe;

int ring_create(struct ring **out, unsigned depth);
void ring_destroy(struct ring *ring);

/* Submits what is queued, waits for at least one event (timeout_ns < 0: for ever; 0: not at all)
 * and dispatches all that are there. Returns how many, 0 on timeout, or -errno of the ring itself. */
int ring_wait(struct ring *ring, int64_t timeout_ns);

/* Submits what is queued without waiting. */
int ring_submit(struct ring *ring);

/* Makes a ring_wait() of the owning thread return, now or the next time. Any thread; also async-
 * signal-safe. */
void ring_wake(struct ring *ring);

/* --- Readiness of a file descriptor -------------------------------------------------------------- */

/* Watches `fd` for POLLIN, multishot: `ready` is called once for each event that the file signals
 * (edge-triggered: read until it is empty) with the poll mask, or with -errno when the watch ended.
 * The watch object is the caller's and must stay until removed. */
struct ring_watch {
	void (*ready)(void *user, int mask_or_error);
	void *user;
	int fd;
	/* the ring's own */
	struct ring *ring;
	bool armed;
};

int ring_watch_add(struct ring *ring, struct ring_watch *watch);
/* No callback after it returns. */
void ring_watch_remove(struct ring_watch *watch);

/* --- For transports ------------------------------------------------------------------------------ */

/* An operation in flight. The kernel may write its buffers until `done` was called. */
struct ring_operation {
	void (*done)(struct ring_operation *operation, int result, unsigned cqe_flags);
	bool in_flight;
};

/* A fresh submission entry tied to `operation`, never NULL (submits when the queue is full); the
 * caller preps it. */
struct io_uring_sqe *ring_prepare(struct ring *ring, struct ring_operation *operation);

/* Cancels an operation and dispatches events until it is done. */
void ring_cancel(struct ring *ring, struct ring_operation *operation);

#endif
