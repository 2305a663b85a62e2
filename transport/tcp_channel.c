/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: a TCP connection on a ring
 *
 * At most one sendmsg and one recv are in flight. Everything that changes what should be in flight
 * (a message, bytes consumed, pausing) only defers `task`, which runs right before the next
 * submission and looks once at the state: so a request queued in a callback and the receive of its
 * answer go out in the one io_uring_enter() that also waits for it.
 *
 * Sending. Up to QUEUE messages wait in a ring of slots; one sendmsg takes as many as fit into its
 * vectors and SEND_BYTES. MSG_WAITALL lets the kernel go on by itself after a short send; what a
 * send leaves nevertheless is continued from `sent_of_first`. When sending fails because the peer
 * is gone, only sending stops: bytes that the peer sent before (its reason, say) are still
 * delivered, and the receiving side then finds the end and closes the channel.
 *
 * Receiving. One buffer, filled at `end` and consumed at `start`. Whenever all is consumed both go
 * back to 0, so a receiver that consumes what it gets works in the few pages at the front, which
 * stay in the cache. Otherwise the rest is moved to the front when what is wanted does not fit
 * behind it. channel_want() makes the next receive wait for, and end at, a unit's last byte
 * (MSG_WAITALL): one completion instead of one per segment, and nothing behind the unit that would
 * have to be moved.
 *
 * Paused, nothing is received, and a poll for POLLHUP and POLLERR (which need not be asked for)
 * stands in, so that a shutdown or a reset is noticed.
 *
 * Dying. The first error is kept, what is in flight is cancelled, and when the last operation is
 * done `closed` is called, as the very last thing: it may free the channel.
 *
 * The descriptor is closed by free alone. So channel_shutdown(), which any thread may call while
 * the channel exists, cannot hit a descriptor that has become somebody else's.
 */
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "transport/resolve.h"
#include "transport/ring.h"
#include "transport/tcp.h"

#define QUEUE        64      /* messages */
#define VECTORS      64      /* of one sendmsg */
#define SILENT_BYTES KIB(16) /* of one sendmsg without a completion */
#define SEND_BYTES   MIB(1)  /* of one sendmsg, unless a single message is longer */

struct message {
	uint8_t head[CHANNEL_HEAD_MAX];
	size_t head_bytes;
	const uint8_t *payload;
	size_t payload_bytes;
	uint64_t cookie;
};

/* What sending needs while bound. */
struct outgoing {
	struct message messages[QUEUE];
	unsigned first, count;
	size_t sent_of_first; /* bytes of the first message that the kernel has */
	struct iovec vectors[VECTORS];
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
	struct ring_operation receive, send, hangup, redeliver;

	uint8_t *buffer; /* kept while unbound if it holds bytes */
	size_t buffer_bytes, start, end;
	size_t wanted;
	bool paused, delivering;

	struct outgoing *out; /* NULL: not bound */
	int send_error;       /* nothing can be sent any more */

	bool dying, closed, unbinding;
	int error; /* why; valid when dying */

	_Atomic bool
		shut; /* set by channel_shutdown() before it acts; relaxed, the socket orders */
	/* Written by the owner alone, read by anybody; relaxed, they order nothing. */
	_Atomic uint64_t sent_bytes, received_bytes;
};

static struct tcp_channel *of(struct channel *base)
{
	return container_of(base, struct tcp_channel, base);
}

static const struct tcp_channel *of_const(const struct channel *base)
{
	return container_of(base, const struct tcp_channel, base);
}

static void count(_Atomic uint64_t *total, int bytes)
{
	/* One writer: no need for a locked addition. */
	uint64_t before = atomic_load_explicit(total, memory_order_relaxed);
	atomic_store_explicit(total, before + (unsigned)bytes, memory_order_relaxed);
}

static bool is_shut(const struct tcp_channel *channel)
{
	return atomic_load_explicit(&channel->shut, memory_order_relaxed);
}

/* --- Dying
 * -------------------------------------------------------------------------------------------- */

/* Calls `closed` once nothing is in flight. The channel may be gone afterwards. */
static void settle(struct tcp_channel *channel)
{
	if (channel->closed || channel->receive.in_flight || channel->send.in_flight ||
	    channel->hangup.in_flight || channel->redeliver.in_flight)
		return;
	channel->closed = true;
	channel->events->closed(channel->user, channel->error);
}

/* The channel may be gone afterwards. */
static void die(struct tcp_channel *channel, int error)
{
	if (!channel->dying) {
		channel->dying = true;
		channel->error = is_shut(channel) ? -ECANCELED : error;
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
	}
	settle(channel);
}

/* --- Sending
 * ------------------------------------------------------------------------------------------ */

/* Adds what is left of `bytes` behind the first *skip to the vectors. */
static void add_vector(struct msghdr *header, const uint8_t *data, size_t bytes, size_t *skip)
{
	if (*skip >= bytes) {
		*skip -= bytes;
		return;
	}
	struct iovec *vector = &header->msg_iov[header->msg_iovlen++];
	vector->iov_base = (void *)(uintptr_t)(data + *skip);
	vector->iov_len = bytes - *skip;
	*skip = 0;
}

/* Where nobody hears of it anyway, a small send need not end the wait it goes out with. A queue
 * that is filling up does: its owner may be waiting for room. */
static bool may_be_silent(const struct tcp_channel *channel)
{
	const struct outgoing *out = channel->out;

	return !channel->events->sent && !out->loud && out->count <= QUEUE / 2 &&
	       out->batch_bytes <= SILENT_BYTES && ring_has_silence(channel->ring);
}

static void submit_send(struct tcp_channel *channel)
{
	struct outgoing *out = channel->out;
	size_t skip = out->sent_of_first, bytes = 0;

	out->header = (struct msghdr){.msg_iov = out->vectors};
	for (unsigned i = 0; i < out->count && out->header.msg_iovlen + 2 <= VECTORS; i++) {
		const struct message *message = &out->messages[(out->first + i) % QUEUE];
		size_t message_bytes = message->head_bytes + message->payload_bytes;
		if (i && bytes + message_bytes > SEND_BYTES)
			break;
		bytes += message_bytes;
		add_vector(&out->header, message->head, message->head_bytes, &skip);
		add_vector(&out->header, message->payload, message->payload_bytes, &skip);
	}
	out->batch_bytes = bytes - out->sent_of_first;
	struct io_uring_sqe *sqe;
	if (may_be_silent(channel)) {
		sqe = ring_prepare_silent(channel->ring, &channel->send);
		io_uring_prep_sendmsg(sqe, channel->fd, &out->header,
				      MSG_NOSIGNAL | MSG_WAITALL | MSG_DONTWAIT);
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
		return;
	}
	out->loud = false;
	sqe = ring_prepare(channel->ring, &channel->send);
	io_uring_prep_sendmsg(sqe, channel->fd, &out->header, MSG_NOSIGNAL | MSG_WAITALL);
}

/* Takes `bytes` off the queue, telling the owner of each message that is gone. */
static void advance(struct tcp_channel *channel, size_t bytes)
{
	struct outgoing *out = channel->out;

	out->sent_of_first += bytes;
	while (out->count) {
		const struct message *message = &out->messages[out->first];
		size_t message_bytes = message->head_bytes + message->payload_bytes;
		if (out->sent_of_first < message_bytes)
			break;
		uint64_t cookie = message->cookie;
		out->sent_of_first -= message_bytes;
		out->first = (out->first + 1) % QUEUE;
		out->count--;
		if (channel->events->sent && !channel->dying && !channel->unbinding)
			channel->events->sent(channel->user, cookie);
	}
}

static void send_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, send);

	if (result == RING_SILENT)
		result = (int)channel->out->batch_bytes;
	else if (!channel->out->loud && result < (int)channel->out->batch_bytes)
		channel->out->loud = true;
	if (result > 0) {
		count(&channel->sent_bytes, result);
		advance(channel, (size_t)result);
	}
	if (channel->unbinding)
		return;
	if (channel->dying) {
		settle(channel);
		return;
	}
	switch (-result) {
	case EPIPE:
	case ECONNRESET:
	case ETIMEDOUT:
		/* See Sending. */
		channel->send_error = result;
		break;
	case EINTR:
	case EAGAIN:
		break;
	default:
		if (result <= 0) {
			die(channel, result ? result : -EIO);
			return;
		}
	}
	ring_defer(channel->ring, &channel->task);
}

static int send_message(struct channel *base, const void *head, size_t head_bytes,
			const void *payload, size_t payload_bytes, uint64_t cookie)
{
	struct tcp_channel *channel = of(base);
	struct outgoing *out = channel->out;

	if (!channel->ring || channel->dying || channel->send_error)
		return -EPIPE;
	if (head_bytes > CHANNEL_HEAD_MAX || head_bytes + payload_bytes == 0)
		return -EINVAL;
	if (out->count == QUEUE)
		return -EAGAIN;
	struct message *message = &out->messages[(out->first + out->count++) % QUEUE];
	if (head_bytes)
		memcpy(message->head, head, head_bytes);
	message->head_bytes = head_bytes;
	message->payload = payload;
	message->payload_bytes = payload_bytes;
	message->cookie = cookie;
	ring_defer(channel->ring, &channel->task);
	return 0;
}

static size_t room(const struct channel *base)
{
	const struct tcp_channel *channel = of_const(base);

	if (!channel->ring || channel->dying || channel->send_error)
		return 0;
	return QUEUE - channel->out->count;
}

/* --- Receiving
 * ------------------------------------------------------------------------------------------ */

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
		die(channel, -EMSGSIZE);
}

static void receive_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, receive);

	if (result > 0) {
		channel->end += (size_t)result;
		count(&channel->received_bytes, result);
	}
	if (channel->unbinding)
		return;
	if (channel->dying) {
		settle(channel);
		return;
	}
	if (result > 0 && !is_shut(channel)) {
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
		die(channel, channel->send_error ? channel->send_error : -ECONNRESET);
		break;
	default:
		die(channel, result > 0 ? -ECANCELED : result);
	}
}

static void redeliver_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, redeliver);

	if (channel->unbinding)
		return;
	if (channel->dying) {
		settle(channel);
		return;
	}
	ring_defer(channel->ring, &channel->task);
	deliver(channel);
}

static void hangup_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, hangup);
	socklen_t bytes = sizeof(int);
	int error = 0;

	if (channel->unbinding)
		return;
	if (channel->dying) {
		settle(channel);
		return;
	}
	/* Receiving again: it finds out itself, behind the bytes that are still there. */
	if (!channel->paused)
		return;
	if (result < 0)
		error = -result;
	else
		getsockopt(channel->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
	die(channel, error ? -error : -ECONNRESET);
}

/* Brings what is in flight in line with the state. */
static void run_task(struct ring_task *task)
{
	struct tcp_channel *channel = container_of(task, struct tcp_channel, task);

	if (channel->out->count && !channel->send.in_flight && !channel->send_error)
		submit_send(channel);
	if (channel->receive.in_flight || channel->redeliver.in_flight)
		return;
	if (!channel->paused) {
		submit_receive(channel);
	} else if (!channel->hangup.in_flight) {
		struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->hangup);
		io_uring_prep_poll_add(sqe, channel->fd, 0);
	}
}

static void want(struct channel *base, size_t bytes)
{
	of(base)->wanted = bytes;
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

static void pause_channel(struct channel *base, bool paused)
{
	struct tcp_channel *channel = of(base);

	if (channel->paused == paused)
		return;
	channel->paused = paused;
	if (!channel->ring || channel->dying)
		return;
	if (!paused && !channel->delivering)
		queue_redelivery(channel);
	ring_defer(channel->ring, &channel->task);
}

/* --- Binding
 * ---------------------------------------------------------------------------------------------- */

static void drop_buffer(struct tcp_channel *channel)
{
	if (channel->buffer)
		munmap(channel->buffer, channel->buffer_bytes);
	channel->buffer = NULL;
	channel->start = channel->end = 0;
}

static int make_buffer(struct tcp_channel *channel, size_t bytes)
{
	size_t held = channel->end - channel->start;

	bytes = round_up(bytes ? bytes : 1, (uint64_t)sysconf(_SC_PAGESIZE));
	if (held >= bytes)
		return -EMSGSIZE;
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
	return 0;
}

static int bind_channel(struct channel *base, struct ring *ring,
			const struct channel_events *events, void *user, size_t receive_bytes)
{
	struct tcp_channel *channel = of(base);

	if (channel->ring)
		return -EBUSY;
	if (channel->dying || channel->send_error)
		return -EPIPE;
	struct outgoing *out = calloc(1, sizeof(*out));
	if (!out)
		return -ENOMEM;
	int result = make_buffer(channel, receive_bytes);
	if (result) {
		free(out);
		return result;
	}
	channel->out = out;
	channel->ring = ring;
	channel->events = events;
	channel->user = user;
	channel->paused = false;
	channel->wanted = 0;
	queue_redelivery(channel);
	ring_defer(ring, &channel->task);
	return 0;
}

static void unbind_channel(struct channel *base)
{
	struct tcp_channel *channel = of(base);

	if (!channel->ring)
		return;
	channel->unbinding = true;
	ring_undefer(channel->ring, &channel->task);
	ring_cancel(channel->ring, &channel->receive);
	ring_cancel(channel->ring, &channel->send);
	ring_cancel(channel->ring, &channel->hangup);
	ring_cancel(channel->ring, &channel->redeliver);
	channel->unbinding = false;
	/* Half a message is out and its payload is the owner's again: nothing can follow it. */
	if (channel->out->count && channel->out->sent_of_first)
		channel->send_error = -EPIPE;
	free(channel->out);
	channel->out = NULL;
	if (channel->dying || channel->start == channel->end)
		drop_buffer(channel);
	channel->ring = NULL;
	channel->events = NULL;
}

static void free_channel(struct channel *base)
{
	struct tcp_channel *channel = of(base);

	drop_buffer(channel);
	close(channel->fd);
	free(channel);
}

/* --- Options and figures
 * ------------------------------------------------------------------------------------ */

static void shutdown_channel(struct channel *base)
{
	struct tcp_channel *channel = of(base);

	atomic_store_explicit(&channel->shut, true, memory_order_relaxed);
	/* Wakes what is in flight; fails only if the connection is gone, which wakes it too. */
	shutdown(channel->fd, SHUT_RDWR);
}

static int pace(struct channel *base, uint64_t bytes_per_s)
{
	uint64_t rate = bytes_per_s ? bytes_per_s : UINT64_MAX;

	return setsockopt(of(base)->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate))
		       ? -errno
		       : 0;
}

static int timeout(struct channel *base, uint32_t timeout_ms)
{
	int fd = of(base)->fd;
	/* Whole seconds, at least one: first probe after a third of the time, then at every third.
	 */
	int third_s = (int)((timeout_ms + 2999) / 3000);
	int probes = 3, on = timeout_ms != 0;

	if (third_s < 1)
		third_s = 1;
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &third_s, sizeof(third_s)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &third_s, sizeof(third_s)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms)))
		return -errno;
	return 0;
}

static struct channel_totals totals(const struct channel *base)
{
	const struct tcp_channel *channel = of_const(base);

	return (struct channel_totals){
		.sent_bytes = atomic_load_explicit(&channel->sent_bytes, memory_order_relaxed),
		.received_bytes =
			atomic_load_explicit(&channel->received_bytes, memory_order_relaxed),
	};
}

static const char *name(const struct channel *base)
{
	return of_const(base)->name;
}

static const struct channel_ops channel_ops = {
	.bind = bind_channel,
	.unbind = unbind_channel,
	.send = send_message,
	.room = room,
	.want = want,
	.pause = pause_channel,
	.shutdown = shutdown_channel,
	.free = free_channel,
	.pace = pace,
	.timeout = timeout,
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
	channel->receive.done = receive_done;
	channel->send.done = send_done;
	channel->hangup.done = hangup_done;
	channel->redeliver.done = redeliver_done;
	resolve_format(&local, near);
	resolve_format(&remote, far);
	/* From who dialed to who listened: the same on both sides. */
	snprintf(channel->name, sizeof(channel->name), "%s → %s", dialed ? near : far,
		 dialed ? far : near);
	*out = &channel->base;
	return 0;
}
