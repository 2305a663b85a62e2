/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: is the peer still there?
 *
 * A request that the peer's device does not confirm is repeated by ours and then fails
 * (IBV_WC_RETRY_EXC_ERR), after seconds that the ack timeout and the number of retries make up. An
 * idle connection fails by nothing. So a timer looks several times per timeout whether anything was
 * heard since the last look; where nothing was, it posts a WRITE of no bytes, which touches no
 * memory of the peer and is confirmed by its device. Silence for the whole timeout ends the
 * channel, however patient the device is.
 *
 * As with TCP this sees the peer's host, not whether its process gets anywhere.
 */
#include <errno.h>
#include <liburing.h>
#include <stdio.h>

#include "transport/rdma_channel.h"

#define LOOKS 4 /* per timeout */

static void probe(struct rdma_channel *channel)
{
	struct rdma_posted posted = {.kind = RDMA_POSTED_PROBE};
	struct ibv_send_wr request = {.opcode = IBV_WR_RDMA_WRITE};

	if (channel->probing || channel->others == RDMA_OTHERS || channel->send_error)
		return;
	int result = rdma_post(channel, &request, &posted, true);
	channel->probing = !result;
	if (result)
		channel->doomed = result;
}

static void watchdog_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct rdma_channel *channel = container_of(operation, struct rdma_channel, watchdog);

	if (channel->unbinding || channel->dying)
		return;
	/* What has come and was not looked at is a sign of life, too. */
	rdma_events_again(channel);
	if (channel->heard != channel->heard_before)
		channel->silent_looks = 0;
	else
		channel->silent_looks++;
	channel->heard_before = channel->heard;
	if (channel->silent_looks > LOOKS) {
		snprintf(channel->failure, sizeof(channel->failure),
			 "%s: nothing heard of the peer's device for %u ms",
			 channel->domain->device_name, channel->timeout_ms);
		channel->doomed = -ETIMEDOUT;
		return;
	}
	if (channel->silent_looks)
		probe(channel);
	rdma_liveness_start(channel);
}

void rdma_liveness_init(struct rdma_channel *channel)
{
	channel->watchdog.done = watchdog_done;
}

void rdma_liveness_start(struct rdma_channel *channel)
{
	uint64_t interval_ns = (uint64_t)channel->timeout_ms * 1000000 / LOOKS;

	if (!channel->timeout_ms || channel->watchdog.in_flight)
		return;
	channel->watch_interval.tv_sec = (int64_t)(interval_ns / 1000000000);
	channel->watch_interval.tv_nsec = (long long)(interval_ns % 1000000000);
	struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->watchdog);
	io_uring_prep_timeout(sqe, &channel->watch_interval, 0, 0);
}

int rdma_liveness_timeout(struct channel *base, uint32_t timeout_ms)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	channel->timeout_ms = timeout_ms;
	channel->silent_looks = 0;
	if (!channel->ring || channel->dying)
		return 0;
	if (channel->watchdog.in_flight) {
		channel->unbinding = true;
		ring_cancel(channel->ring, &channel->watchdog);
		channel->unbinding = false;
	}
	rdma_liveness_start(channel);
	return 0;
}
