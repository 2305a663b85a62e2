/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: is the peer still there?
 *
 * A channel counts as dead when nothing, not even an acknowledgement, has come from the peer's host
 * for the timeout. An idle connection is kept talking by keepalive, and the kernel ends it when the
 * probes stay unanswered. With data under way it is retransmission that gets no answer, which the
 * kernel would watch for a quarter of an hour (tcp_retries2).
 *
 * TCP_USER_TIMEOUT would be the obvious bound and is the wrong one: it also ends a connection whose
 * peer is well and only holds the data up because its owner has paused (a zero window; the kernel
 * counts the probes as unacknowledged data although each is answered). A paused stream is not a
 * dead link. So a timer looks at TCP_INFO: when did the last segment come, and is an answer due?
 *
 * Probes of a closed window back off to two minutes, so silence alone proves nothing there: three
 * unanswered ones do. Linux 6.15 can bound the back-off (TCP_RTO_MAX_MS), which makes that case as
 * quick as the others. This sees the peer's host, not whether its process gets anywhere: that is
 * for the protocol above to notice.
 */
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "transport/tcp_channel.h"

#ifndef TCP_RTO_MAX_MS /* Linux 6.15 */
#define TCP_RTO_MAX_MS 44
#endif

#define LOOKS         4 /* per timeout */
#define PROBES        3
#define RTO_MAX_LEAST 1000 /* of TCP_RTO_MAX_MS, milliseconds */
#define RTO_MAX_MOST  120000

static bool is_silent(const struct tcp_channel *channel)
{
	struct tcp_info info = {0};
	socklen_t bytes = sizeof(info);

	if (getsockopt(channel->fd, IPPROTO_TCP, TCP_INFO, &info, &bytes))
		return false; /* the operations in flight will tell */
	uint32_t silence_ms = info.tcpi_last_ack_recv < info.tcpi_last_data_recv
				      ? info.tcpi_last_ack_recv
				      : info.tcpi_last_data_recv;
	return silence_ms >= channel->timeout_ms &&
	       (info.tcpi_unacked > 0 || info.tcpi_probes >= PROBES);
}

static void watchdog_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_channel *channel = container_of(operation, struct tcp_channel, watchdog);

	if (tcp_channel_is_ending(channel))
		return;
	if (is_silent(channel))
		tcp_channel_die(channel, -ETIMEDOUT);
	else
		tcp_liveness_start(channel);
}

void tcp_liveness_init(struct tcp_channel *channel)
{
	channel->watchdog.done = watchdog_done;
}

void tcp_liveness_start(struct tcp_channel *channel)
{
	uint64_t interval_ns = (uint64_t)channel->timeout_ms * 1000000 / LOOKS;

	if (!channel->timeout_ms || channel->watchdog.in_flight)
		return;
	channel->watch_interval.tv_sec = (int64_t)(interval_ns / 1000000000);
	channel->watch_interval.tv_nsec = (long long)(interval_ns % 1000000000);
	struct io_uring_sqe *sqe = ring_prepare(channel->ring, &channel->watchdog);
	io_uring_prep_timeout(sqe, &channel->watch_interval, 0, 0);
}

int tcp_liveness_timeout(struct channel *base, uint32_t timeout_ms)
{
	struct tcp_channel *channel = tcp_channel_of(base);
	/* Whole seconds, at least one. */
	int third_s = timeout_ms < 3000 ? 1 : (int)(timeout_ms / 3000);
	int third_ms = (int)(timeout_ms / PROBES), probes = PROBES, on = timeout_ms != 0;
	int fd = channel->fd;

	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &third_s, sizeof(third_s)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &third_s, sizeof(third_s)) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes)))
		return -errno;
	if (third_ms < RTO_MAX_LEAST)
		third_ms = RTO_MAX_LEAST;
	if (!on || third_ms > RTO_MAX_MOST)
		third_ms = RTO_MAX_MOST;
	/* Older kernels do not know it; see above. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, &third_ms, sizeof(third_ms));
	channel->timeout_ms = timeout_ms;
	if (!channel->ring || channel->dying)
		return 0;
	if (channel->watchdog.in_flight) {
		channel->unbinding = true;
		ring_cancel(channel->ring, &channel->watchdog);
		channel->unbinding = false;
	}
	tcp_liveness_start(channel);
	return 0;
}
