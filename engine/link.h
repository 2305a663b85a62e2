/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control link: control messages over a channel, for one thread that works through the phases
 * one after the other and waits for the next message in between.
 */
#ifndef ENGINE_LINK_H
#define ENGINE_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/control.h"
#include "transport/transport.h"

#define LINK_BUFFER_BYTES (CONTROL_MESSAGE_MAX + 4096u)
#define LINK_QUEUE_MAX    64u /* messages received and not taken: more wait in the channel */

struct link {
	struct channel *channel; /* owned */
	struct ring *ring;       /* the thread's */
	Jaunt__Control *queue[LINK_QUEUE_MAX];
	unsigned head, count;
	bool paused; /* the queue is full */
	bool closed;
	int close_error;          /* 0: the peer closed it */
	struct jaunt_error error; /* why, if the peer's bytes made no sense */
	uint64_t sequence;
	uint64_t heard_ns;                /* when bytes last came in */
	uint8_t *sending[LINK_QUEUE_MAX]; /* packed messages in flight, by cookie modulo the size */
	uint64_t next_cookie, done_cookie;
	/* How link_send() waits for room: at most so long, 0: as long as the link is up; and until
	 * `gives_up`, NULL: never. Set by the owner after link_open(). */
	uint64_t send_timeout_ns;
	bool (*gives_up)(void *user);
	void *user;
	int unsent; /* why a message was not queued although the link is up; 0: none was */
};

/* Takes the channel over; on an error, too. */
int link_open(struct link *link, struct channel *channel, struct ring *ring);
void link_close(struct link *link);

/* Queues a message; goes out with the next wait. Waits for room, which a peer that does not get
 * anywhere never makes. -EPIPE when the link is down; -ETIMEDOUT, -ECANCELED: there was no room. */
int link_send(struct link *link, Jaunt__Control *message);

/* Messages that link_send() would queue without waiting. */
size_t link_room(const struct link *link);

/* The next message (freed with control_free), waiting at most timeout_ns (negative: for ever).
 * 1: a message. 0: time is up, or the ring was woken, or something else happened on the ring: look
 * at your flags and call again. -errno: the link is down and the queue is empty; see link_why(). */
int link_next(struct link *link, int64_t timeout_ns, Jaunt__Control **message);

/* Waits until everything queued has been handed to the kernel, at most timeout_ns. */
int link_flush(struct link *link, int64_t timeout_ns);

/* Fills `error` with why the link is down, or else why a message could not be sent. */
int link_why(const struct link *link, struct jaunt_error *error);

#endif
