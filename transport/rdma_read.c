/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READs: each is one request, posted at once, and one completion. The device works on as many at a
 * time as both ends agreed on when they connected, and keeps the others in order.
 */
#include <errno.h>

#include "transport/rdma_channel.h"

#define READ_MAX GIB(1) /* the device's own limit is twice that, or more */

int rdma_read_start(struct channel *base, struct landing *landing, size_t offset, uint64_t address,
		    uint32_t key, size_t bytes, uint64_t cookie)
{
	struct rdma_channel *channel = rdma_channel_of(base);
	struct rdma_posted posted = {.kind = RDMA_POSTED_READ, .cookie = cookie};
	struct ibv_sge piece = {.length = (uint32_t)bytes};
	struct ibv_send_wr request = {
		.opcode = IBV_WR_RDMA_READ,
		.sg_list = &piece,
		.num_sge = 1,
		.wr.rdma = {.remote_addr = address, .rkey = key},
	};

	if (!channel->ring || channel->dying || channel->send_error)
		return -EPIPE;
	if (!bytes || bytes > READ_MAX || !rdma_memory_key(landing, offset, bytes, &piece.lkey))
		return -EINVAL;
	if (channel->reads == channel->read_limit)
		return -EAGAIN;
	piece.addr = (uintptr_t)(landing->bytes + offset);
	int result = rdma_post(channel, &request, &posted, true);
	/* Somebody waits for it: the queue is armed before the ring sleeps. */
	ring_defer(channel->ring, &channel->task);
	if (!result)
		return 0;
	channel->send_error = channel->doomed = result;
	rdma_events_again(channel);
	return -EPIPE;
}

size_t rdma_read_room(const struct channel *base)
{
	const struct rdma_channel *channel = rdma_channel_of_const(base);

	if (!channel->ring || channel->dying || channel->send_error)
		return 0;
	return channel->read_limit - channel->reads;
}
