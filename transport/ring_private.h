/* SPDX-License-Identifier: Apache-2.0 */
/* The ring from within: for ring.c and ring_watch.c only. */
#ifndef TRANSPORT_RING_PRIVATE_H
#define TRANSPORT_RING_PRIVATE_H

#include <liburing.h>
#include <stdatomic.h>
#include <stddef.h>

#include "transport/ring.h"

struct completion {
	struct ring_operation *operation;
	int result;
	unsigned flags;
};

struct ring {
	struct io_uring uring;
	unsigned enter_flags;
	int enter_fd;
	int failed; /* -errno */
	bool closing;

	/* Taken from the queue by ring_cancel(); [backlog_first, backlog_end) are due. */
	struct completion *backlog;
	size_t backlog_first, backlog_end, backlog_room;

	struct ring_operation *known, **known_end; /* of ring_complete() */
	unsigned unreaped; /* times in a row that the kernel was not asked for completions */

	struct ring_task *tasks, **tasks_end;
	struct ring_poll *polls;
	struct ring_operation *silent; /* queued or submitted, and not finished */

	int wake_fd;
	uint64_t wake_count; /* the kernel's, while wake_read is in flight */
	struct ring_operation wake_read;
	_Atomic bool woken; /* see Wake-ups */

	struct io_uring_sqe sink; /* where entries go once the ring has failed */
};

/* Publishes what is queued, without waiting and without running tasks. 0 or -errno. */
int ring_publish(struct ring *ring);

/* Ends all watches, without callbacks. */
void ring_watch_end(struct ring *ring);

#endif
