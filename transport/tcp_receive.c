/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: receiving on a TCP channel
 *
 * One buffer, filled at `end` and consumed at `start`. Whenever all is consumed both go back to 0,
 * so a receiver that consumes what it gets works in the few pages at the front, which stay in the
 * cache. Otherwise the rest is moved to the front when what is wanted does not fit behind it.
 * channel_want() makes the next receive wait for, and end at, a unit's last byte (MSG_WAITALL): one
 * completion instead of one per segment, and nothing behind the unit that would have to be moved.
 *
 * Paused, nothing is received, and a poll for POLLHUP and POLLERR (which need not be asked for)
 * stands in, so that a shutdown or a reset is noticed.
 */
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "transport/tcp_channel.h"

static void submit_receive(struct tcp_channel *channel)
{
	size_t held = channel->end - channel->start;
	size_t wanted = channel->wanted;
	int flags = 0;

	channel->wanted = 0;
	if (wanted > channel->buffer_bytes - held)
		wanted = channel->buffer_bytes - held;
	size_t behind = channel->buffer_bytes - channel->end;
	if (channel->start && (behind < wanted || behind < channel->buffer_bytes / 4)) {
		memmove(channel->buffer, channel->buffer + channel->start, held);
		channel->start = 0;
		channel->end = held;
		behind = channel->buffer_bytes - held;
	}
	if (!behind)
		return; /* consumed in part, and the owner did not pause: see deliver() */
	if (wanted) {
		behind = wanted;
		flags = MSG_WAITALL;
	}
	struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->receive);
	io_uring_prep_recv(sqe, channel->fd, channel->buffer + channel->end, behind, flags);
}

/* Offers what there is. The channel may be gone afterwards. */
static void deliver(struct tcp_channel *channel)
{
	if (channel->paused || channel->start == channel->end)
		return;
	size_t held = channel->end - channel->start;
	channel->wanted = 0;
	channel->delivering = true;
	size_t consumed =
		channel->events->received(channel->user, channel->buffer + channel->start, held);
	channel->delivering = false;
	channel->start += consumed < held ? consumed : held;
	if (channel->start == channel->end && !channel->receive.in_flight)
		channel->start = channel->end = 0;
	if (!channel->paused && channel->end - channel->start == channel->buffer_bytes)
		tcp_channel_die(channel, -EMSGSIZE);
}

static void receive_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, receive);

	if (result > 0) {
		channel->end += (size_t)result;
		tcp_count(&channel->received_bytes, result);
	}
	if (tcp_channel_is_ending(channel))
		return;
	if (result > 0 && !tcp_is_shut(channel)) {
		ring_defer(channel->ring, &channel->task);
		deliver(channel);
		return;
	}
	switch (-result) {
	case EINTR:
	case EAGAIN:
		ring_defer(channel->ring, &channel->task);
		break;
	case ENOTCONN:
		/* A failed send has taken the socket's error away. */
		tcp_channel_die(channel, channel->send_error ? channel->send_error : -ECONNRESET);
		break;
	default:
		tcp_channel_die(channel, result > 0 ? -ECANCELED : result);
	}
}

static void redeliver_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, redeliver);

	if (tcp_channel_is_ending(channel))
		return;
	ring_defer(channel->ring, &channel->task);
	deliver(channel);
}

static void hangup_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, hangup);
	socklen_t bytes = sizeof(int);
	int error = 0;

	if (tcp_channel_is_ending(channel))
		return;
	/* Receiving again: it finds out itself, behind the bytes that are still there. */
	if (!channel->paused)
		return;
	if (result < 0)
		error = -result;
	else
		getsockopt(channel->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
	if (!error)
		error = channel->send_error ? -channel->send_error : ECONNRESET;
	tcp_channel_die(channel, -error);
}

void tcp_receive_submit(struct tcp_channel *channel)
{
	if (channel->receive.in_flight || channel->redeliver.in_flight)
		return;
	if (!channel->paused) {
		submit_receive(channel);
	} else if (!channel->hangup.in_flight) {
		struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->hangup);
		io_uring_prep_poll_add(sqe, channel->fd, 0);
	}
}

void tcp_receive_want(struct channel *base, size_t bytes)
{
	tcp_channel_of(base)->wanted = bytes;
}

/* What is already in the buffer is offered by a callback, so it has to come out of ring_wait(): a
 * NOP brings it there. */
static void queue_redelivery(struct tcp_channel *channel)
{
	if (channel->start == channel->end || channel->redeliver.in_flight)
		return;
	struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->redeliver);
	io_uring_prep_nop(sqe);
}

void tcp_receive_pause(struct channel *base, bool paused)
{
	struct tcp_channel *channel = tcp_channel_of(base);

	if (channel->paused == paused)
		return;
	channel->paused = paused;
	if (!channel->ring || channel->dying)
		return;
	if (!paused && !channel->delivering)
		queue_redelivery(channel);
	ring_defer(channel->ring, &channel->task);
}

static void drop_buffer(struct tcp_channel *channel)
{
	if (channel->buffer)
		munmap(channel->buffer, channel->buffer_bytes);
	channel->buffer = NULL;
	channel->start = channel->end = 0;
}

int tcp_receive_open(struct tcp_channel *channel, size_t bytes)
{
	size_t held = channel->end - channel->start;

	bytes = round_up(bytes ? bytes : 1, (uint64_t)sysconf(_SC_PAGESIZE));
	if (held >= bytes)
		return -EMSGSIZE;
	/* Populated: no page fault of our own on the way of a guest's. */
	void *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (buffer == MAP_FAILED)
		return -ENOMEM;
	if (held)
		memcpy(buffer, channel->buffer + channel->start, held);
	drop_buffer(channel);
	channel->buffer = buffer;
	channel->buffer_bytes = bytes;
	channel->end = held;
	channel->paused = false;
	channel->wanted = 0;
	channel->receive.done = receive_done;
	channel->hangup.done = hangup_done;
	channel->redeliver.done = redeliver_done;
	return 0;
}

void tcp_receive_start(struct tcp_channel *channel)
{
	queue_redelivery(channel);
}

void tcp_receive_close(struct tcp_channel *channel, bool keep)
{
	if (!keep || channel->start == channel->end)
		drop_buffer(channel);
}
