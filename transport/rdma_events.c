/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: what the device and the connection manager say
 *
 * All completions of a channel come through one queue. Of the requests only every eighth SEND asks
 * for a completion, and those that somebody waits for; each completion also tells that all requests
 * before it are done. A queue that is armed says once that something was added, by an event that
 * can be polled for. So: when the event comes, the completions are taken and told of first (a guest
 * may be waiting), then the event is read; right before the ring sleeps the queue is looked at,
 * armed, and looked at once more, since what came in between makes no event.
 *
 * While nothing is under way only a message of the peer makes an event (messages are all sent as
 * solicited). A READ that is posted then and found complete before the ring sleeps, as a quick
 * device or one in software has it, leaves the queue armed as it was: no event, nothing to read, no
 * arming, and so no system call but those of posting.
 *
 * With `poll-us`, and while a READ is under way, the queue is looked at for that long before it is
 * armed: what comes in that time costs neither an event nor a system call. When that was in vain
 * several times in a row it rests for as many READs.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/rdma_channel.h"

#define TAKE_MAX     256 /* completions before others of the ring have their turn */
#define POLLS_FAILED 4
#define POLLS_REST   64

/* --- Completions --------------------------------------------------------------------- */

static int errno_of(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_RETRY_EXC_ERR:
	case IBV_WC_RESP_TIMEOUT_ERR:
		return -ETIMEDOUT;
	case IBV_WC_REM_ACCESS_ERR:
		return -EACCES;
	case IBV_WC_RNR_RETRY_EXC_ERR:
	case IBV_WC_REM_INV_REQ_ERR:
		return -EPROTO;
	case IBV_WC_REM_OP_ERR:
		return -EREMOTEIO;
	case IBV_WC_WR_FLUSH_ERR:
	case IBV_WC_REM_ABORT_ERR:
		return -ECONNRESET;
	default:
		return -EIO;
	}
}

static int note_failure(struct rdma_channel *channel, const struct ibv_wc *wc)
{
	/* What follows the first failure is its consequence. */
	if (!channel->failure[0])
		snprintf(channel->failure, sizeof(channel->failure),
			 "%s: %s (work completion %d of a %s, vendor 0x%x)",
			 channel->domain->device_name,
			 channel->library->verbs.wc_status_str(wc->status), wc->status,
			 wc->wr_id & RDMA_RECEIVE_ID ? "receive" : "request", wc->vendor_err);
	return errno_of(wc->status);
}

/* Everything up to `last` is done. */
static void retire(struct rdma_channel *channel, uint64_t last, bool tell)
{
	while (channel->posted_first <= last && channel->posted_first < channel->posted_next) {
		struct rdma_posted posted = channel->posted[channel->posted_first++ % RDMA_POSTED];
		if (posted.kind == RDMA_POSTED_READ) {
			channel->reads--;
			if (tell)
				channel->events->read_done(channel->user, posted.cookie, 0);
			continue;
		}
		channel->others--;
		if (posted.kind == RDMA_POSTED_PROBE)
			channel->probing = false;
		if (posted.kind == RDMA_POSTED_SEND)
			rdma_send_done(channel, posted.messages, tell);
	}
}

static int take_one(struct rdma_channel *channel, const struct ibv_wc *wc, bool tell)
{
	if (wc->status != IBV_WC_SUCCESS)
		return note_failure(channel, wc);
	if (wc->wr_id & RDMA_RECEIVE_ID)
		return rdma_receive_arrived(channel, (unsigned)(wc->wr_id & ~RDMA_RECEIVE_ID),
					    wc->byte_len, be32toh(wc->imm_data));
	if (channel->posted[wc->wr_id % RDMA_POSTED].kind == RDMA_POSTED_READ)
		rdma_count(&channel->read_completions, 1);
	retire(channel, wc->wr_id, tell);
	return 0;
}

/* Fills `seen` if it is empty. -EIO */
static int look(struct rdma_channel *channel)
{
	if (channel->seen_count)
		return 0;
	int count = ibv_poll_cq(channel->queue, RDMA_BATCH, channel->seen);
	if (count < 0) {
		snprintf(channel->failure, sizeof(channel->failure), "%s: no completions any more",
			 channel->domain->device_name);
		return -EIO;
	}
	channel->seen_count = count;
	return 0;
}

int rdma_events_take(struct rdma_channel *channel, bool tell)
{
	struct ibv_wc batch[RDMA_BATCH];
	int error = 0, failed;

	for (int taken = 0; taken < TAKE_MAX;) {
		error = look(channel);
		int count = channel->seen_count;
		if (error || !count)
			return error;
		/* A callback may look again. */
		memcpy(batch, channel->seen, (size_t)count * sizeof(batch[0]));
		channel->seen_count = 0;
		channel->heard++;
		for (int i = 0; i < count; i++) {
			failed = take_one(channel, &batch[i], tell);
			if (failed && !error)
				error = failed;
		}
		if (error)
			return error;
		taken += count;
	}
	if (channel->ring)
		rdma_events_again(channel);
	return 0;
}

/* Looks for a while; whether something has come. */
static bool poll_for_a_while(struct rdma_channel *channel)
{
	if (!channel->poll_ns || !channel->reads)
		return false;
	if (channel->polls_failed >= POLLS_FAILED) {
		if (++channel->polls_failed >= POLLS_FAILED + POLLS_REST)
			channel->polls_failed = 0;
		return false;
	}
	uint64_t until = clock_ns() + channel->poll_ns;
	do {
		if (look(channel) < 0 || channel->seen_count) {
			channel->polls_failed = 0;
			return true;
		}
	} while (clock_ns() < until && !rdma_is_shut(channel));
	channel->polls_failed++;
	return false;
}

static int arm(struct rdma_channel *channel, enum rdma_armed what)
{
	if (ibv_req_notify_cq(channel->queue, what == RDMA_ARMED_MESSAGES))
		return -EIO;
	channel->armed = what;
	return 0;
}

void rdma_events_arm(struct rdma_channel *channel)
{
	int error = look(channel);
	enum rdma_armed what = channel->posted_first == channel->posted_next ? RDMA_ARMED_MESSAGES
									     : RDMA_ARMED_ALL;

	if (!error && !channel->seen_count && channel->armed < what && !poll_for_a_while(channel)) {
		error = arm(channel, what);
		if (!error)
			error = look(channel);
	}
	if (error)
		channel->doomed = error;
	if (channel->seen_count || channel->doomed)
		rdma_events_again(channel);
}

/* Reads the event of an armed queue; false: there is none. */
static bool read_event(struct rdma_channel *channel)
{
	struct ibv_cq *queue;
	void *context;

	if (!channel->armed ||
	    channel->library->verbs.get_cq_event(channel->completions, &queue, &context))
		return false;
	channel->armed = RDMA_UNARMED;
	channel->unacknowledged++;
	return true;
}

/* Tells of everything that has come. The channel may be gone afterwards. */
static void process(struct rdma_channel *channel)
{
	int error = rdma_events_take(channel, true);

	if (!error)
		error = channel->doomed;
	/* What came before it failed is delivered. */
	int delivered = rdma_receive_deliver(channel);
	if (error || delivered) {
		rdma_channel_die(channel, delivered == 1 ? 0 : error ? error : delivered);
		return;
	}
	ring_defer(channel->ring, &channel->task);
}

static void completions_ready(void *user, int mask)
{
	struct rdma_channel *channel = user;

	if (mask < 0) {
		rdma_channel_die(channel, mask);
		return;
	}
	/* Told of first, see above; what comes in between is found when the queue is armed. */
	int error = rdma_events_take(channel, true);
	read_event(channel);
	if (error)
		channel->doomed = error;
	process(channel);
}

static void again_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct rdma_channel *channel = container_of(operation, struct rdma_channel, again);

	if (!channel->unbinding && !channel->dying)
		process(channel);
}

void rdma_events_again(struct rdma_channel *channel)
{
	if (!channel->again.in_flight)
		ring_complete(channel->ring, &channel->again);
}

/* --- The connection manager ---------------------------------------------------------- */

/* 0, or the -errno to die of. */
static int take_event(struct rdma_channel *channel, enum rdma_cm_event_type event, int status)
{
	switch (event) {
	case RDMA_CM_EVENT_DISCONNECTED:
		channel->peer_closed = true;
		return 0;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		snprintf(channel->failure, sizeof(channel->failure), "the device %s was removed",
			 channel->domain->device_name);
		return -ENODEV;
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
		snprintf(channel->failure, sizeof(channel->failure), "%s: %s (status %d)",
			 channel->domain->device_name, channel->library->cm.event_str(event),
			 status);
		return -ECONNRESET;
	default:
		return 0;
	}
}

int rdma_events_hear(struct rdma_channel *channel)
{
	struct rdma_cm_event *event;
	int error = 0;

	while (!error && !channel->library->cm.get_cm_event(channel->events_from, &event)) {
		error = take_event(channel, event->event, event->status);
		channel->library->cm.ack_cm_event(event);
	}
	return error;
}

static void events_ready(void *user, int mask)
{
	struct rdma_channel *channel = user;
	int error = mask < 0 ? mask : rdma_events_hear(channel);

	if (error)
		channel->doomed = error;
	process(channel);
}

static void shut_ready(void *user, int mask)
{
	/* Not read: it stays so for whoever binds the channel next. */
	rdma_channel_die(user, -ECANCELED);
}

/* --- Binding ------------------------------------------------------------------------- */

void rdma_events_init(struct rdma_channel *channel)
{
	channel->again.done = again_done;
	channel->completion_watch = (struct ring_watch){
		.ready = completions_ready, .user = channel, .fd = channel->completions->fd};
	channel->event_watch = (struct ring_watch){
		.ready = events_ready, .user = channel, .fd = channel->events_from->fd};
	channel->shut_watch =
		(struct ring_watch){.ready = shut_ready, .user = channel, .fd = channel->shut_fd};
}

int rdma_events_bind(struct rdma_channel *channel)
{
	int result = ring_watch_add(channel->ring, &channel->completion_watch);
	if (!result)
		result = ring_watch_add(channel->ring, &channel->event_watch);
	if (!result)
		result = ring_watch_add(channel->ring, &channel->shut_watch);
	if (result)
		rdma_events_unbind(channel);
	else
		rdma_events_again(channel);
	return result;
}

void rdma_events_unbind(struct rdma_channel *channel)
{
	ring_watch_remove(&channel->completion_watch);
	ring_watch_remove(&channel->event_watch);
	ring_watch_remove(&channel->shut_watch);
}

int rdma_events_settle(struct rdma_channel *channel, bool all, bool tell, unsigned timeout_ms)
{
	struct pollfd ready = {.fd = channel->completions->fd, .events = POLLIN};
	uint64_t until = clock_ns() + (uint64_t)timeout_ms * 1000000;

	for (;;) {
		int error = rdma_events_take(channel, tell);
		if (error)
			return error;
		if (all ? channel->posted_first == channel->posted_next : !channel->reads)
			return 0;
		uint64_t now = clock_ns();
		if (now >= until)
			return -ETIMEDOUT;
		if (channel->armed < RDMA_ARMED_ALL) {
			error = arm(channel, RDMA_ARMED_ALL);
			if (error)
				return error;
			continue;
		}
		if (poll(&ready, 1, (int)((until - now) / 1000000 + 1)) > 0)
			read_event(channel);
	}
}
