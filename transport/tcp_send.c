/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: sending on a TCP channel
 *
 * Up to TCP_QUEUE messages wait in a ring of slots. At most one sendmsg is in flight, which keeps
 * them in order; it takes as many as fit into its vectors and SEND_BYTES. MSG_WAITALL lets the
 * kernel go on by itself after a short send; what a send leaves nevertheless is continued from
 * `sent_of_first`.
 *
 * A small batch of a channel without a `sent` callback is sent silently (see ring.c). If the socket
 * takes only a part of it, the rest goes the ordinary way, which may wait.
 *
 * When sending fails because the peer is gone, only sending stops: bytes that the peer sent before
 * (its reason, say) are still delivered, and the receiving side then finds the end and closes the
 * channel.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "transport/tcp_channel.h"

#define SILENT_BYTES KIB(16) /* of one sendmsg without a completion */
#define SEND_BYTES   MIB(1)  /* of one sendmsg, unless a single message is longer */

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
	const struct tcp_outgoing *out = channel->out;

	return !channel->events->sent && !out->loud && out->count <= TCP_QUEUE / 2 &&
	       out->batch_bytes <= SILENT_BYTES && ring_has_silence(channel->ring);
}

void tcp_send_submit(struct tcp_channel *channel)
{
	struct tcp_outgoing *out = channel->out;
	size_t skip = out->sent_of_first, bytes = 0;

	if (!out->count || channel->send.in_flight || channel->send_error)
		return;
	out->header = (struct msghdr){.msg_iov = out->vectors};
	for (unsigned i = 0; i < out->count && out->header.msg_iovlen + 2 <= TCP_VECTORS; i++) {
		const struct tcp_message *message = &out->messages[(out->first + i) % TCP_QUEUE];
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
	struct tcp_outgoing *out = channel->out;

	out->sent_of_first += bytes;
	while (out->count) {
		const struct tcp_message *message = &out->messages[out->first];
		size_t message_bytes = message->head_bytes + message->payload_bytes;
		if (out->sent_of_first < message_bytes)
			break;
		uint64_t cookie = message->cookie;
		out->sent_of_first -= message_bytes;
		out->first = (out->first + 1) % TCP_QUEUE;
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
		tcp_count(&channel->sent_bytes, result);
		advance(channel, (size_t)result);
	}
	if (tcp_channel_is_ending(channel))
		return;
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
			tcp_channel_die(channel, result ? result : -EIO);
			return;
		}
	}
	ring_defer(channel->ring, &channel->task);
}

int tcp_send_message(struct channel *base, const void *head, size_t head_bytes, const void *payload,
		     size_t payload_bytes, uint64_t cookie)
{
	struct tcp_channel *channel = tcp_channel_of(base);
	struct tcp_outgoing *out = channel->out;

	if (!channel->ring || channel->dying || channel->send_error)
		return -EPIPE;
	if (head_bytes > CHANNEL_HEAD_MAX || head_bytes + payload_bytes == 0)
		return -EINVAL;
	if (out->count == TCP_QUEUE)
		return -EAGAIN;
	struct tcp_message *message = &out->messages[(out->first + out->count++) % TCP_QUEUE];
	if (head_bytes)
		memcpy(message->head, head, head_bytes);
	message->head_bytes = head_bytes;
	message->payload = payload;
	message->payload_bytes = payload_bytes;
	message->cookie = cookie;
	ring_defer(channel->ring, &channel->task);
	return 0;
}

size_t tcp_send_room(const struct channel *base)
{
	const struct tcp_channel *channel = tcp_channel_of_const(base);

	if (!channel->ring || channel->dying || channel->send_error)
		return 0;
	return TCP_QUEUE - channel->out->count;
}

int tcp_send_open(struct tcp_channel *channel)
{
	channel->send.done = send_done;
	channel->out = calloc(1, sizeof(*channel->out));
	return channel->out ? 0 : -ENOMEM;
}

void tcp_send_close(struct tcp_channel *channel)
{
	/* Half a message is out and its payload is the owner's again: nothing can follow it. */
	if (channel->out->count && channel->out->sent_of_first)
		channel->send_error = -EPIPE;
	free(channel->out);
	channel->out = NULL;
}
