/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Watches are multishot polls. A caller may forget its watch object right after removal, but the
 * kernel names ours until the last completion: so there is a struct ring_poll of our own in
 * between, which the last completion frees.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "transport/ring_private.h"

struct ring_poll {
	struct ring_operation operation;
	struct ring *ring;
	struct ring_watch *watch; /* NULL: removed, waits for its last completion */
	struct ring_poll *next, **link;
	int fd;
};

static void poll_arm(struct ring_poll *poll)
{
	struct io_uring_sqe *sqe = ring_prepare(poll->ring, &poll->operation);
	io_uring_prep_poll_multishot(sqe, poll->fd, POLLIN);
}

static void poll_free(struct ring_poll *poll)
{
	*poll->link = poll->next;
	if (poll->next)
		poll->next->link = poll->link;
	free(poll);
}

static void poll_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct ring_poll *poll = (struct ring_poll *)operation; /* its first member */
	struct ring_watch *watch = poll->watch;

	if (!operation->in_flight) {
		if (!watch) {
			/* While closing, ring_cancel() still looks at the operation. */
			if (!poll->ring->closing)
				poll_free(poll);
			return;
		}
		if (result >= 0) {
			/* The kernel ends a multishot poll when it cannot post (queue overflow).
			 * Arming looks at the file again, so nothing is missed. */
			poll_arm(poll);
		} else {
			watch->poll = NULL;
			poll_free(poll);
		}
	}
	if (watch)
		watch->ready(watch->user, result);
}

int ring_watch_add(struct ring *ring, struct ring_watch *watch)
{
	struct ring_poll *poll = calloc(1, sizeof(*poll));
	if (!poll)
		return -ENOMEM;
	poll->operation.done = poll_done;
	poll->ring = ring;
	poll->watch = watch;
	poll->fd = watch->fd;
	poll->next = ring->polls;
	poll->link = &ring->polls;
	if (poll->next)
		poll->next->link = &poll->next;
	ring->polls = poll;
	watch->poll = poll;
	poll_arm(poll);
	return 0;
}

void ring_watch_remove(struct ring_watch *watch)
{
	struct ring_poll *poll = watch->poll;
	if (!poll)
		return;
	watch->poll = NULL;
	poll->watch = NULL;
	if (poll->operation.in_flight) {
		/* Submitted at once: the caller may close the file now, and an entry that is still
		 * queued names it by number. */
		ring_cancel_later(poll->ring, &poll->operation);
		ring_publish(poll->ring);
	}
	/* poll_done() frees it. */
}

void ring_watch_end(struct ring *ring)
{
	while (ring->polls) {
		struct ring_poll *poll = ring->polls;
		if (poll->watch)
			poll->watch->poll = NULL;
		poll->watch = NULL;
		ring_cancel(ring, &poll->operation);
		poll_free(poll);
	}
}
