/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One TCP connection as its files share it: tcp_channel.c (life and death), tcp_send.c,
 * tcp_receive.c, tcp_liveness.c. All of it belongs to the thread of the ring, but for the atomics.
 */
#ifndef TRANSPORT_TCP_CHANNEL_H
#define TRANSPORT_TCP_CHANNEL_H

#include <linux/time_types.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "transport/resolve.h"
#include "transport/ring.h"
#include "transport/tcp.h"

#define TCP_QUEUE   64 /* messages */
#define TCP_VECTORS 64 /* of one sendmsg */

struct tcp_message {
	uint8_t head[CHANNEL_HEAD_MAX];
	size_t head_bytes;
	const uint8_t *payload;
	size_t payload_bytes;
	uint64_t cookie;
};

/* What sending needs while bound. */
struct tcp_outgoing {
	struct tcp_message messages[TCP_QUEUE];
	unsigned first, count;
	size_t sent_of_first; /* bytes of the first message that the kernel has */
	struct iovec vectors[TCP_VECTORS];
	struct msghdr header;
	size_t batch_bytes; /* of the send in flight */
	bool loud;          /* the last silent send came back short: the next one may wait */
};

struct tcp_channel {
	struct channel base;
	int fd;
	char name[2 * RESOLVE_TEXT + 8];

	/* NULL: not bound */
	struct ring *ring;
	const struct channel_events *events;
	void *user;
	struct ring_task task;
	struct ring_operation receive, send, hangup, redeliver, watchdog;

	uint8_t *buffer; /* kept while unbound if it holds bytes */
	size_t buffer_bytes, start, end;
	size_t wanted;
	bool paused, delivering;

	struct tcp_outgoing *out; /* NULL: not bound */
	int send_error;           /* nothing can be sent any more */

	uint32_t timeout_ms; /* 0: none */
	struct __kernel_timespec watch_interval;

	bool dying, closed, unbinding;
	int error; /* why; valid when dying */

	/* Set by channel_shutdown() before it acts. Relaxed: the socket orders it. */
	_Atomic bool shut;
	/* Written by the owner alone, read by anybody. Relaxed: they order nothing. */
	_Atomic uint64_t sent_bytes, received_bytes;
};

static inline struct tcp_channel *tcp_channel_of(struct channel *base)
{
	return container_of(base, struct tcp_channel, base);
}

static inline const struct tcp_channel *tcp_channel_of_const(const struct channel *base)
{
	return container_of(base, const struct tcp_channel, base);
}

static inline void tcp_count(_Atomic uint64_t *total, int bytes)
{
	/* One writer: no need for a locked addition. */
	uint64_t before = atomic_load_explicit(total, memory_order_relaxed);
	atomic_store_explicit(total, before + (unsigned)bytes, memory_order_relaxed);
}

static inline bool tcp_is_shut(const struct tcp_channel *channel)
{
	return atomic_load_explicit(&channel->shut, memory_order_relaxed);
}

/* What every completion does first: true if the channel is going away and there is nothing else to
 * do. The channel may be gone afterwards. */
bool tcp_channel_is_ending(struct tcp_channel *channel);

/* Keeps the first error, cancels what is in flight and calls `closed` when nothing is any more. Not
 * from within a callback of the channel. The channel may be gone afterwards. */
void tcp_channel_die(struct tcp_channel *channel, int error);

/* --- Sending (tcp_send.c) --- */

int tcp_send_open(struct tcp_channel *channel);   /* -ENOMEM */
void tcp_send_close(struct tcp_channel *channel); /* nothing is in flight */
/* Submits what is queued if nothing is in flight; before a submission. */
void tcp_send_submit(struct tcp_channel *channel);
int tcp_send_message(struct channel *base, const void *head, size_t head_bytes, const void *payload,
		     size_t payload_bytes, uint64_t cookie);
size_t tcp_send_room(const struct channel *base);

/* --- Receiving (tcp_receive.c) --- */

int tcp_receive_open(struct tcp_channel *channel, size_t bytes); /* -ENOMEM, -EMSGSIZE */
/* Offers what was kept from before; once the channel is bound. */
void tcp_receive_start(struct tcp_channel *channel);
void tcp_receive_close(struct tcp_channel *channel, bool keep); /* nothing is in flight */
void tcp_receive_submit(struct tcp_channel *channel);
void tcp_receive_want(struct channel *base, size_t bytes);
void tcp_receive_pause(struct channel *base, bool paused);

/* --- Liveness (tcp_liveness.c) --- */

void tcp_liveness_init(struct tcp_channel *channel);
void tcp_liveness_start(struct tcp_channel *channel); /* if there is a timeout */
int tcp_liveness_timeout(struct channel *base, uint32_t timeout_ms);

#endif
