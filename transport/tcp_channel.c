/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: a TCP connection on a ring
 *
 * At most one sendmsg and one recv are in flight. Everything that changes what should be in flight
 * (a message, bytes consumed, pausing) only defers `task`, which runs right before the next
 * submission and looks once at the state: so a request queued in a callback and the receive of its
 * answer go out in the one io_uring_enter() that also waits for it.
 *
 * Dying. The first error is kept, what is in flight is cancelled, and when the last operation is
 * done `closed` is called, as the very last thing: it may free the channel.
 *
 * The descriptor is closed by free alone. So channel_shutdown(), which any thread may call while
 * the channel exists, cannot hit a descriptor that has become somebody else's.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bits.h"
#include "transport/tcp_channel.h"

/* What a socket with a limit holds that is not sent yet. */
#define PACED_AHEAD_MS    20
#define PACED_AHEAD_LEAST (int)KIB(128)

/* Calls `closed` once nothing is in flight. The channel may be gone afterwards. */
static void settle(struct tcp_channel *channel)
{
	if (channel->closed || channel->receive.in_flight || channel->send.in_flight ||
	    channel->hangup.in_flight || channel->redeliver.in_flight ||
	    channel->watchdog.in_flight)
		return;
	channel->closed = true;
	channel->events->closed(channel->user, channel->error);
}

bool tcp_channel_is_ending(struct tcp_channel *channel)
{
	bool ending = channel->unbinding || channel->dying;

	if (channel->dying && !channel->unbinding)
		settle(channel);
	return ending;
}

void tcp_channel_die(struct tcp_channel *channel, int error)
{
	if (!channel->dying) {
		channel->dying = true;
		channel->error = tcp_is_shut(channel) ? -ECANCELED : error;
		ring_undefer(channel->ring, &channel->task);
		/* The peer learns now, not when the owner gets round to freeing. */
		shutdown(channel->fd, SHUT_RDWR);
		if (channel->send.silent) {
			/* Over in fact; the ring would only say so after the next event. */
			channel->unbinding = true;
			ring_cancel(channel->ring, &channel->send);
			channel->unbinding = false;
		}
		ring_cancel_later(channel->ring, &channel->receive);
		ring_cancel_later(channel->ring, &channel->send);
		ring_cancel_later(channel->ring, &channel->hangup);
		ring_cancel_later(channel->ring, &channel->watchdog);
	}
	settle(channel);
}

/* --- Binding ------------------------------------------------------------------------- */

/* Brings what is in flight in line with the state. */
static void run_task(struct ring_task *task)
{
	struct tcp_channel *channel = container_of(task, struct tcp_channel, task);

	tcp_send_submit(channel); /* first: the answer is what the receive is for */
	tcp_receive_submit(channel);
}

static int bind_channel(struct channel *base, struct ring *ring,
			const struct channel_events *events, void *user, size_t receive_bytes)
{
	struct tcp_channel *channel = tcp_channel_of(base);

	if (channel->ring)
		return -EBUSY;
	if (channel->dying || channel->send_error)
		return -EPIPE;
	int result = tcp_receive_open(channel, receive_bytes);
	if (result)
		return result;
	result = tcp_send_open(channel);
	if (result) {
		tcp_receive_close(channel, true);
		return result;
	}
	channel->ring = ring;
	channel->events = events;
	channel->user = user;
	tcp_receive_start(channel);
	tcp_liveness_start(channel);
	ring_defer(ring, &channel->task);
	return 0;
}

static void unbind_channel(struct channel *base)
{
	struct tcp_channel *channel = tcp_channel_of(base);

	if (!channel->ring)
		return;
	channel->unbinding = true;
	ring_undefer(channel->ring, &channel->task);
	ring_cancel(channel->ring, &channel->receive);
	ring_cancel(channel->ring, &channel->send);
	ring_cancel(channel->ring, &channel->hangup);
	ring_cancel(channel->ring, &channel->redeliver);
	ring_cancel(channel->ring, &channel->watchdog);
	channel->unbinding = false;
	tcp_send_close(channel);
	tcp_receive_close(channel, !channel->dying);
	channel->ring = NULL;
	channel->events = NULL;
}

static void free_channel(struct channel *base)
{
	struct tcp_channel *channel = tcp_channel_of(base);

	tcp_receive_close(channel, false);
	close(channel->fd);
	free(channel);
}

/* --- Options and figures ------------------------------------------------------------- */

static void shutdown_channel(struct channel *base)
{
	struct tcp_channel *channel = tcp_channel_of(base);

	atomic_store_explicit(&channel->shut, true, memory_order_relaxed);
	/* Wakes what is in flight; fails only if the connection is gone, which wakes it too. */
	shutdown(channel->fd, SHUT_RDWR);
}

/* The kernel does it, evenly, with the scheduler fq of the device or without; it holds for what is
 * in the socket already. Of that there is to be little: what is sent behind it waits for all of it,
 * and so does whoever looks whether the peer still takes anything. */
static int pace(struct channel *base, uint64_t bytes_per_s)
{
	int fd = tcp_channel_of(base)->fd;
	uint64_t rate = bytes_per_s ? bytes_per_s : UINT64_MAX;
	uint64_t ahead = bytes_per_s / 1000 * PACED_AHEAD_MS;
	int unsent = !bytes_per_s                ? 0 /* as the host has it */
		     : ahead < PACED_AHEAD_LEAST ? PACED_AHEAD_LEAST
		     : ahead > INT32_MAX         ? INT32_MAX
						 : (int)ahead;

	return setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate)) ||
			       setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent,
					  sizeof(unsent))
		       ? -errno
		       : 0;
}

static struct channel_totals totals(const struct channel *base)
{
	const struct tcp_channel *channel = tcp_channel_of_const(base);

	return (struct channel_totals){
		.sent_bytes = atomic_load_explicit(&channel->sent_bytes, memory_order_relaxed),
		.received_bytes =
			atomic_load_explicit(&channel->received_bytes, memory_order_relaxed),
	};
}

static const char *name(const struct channel *base)
{
	return tcp_channel_of_const(base)->name;
}

static const struct channel_ops channel_ops = {
	.bind = bind_channel,
	.unbind = unbind_channel,
	.send = tcp_send_message,
	.room = tcp_send_room,
	.want = tcp_receive_want,
	.pause = tcp_receive_pause,
	.shutdown = shutdown_channel,
	.free = free_channel,
	.pace = pace,
	.timeout = tcp_liveness_timeout,
	.totals = totals,
	.name = name,
};

int tcp_channel_create(struct channel **out, int fd, bool dialed)
{
	struct sockaddr_storage local = {0}, remote = {0};
	socklen_t local_bytes = sizeof(local), remote_bytes = sizeof(remote);
	char near[RESOLVE_TEXT], far[RESOLVE_TEXT];
	int on = 1;

	if (getsockname(fd, (struct sockaddr *)&local, &local_bytes) ||
	    getpeername(fd, (struct sockaddr *)&remote, &remote_bytes) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		return -errno;
	struct tcp_channel *channel = calloc(1, sizeof(*channel));
	if (!channel)
		return -ENOMEM;
	channel->base.ops = &channel_ops;
	channel->fd = fd;
	channel->task.run = run_task;
	tcp_liveness_init(channel);
	resolve_format(&local, near);
	resolve_format(&remote, far);
	/* From who dialed to who listened: the same on both sides. */
	snprintf(channel->name, sizeof(channel->name), "%s → %s", dialed ? near : far,
		 dialed ? far : near);
	*out = &channel->base;
	return 0;
}
