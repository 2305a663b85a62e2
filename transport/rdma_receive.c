/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: receiving on an RDMA channel
 *
 * The device puts each message into a slot of its own, so what belongs together (a frame of many
 * pages, a control message) lies in pieces. It is copied into one buffer, as TCP's would be by the
 * kernel, and the slot is given back to the device at once: the owner sees whole units in one
 * place, and how it consumes them does not hold up the peer.
 *
 * Credit. The peer sends only into slots that it knows to be free. Slots given back to the device
 * are `owed` to the peer until some message, or one of its own without bytes, tells it so.
 *
 * Paused, nothing is copied, the slots fill, and the peer runs out of credit.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "transport/rdma_channel.h"

int rdma_receive_post(struct rdma_channel *channel, unsigned slot)
{
	struct ibv_sge piece = {
		.addr = (uintptr_t)(channel->slots + (size_t)slot * RDMA_SLOT_BYTES),
		.length = RDMA_SLOT_BYTES,
		.lkey = channel->slots_region->lkey,
	};
	struct ibv_recv_wr request = {
		.wr_id = RDMA_RECEIVE_ID | slot, .sg_list = &piece, .num_sge = 1};
	struct ibv_recv_wr *bad;

	return -ibv_post_recv(channel->id->qp, &request, &bad);
}

static void give_back(struct rdma_channel *channel, unsigned slot)
{
	int result = rdma_receive_post(channel, slot);
	if (result)
		channel->doomed = result;
}

int rdma_receive_arrived(struct rdma_channel *channel, unsigned slot, uint32_t bytes,
			 uint32_t immediate)
{
	unsigned room = sizeof(channel->arrived) / sizeof(channel->arrived[0]);

	channel->credits += immediate & RDMA_IMM_CREDITS;
	if (immediate & RDMA_IMM_FAREWELL)
		channel->peer_closed = channel->farewell = true;
	if (channel->credits > channel->peer_slots)
		return -EPROTO;
	if (!bytes) {
		give_back(channel, slot);
		return 0;
	}
	if (channel->arrived_count == room)
		return -EPROTO; /* not reached: there are no more slots */
	unsigned last = (channel->arrived_first + channel->arrived_count++) % room;
	channel->arrived[last].slot = (uint16_t)slot;
	channel->arrived[last].bytes = bytes;
	return 0;
}

/* Copies what has arrived to the buffer, not beyond `most` bytes held there. */
static void fill(struct rdma_channel *channel, size_t most)
{
	unsigned room = sizeof(channel->arrived) / sizeof(channel->arrived[0]);

	while (channel->arrived_count) {
		unsigned slot = channel->arrived[channel->arrived_first].slot;
		size_t held = channel->end - channel->start;
		size_t left =
			channel->arrived[channel->arrived_first].bytes - channel->arrived_taken;
		if (left > most - held)
			left = most - held;
		if (!left)
			return;
		if (channel->buffer_bytes - channel->end < left) {
			memmove(channel->buffer, channel->buffer + channel->start, held);
			channel->start = 0;
			channel->end = held;
		}
		memcpy(channel->buffer + channel->end,
		       channel->slots + (size_t)slot * RDMA_SLOT_BYTES + channel->arrived_taken,
		       left);
		channel->end += left;
		channel->arrived_taken += (uint32_t)left;
		rdma_count(&channel->received_bytes, left);
		if (channel->arrived_taken < channel->arrived[channel->arrived_first].bytes)
			return;
		channel->arrived_first = (channel->arrived_first + 1) % room;
		channel->arrived_count--;
		channel->arrived_taken = 0;
		channel->owed++;
		give_back(channel, slot);
	}
}

static void offer(struct rdma_channel *channel)
{
	size_t held = channel->end - channel->start;

	channel->wanted = 0;
	channel->offer_again = false;
	channel->delivering = true;
	size_t consumed =
		channel->events->received(channel->user, channel->buffer + channel->start, held);
	channel->delivering = false;
	channel->start += consumed < held ? consumed : held;
	if (channel->start == channel->end)
		channel->start = channel->end = 0;
	channel->offered = channel->end - channel->start;
}

int rdma_receive_deliver(struct rdma_channel *channel)
{
	while (!channel->paused) {
		if (rdma_is_shut(channel))
			return -ECANCELED;
		size_t most = channel->buffer_bytes;
		if (channel->wanted && channel->wanted < most - channel->offered)
			most = channel->offered + channel->wanted;
		fill(channel, most);
		size_t held = channel->end - channel->start;
		if (held == 0 || (held == channel->offered && !channel->offer_again))
			break;
		if (channel->wanted && held < most && !channel->peer_closed)
			return 0;
		offer(channel);
		if (!channel->paused && channel->offered == channel->buffer_bytes)
			return -EMSGSIZE;
	}
	return channel->peer_closed && !channel->paused && !channel->arrived_count;
}

void rdma_receive_want(struct channel *base, size_t bytes)
{
	rdma_channel_of(base)->wanted = bytes;
}

void rdma_receive_pause(struct channel *base, bool paused)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	if (channel->paused == paused)
		return;
	channel->paused = paused;
	if (!channel->ring || channel->dying || paused || channel->delivering)
		return;
	/* By a callback, so it has to come out of ring_wait(). */
	channel->offer_again = true;
	rdma_events_again(channel);
}

static void drop_buffer(struct rdma_channel *channel)
{
	if (channel->buffer)
		munmap(channel->buffer, channel->buffer_bytes);
	channel->buffer = NULL;
	channel->start = channel->end = channel->offered = 0;
}

int rdma_receive_open(struct rdma_channel *channel, size_t bytes)
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
	channel->end = channel->offered = held;
	channel->offer_again = held;
	channel->paused = false;
	channel->wanted = 0;
	return 0;
}

void rdma_receive_close(struct rdma_channel *channel, bool keep)
{
	if (!keep || channel->start == channel->end)
		drop_buffer(channel);
}
