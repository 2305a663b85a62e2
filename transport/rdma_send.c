/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: sending on an RDMA channel
 *
 * Messages are copied into registered slots, as many as fit into one, and each slot is one SEND
 * into a slot of the peer's: that it has one free is known by credit, so a SEND never meets a
 * receiver that is not ready. A copy costs less than registering memory that is sent once, and a
 * payload is the owner's again as soon as the device has confirmed the SEND.
 *
 * A limit of rate is kept here, since no kernel stands between: each slot puts the moment off at
 * which the next may go, and a timer wakes whoever has to wait for it. READs are not limited: they
 * are the other end's to begin.
 *
 * That confirmation comes from the peer's device, not from its process. A message that was `sent`
 * lies in the peer's memory, whatever becomes of this end.
 */
#include <endian.h>
#include <errno.h>
#include <liburing.h>
#include <string.h>

#include "base/clock.h"
#include "transport/rdma_channel.h"

#define PACE_AHEAD_NS 1000000               /* a timer is not asked to be more exact */
#define SIGNAL_EVERY  (RDMA_SEND_SLOTS / 2) /* at least; so that slots and requests come back */

int rdma_post(struct rdma_channel *channel, struct ibv_send_wr *request,
	      const struct rdma_posted *posted, bool signaled)
{
	struct ibv_send_wr *bad;

	if (signaled || ++channel->unsignaled >= SIGNAL_EVERY) {
		request->send_flags |= IBV_SEND_SIGNALED;
		channel->unsignaled = 0;
	}
	request->wr_id = channel->posted_next;
	int result = ibv_post_send(channel->id->qp, request, &bad);
	if (result)
		return -result;
	channel->posted[channel->posted_next++ % RDMA_POSTED] = *posted;
	if (posted->kind == RDMA_POSTED_READ) {
		channel->reads++;
		rdma_count(&channel->reads_total, 1);
	} else {
		channel->others++;
		rdma_count(&channel->others_total, 1);
	}
	return 0;
}

/* A message that tells the peer of its credit, and carries what `piece` has. 0 or -errno. */
static int post_message(struct rdma_channel *channel, const struct rdma_posted *posted,
			struct ibv_sge *piece, uint32_t flags, bool signaled)
{
	struct ibv_send_wr request = {
		.opcode = IBV_WR_SEND_WITH_IMM,
		.imm_data = htobe32(channel->owed | flags),
		.sg_list = piece,
		.num_sge = piece->length ? 1 : 0,
		/* Solicited: it makes an event at a peer that waits for nothing else. */
		.send_flags = IBV_SEND_SOLICITED |
			      (piece->length <= channel->inline_bytes ? IBV_SEND_INLINE : 0),
	};
	int result = rdma_post(channel, &request, posted, signaled);
	if (!result)
		channel->owed = 0;
	return result;
}

/* --- Pace ---------------------------------------------------------------------------- */

static void pacer_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct rdma_channel *channel = container_of(operation, struct rdma_channel, pacer);

	if (!channel->unbinding && !channel->dying)
		ring_defer(channel->ring, &channel->task);
}

/* Whether it is too early to send; then the task runs again when it is not. */
static bool is_held_back(struct rdma_channel *channel)
{
	uint64_t now = clock_ns();

	if (now + PACE_AHEAD_NS >= channel->pace_next_ns)
		return false;
	if (!channel->pacer.in_flight) {
		uint64_t wait_ns = channel->pace_next_ns - now;
		channel->pace_wait.tv_sec = (int64_t)(wait_ns / 1000000000);
		channel->pace_wait.tv_nsec = (long long)(wait_ns % 1000000000);
		struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->pacer);
		io_uring_prep_timeout(sqe, &channel->pace_wait, 0, 0);
	}
	return true;
}

static void note_pace(struct rdma_channel *channel, size_t bytes)
{
	uint64_t now = clock_ns();

	if (channel->pace_next_ns < now)
		channel->pace_next_ns = now;
	channel->pace_next_ns +=
		(uint64_t)((double)bytes * 1e9 / (double)channel->pace_bytes_per_s);
}

int rdma_send_pace(struct channel *base, uint64_t bytes_per_s)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	channel->pace_bytes_per_s = bytes_per_s;
	channel->pace_next_ns = 0;
	if (channel->ring && !channel->dying)
		ring_defer(channel->ring, &channel->task);
	return 0;
}

void rdma_send_init(struct rdma_channel *channel)
{
	channel->pacer.done = pacer_done;
}

/* --- Messages ------------------------------------------------------------------------ */

static size_t left_of(const struct rdma_channel *channel, const struct rdma_message *message)
{
	return message->head_bytes + message->payload_bytes - channel->posted_of_next;
}

/* Copies from behind the first `skip` bytes of the message; returns how many. */
static size_t copy_part(const struct rdma_message *message, size_t skip, uint8_t *to, size_t room)
{
	size_t copied = 0;

	if (skip < message->head_bytes) {
		copied = message->head_bytes - skip < room ? message->head_bytes - skip : room;
		memcpy(to, message->head + skip, copied);
		skip += copied;
	}
	size_t left = message->head_bytes + message->payload_bytes - skip;
	if (left > room - copied)
		left = room - copied;
	if (left)
		memcpy(to + copied, message->payload + (skip - message->head_bytes), left);
	return copied + left;
}

/* Fills the next slot with what is queued; returns its bytes, and in *messages how many end in it.
 */
static size_t gather(struct rdma_channel *channel, uint8_t *slot, unsigned *messages)
{
	size_t room = channel->peer_slot_bytes, bytes = 0;

	*messages = 0;
	while (bytes < room && channel->message_posted + *messages < channel->message_count) {
		unsigned index = channel->message_first + channel->message_posted + *messages;
		const struct rdma_message *message = &channel->messages[index % RDMA_QUEUE];
		size_t copied =
			copy_part(message, channel->posted_of_next, slot + bytes, room - bytes);
		bytes += copied;
		if (copied == left_of(channel, message)) {
			channel->posted_of_next = 0;
			++*messages;
		} else {
			channel->posted_of_next += copied;
		}
	}
	return bytes;
}

/* Without `sent` nobody waits for messages that are copied. */
static void note_messages(struct rdma_channel *channel, unsigned *messages)
{
	if (channel->events->sent) {
		channel->message_posted += *messages;
		return;
	}
	channel->message_first = (channel->message_first + *messages) % RDMA_QUEUE;
	channel->message_count -= *messages;
	*messages = 0;
}

static int send_slot(struct rdma_channel *channel)
{
	struct rdma_posted posted = {.kind = RDMA_POSTED_SEND};
	unsigned index = RDMA_SLOTS + RDMA_SLOTS_EXTRA + channel->send_slot;
	uint8_t *slot = channel->slots + (size_t)index * RDMA_SLOT_BYTES;
	size_t bytes = gather(channel, slot, &posted.messages);
	struct ibv_sge piece = {.addr = (uintptr_t)slot,
				.length = (uint32_t)bytes,
				.lkey = channel->slots_region->lkey};

	note_messages(channel, &posted.messages);
	int result = post_message(channel, &posted, &piece, 0, posted.messages != 0);
	if (result)
		return result;
	channel->send_slot = (channel->send_slot + 1) % RDMA_SEND_SLOTS;
	channel->sends++;
	channel->credits--;
	rdma_count(&channel->sent_bytes, bytes);
	if (channel->pace_bytes_per_s)
		note_pace(channel, bytes);
	return 0;
}

static bool has_work(const struct rdma_channel *channel)
{
	return channel->message_posted < channel->message_count && channel->credits &&
	       channel->sends < RDMA_SEND_SLOTS && channel->others < RDMA_OTHERS;
}

void rdma_send_run(struct rdma_channel *channel)
{
	int result = channel->send_error;

	while (!result && has_work(channel) &&
	       !(channel->pace_bytes_per_s && is_held_back(channel)))
		result = send_slot(channel);
	if (!result && channel->owed >= RDMA_SLOTS / 2 && channel->others < RDMA_OTHERS) {
		struct rdma_posted posted = {.kind = RDMA_POSTED_CREDIT};
		struct ibv_sge nothing = {0};
		result = post_message(channel, &posted, &nothing, 0, false);
	}
	if (result && !channel->send_error) {
		channel->send_error = channel->doomed = result;
		rdma_events_again(channel);
	}
}

void rdma_send_done(struct rdma_channel *channel, unsigned messages, bool tell)
{
	channel->sends--;
	while (messages--) {
		uint64_t cookie = channel->messages[channel->message_first].cookie;
		channel->message_first = (channel->message_first + 1) % RDMA_QUEUE;
		channel->message_count--;
		channel->message_posted--;
		if (tell && channel->events->sent)
			channel->events->sent(channel->user, cookie);
	}
}

void rdma_send_farewell(struct rdma_channel *channel)
{
	struct rdma_posted posted = {.kind = RDMA_POSTED_CREDIT};
	struct ibv_sge nothing = {0};

	if (channel->others < RDMA_OTHERS)
		post_message(channel, &posted, &nothing, RDMA_IMM_FAREWELL, true);
}

int rdma_send_message(struct channel *base, const void *head, size_t head_bytes,
		      const void *payload, size_t payload_bytes, uint64_t cookie)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	if (!channel->ring || channel->dying || channel->send_error)
		return -EPIPE;
	if (head_bytes > CHANNEL_HEAD_MAX || head_bytes + payload_bytes == 0)
		return -EINVAL;
	if (channel->message_count == RDMA_QUEUE)
		return -EAGAIN;
	unsigned index = (channel->message_first + channel->message_count++) % RDMA_QUEUE;
	struct rdma_message *message = &channel->messages[index];
	if (head_bytes)
		memcpy(message->head, head, head_bytes);
	message->head_bytes = head_bytes;
	message->payload = payload;
	message->payload_bytes = payload_bytes;
	message->cookie = cookie;
	ring_defer(channel->ring, &channel->task);
	return 0;
}

size_t rdma_send_room(const struct channel *base)
{
	const struct rdma_channel *channel = rdma_channel_of_const(base);

	if (!channel->ring || channel->dying || channel->send_error)
		return 0;
	return RDMA_QUEUE - channel->message_count;
}

void rdma_send_close(struct rdma_channel *channel)
{
	/* Half a message is out and its payload is the owner's again: nothing can follow it. */
	if (channel->posted_of_next)
		channel->send_error = -EPIPE;
	channel->message_first = channel->message_count = channel->message_posted = 0;
	channel->posted_of_next = 0;
	/* What was posted arrives, but nobody waits for hearing of it. */
	for (uint64_t i = channel->posted_first; i < channel->posted_next; i++)
		channel->posted[i % RDMA_POSTED].messages = 0;
}
