/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: an RDMA connection on a ring
 *
 * A reliable-connected queue pair carries a stream of bytes in SENDs (rdma_send.c, rdma_receive.c)
 * and, beside them, READs of the owner (rdma_read.c). Three descriptors are watched: the event
 * channel of its completions, that of the connection manager, and an eventfd by which any thread
 * shuts it down. Everything that changes what the device should have only defers `task`, which runs
 * right before the next submission: it posts what is queued and arms the completion queue.
 *
 * The device writes into memory of this process until its queue pair is destroyed. That happens
 * when a channel dies, before anybody hears of it, so nothing can be written any more when
 * `read_done` tells an error or `closed` was called; and the queue pair goes before the slots do.
 * Unbinding waits for READs under way, and destroys the queue pair if they do not end soon.
 *
 * Freeing a healthy channel says farewell and waits a little for the peer's device to confirm what
 * was sent, as a TCP socket would in the background.
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "transport/rdma_channel.h"

#define LINGER_MS 500 /* for what was sent, when freeing */
#define UNBIND_MS 100 /* for READs under way, and for the farewell of a channel that is shut */

#define GREETING_MAGIC   0x4a52u /* "RJ" */
#define GREETING_VERSION 2
#define GREETING_TOKEN   16   /* where it begins */
#define SLOTS_MOST       1024 /* believed of a peer */
#define REFUSAL          1    /* behind the magic number, in the place of the version */

/* --- Greeting ------------------------------------------------------------------------ */

void rdma_greeting_encode(const struct rdma_greeting *greeting, uint8_t bytes[RDMA_GREETING_BYTES])
{
	uint16_t words[3] = {htole16(GREETING_MAGIC), htole16(GREETING_VERSION),
			     htole16(greeting->slots)};
	uint32_t slot_bytes = htole32(greeting->slot_bytes);

	memset(bytes, 0, RDMA_GREETING_BYTES);
	memcpy(bytes, words, sizeof(words));
	memcpy(bytes + 8, &slot_bytes, sizeof(slot_bytes));
	memcpy(bytes + GREETING_TOKEN, greeting->token, CONNECT_TOKEN_BYTES);
}

int rdma_greeting_decode(struct rdma_greeting *greeting, const void *bytes, size_t count)
{
	uint16_t words[3];
	uint32_t slot_bytes;

	if (!bytes || count < RDMA_GREETING_BYTES)
		return -EPROTO;
	memcpy(words, bytes, sizeof(words));
	memcpy(&slot_bytes, (const uint8_t *)bytes + 8, sizeof(slot_bytes));
	greeting->slots = le16toh(words[2]);
	greeting->slot_bytes = le32toh(slot_bytes);
	if (le16toh(words[0]) != GREETING_MAGIC || le16toh(words[1]) != GREETING_VERSION ||
	    greeting->slots < 2 || greeting->slots > SLOTS_MOST ||
	    greeting->slot_bytes < CHANNEL_HEAD_MAX)
		return -EPROTO;
	memcpy(greeting->token, (const uint8_t *)bytes + GREETING_TOKEN, CONNECT_TOKEN_BYTES);
	return 0;
}

void rdma_refusal_encode(uint8_t bytes[RDMA_REFUSAL_BYTES])
{
	uint16_t words[2] = {htole16(GREETING_MAGIC), htole16(REFUSAL)};

	memcpy(bytes, words, sizeof(words));
}

bool rdma_is_refusal(const void *bytes, size_t count)
{
	uint8_t refusal[RDMA_REFUSAL_BYTES];

	rdma_refusal_encode(refusal);
	return bytes && count >= sizeof(refusal) && !memcmp(bytes, refusal, sizeof(refusal));
}

int rdma_end_of(const struct rdma_channel *channel, int error)
{
	/* Its kernel takes leave of the connection for a peer that was killed, too. */
	if (!error && !channel->farewell)
		return -ECONNRESET;
	/* A farewell: its going resets what it leaves unanswered. */
	return error == -ECONNRESET && channel->farewell ? 0 : error;
}

/* --- Dying --------------------------------------------------------------------------- */

/* Afterwards the device has no part in the channel's memory. */
static void disconnect(struct rdma_channel *channel)
{
	if (!channel->id->qp)
		return;
	/* The peer learns now, not when the owner gets round to freeing. */
	channel->library->cm.disconnect(channel->id);
	channel->library->cm.destroy_qp(channel->id);
}

static void tell_lost_reads(struct rdma_channel *channel)
{
	int error = channel->error ? channel->error : -ECONNRESET;

	while (channel->posted_first < channel->posted_next) {
		struct rdma_posted posted = channel->posted[channel->posted_first++ % RDMA_POSTED];
		if (posted.kind == RDMA_POSTED_READ) {
			channel->reads--;
			channel->events->read_done(channel->user, posted.cookie, error);
		}
	}
}

void rdma_channel_die(struct rdma_channel *channel, int error)
{
	if (channel->dying)
		return;
	channel->dying = true;
	channel->error = rdma_is_shut(channel) ? -ECANCELED : rdma_end_of(channel, error);
	ring_undefer(channel->ring, &channel->task);
	ring_cancel(channel->ring, &channel->again);
	ring_cancel(channel->ring, &channel->watchdog);
	ring_cancel(channel->ring, &channel->pacer);
	rdma_events_unbind(channel);
	/* READs that did come are told as such. */
	rdma_events_take(channel, true);
	if (error == -ECANCELED && rdma_is_shut(channel) && !channel->send_error &&
	    !channel->peer_closed) {
		rdma_send_farewell(channel);
		rdma_events_settle(channel, true, true, channel->silent_looks ? 0 : UNBIND_MS);
	}
	disconnect(channel);
	tell_lost_reads(channel);
	channel->closed = true;
	channel->events->closed(channel->user, channel->error);
}

/* --- Binding ------------------------------------------------------------------------- */

static void run_task(struct ring_task *task)
{
	struct rdma_channel *channel = container_of(task, struct rdma_channel, task);

	rdma_send_run(channel);
	rdma_events_arm(channel);
}

static int bind_channel(struct channel *base, struct ring *ring,
			const struct channel_events *events, void *user, size_t receive_bytes)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	if (channel->ring)
		return -EBUSY;
	if (channel->dying || channel->send_error)
		return -EPIPE;
	int result = rdma_receive_open(channel, receive_bytes);
	if (result)
		return result;
	channel->ring = ring;
	channel->events = events;
	channel->user = user;
	result = rdma_events_bind(channel);
	if (result) {
		channel->ring = NULL;
		rdma_receive_close(channel, true);
		return result;
	}
	rdma_liveness_start(channel);
	ring_defer(ring, &channel->task);
	return 0;
}

static void unbind_channel(struct channel *base)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	if (!channel->ring)
		return;
	channel->unbinding = true;
	ring_undefer(channel->ring, &channel->task);
	ring_cancel(channel->ring, &channel->again);
	ring_cancel(channel->ring, &channel->watchdog);
	ring_cancel(channel->ring, &channel->pacer);
	rdma_events_unbind(channel);
	channel->unbinding = false;
	channel->ring = NULL;
	rdma_send_close(channel);
	if (!channel->dying && channel->reads &&
	    rdma_events_settle(channel, false, false, UNBIND_MS)) {
		channel->dying = true;
		disconnect(channel);
	}
	rdma_receive_close(channel, !channel->dying);
	channel->events = NULL;
}

static void release(struct rdma_channel *channel)
{
	const struct rdma_library *library = channel->library;

	if (channel->id->qp)
		library->cm.destroy_qp(channel->id);
	if (channel->queue) {
		library->verbs.ack_cq_events(channel->queue, channel->unacknowledged);
		library->verbs.destroy_cq(channel->queue);
	}
	if (channel->completions)
		library->verbs.destroy_comp_channel(channel->completions);
	if (channel->slots_region)
		library->verbs.dereg_mr(channel->slots_region);
	if (channel->slots)
		munmap(channel->slots, channel->slots_bytes);
	if (channel->shut_fd >= 0)
		close(channel->shut_fd);
	if (channel->domain)
		rdma_domain_put(channel->domain);
	free(channel);
}

static void free_channel(struct channel *base)
{
	struct rdma_channel *channel = rdma_channel_of(base);
	const struct rdma_library *library = channel->library;
	struct rdma_cm_id *id = channel->id;
	struct rdma_event_channel *events = channel->events_from;

	/* A peer that is gone, whose word of it lies here unread, would confirm nothing. */
	if (!channel->dying && !channel->send_error && !rdma_events_take(channel, false) &&
	    !rdma_events_hear(channel) && !channel->peer_closed) {
		rdma_send_farewell(channel);
		rdma_events_settle(channel, true, false, channel->silent_looks ? 0 : LINGER_MS);
	}
	disconnect(channel);
	rdma_receive_close(channel, false);
	release(channel);
	library->cm.destroy_id(id);
	library->cm.destroy_event_channel(events);
}

/* What is under way ends here, so that nothing is waited for any more. */
static void drop_channel(struct channel *base)
{
	struct rdma_channel *channel = rdma_channel_of(base);

	channel->dying = true;
	disconnect(channel);
}

/* --- Options and figures ------------------------------------------------------------- */

static void shutdown_channel(struct channel *base)
{
	static const uint64_t one = 1;
	struct rdma_channel *channel = rdma_channel_of(base);

	if (!atomic_exchange_explicit(&channel->shut, true, memory_order_relaxed)) {
		ssize_t written = write(channel->shut_fd, &one, sizeof(one));
		(void)written; /* cannot fail: the counter is 0 */
	}
}

static struct channel_totals totals(const struct channel *base)
{
	const struct rdma_channel *channel = rdma_channel_of_const(base);

	return (struct channel_totals){
		.sent_bytes = atomic_load_explicit(&channel->sent_bytes, memory_order_relaxed),
		.received_bytes =
			atomic_load_explicit(&channel->received_bytes, memory_order_relaxed),
		.reads = atomic_load_explicit(&channel->reads_total, memory_order_relaxed),
		.read_completions =
			atomic_load_explicit(&channel->read_completions, memory_order_relaxed),
		.other_requests =
			atomic_load_explicit(&channel->others_total, memory_order_relaxed),
	};
}

static const char *name(const struct channel *base)
{
	return rdma_channel_of_const(base)->name;
}

static const char *device(const struct channel *base)
{
	return rdma_channel_of_const(base)->device;
}

static const char *failure(const struct channel *base)
{
	return rdma_channel_of_const(base)->failure;
}

static const struct channel_ops channel_ops = {
	.bind = bind_channel,
	.unbind = unbind_channel,
	.send = rdma_send_message,
	.room = rdma_send_room,
	.want = rdma_receive_want,
	.pause = rdma_receive_pause,
	.shutdown = shutdown_channel,
	.free = free_channel,
	.drop = drop_channel,
	.pace = rdma_send_pace,
	.timeout = rdma_liveness_timeout,
	.totals = totals,
	.name = name,
	.device = device,
	.failure = failure,
	.expose = rdma_memory_expose,
	.land = rdma_memory_land,
	.read = rdma_read_start,
	.read_room = rdma_read_room,
	.on_demand = rdma_memory_on_demand,
};

/* --- Making -------------------------------------------------------------------------- */

static unsigned least(unsigned a, unsigned b)
{
	return a < b ? a : b;
}

static int make_queue(struct rdma_channel *channel)
{
	const struct rdma_library *library = channel->library;
	const struct ibv_device_attr *limits = &channel->domain->limits;
	unsigned receives = RDMA_SLOTS + RDMA_SLOTS_EXTRA;
	unsigned requests = least(RDMA_POSTED, (unsigned)limits->max_qp_wr);

	if (requests <= RDMA_OTHERS)
		return -ENOSPC;
	channel->read_limit = requests - RDMA_OTHERS;
	channel->completions = library->verbs.create_comp_channel(channel->id->verbs);
	if (!channel->completions || rdma_unblock(channel->completions->fd))
		return -errno;
	channel->queue = library->verbs.create_cq(channel->id->verbs, (int)(requests + receives),
						  NULL, channel->completions, 0);
	if (!channel->queue)
		return -errno;
	struct ibv_qp_init_attr attributes = {
		.send_cq = channel->queue,
		.recv_cq = channel->queue,
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = requests,
			.max_recv_wr = receives,
			.max_send_sge = 1,
			.max_recv_sge = 1,
			.max_inline_data = RDMA_INLINE},
	};
	if (library->cm.create_qp(channel->id, channel->domain->pd, &attributes)) {
		/* Not every device takes bytes along with the request. */
		attributes.cap.max_inline_data = 0;
		if (library->cm.create_qp(channel->id, channel->domain->pd, &attributes))
			return -errno;
	}
	channel->inline_bytes = least(attributes.cap.max_inline_data, RDMA_INLINE);
	return 0;
}

static int make_slots(struct rdma_channel *channel, struct jaunt_error *error)
{
	channel->slots_bytes = (RDMA_SLOTS + RDMA_SLOTS_EXTRA + RDMA_SEND_SLOTS) * RDMA_SLOT_BYTES;
	void *slots = mmap(NULL, channel->slots_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (slots == MAP_FAILED)
		return error_set(error, ENOMEM, "connect", "out of memory");
	madvise(slots, channel->slots_bytes, MADV_DONTFORK);
	channel->slots = slots;
	channel->slots_region =
		rdma_domain_register(channel->domain, slots, channel->slots_bytes,
				     IBV_ACCESS_LOCAL_WRITE, "preparing an RDMA channel", error);
	return channel->slots_region ? 0 : -errno;
}

static int set_up(struct rdma_channel *channel, uint64_t group, struct jaunt_error *error)
{
	int result = rdma_domain_get(&channel->domain, channel->id->verbs, group, error);

	if (result)
		return result;
	if (channel->id->verbs->device->transport_type == IBV_TRANSPORT_IWARP)
		return error_set(error, ENOTSUP, "no-rdma",
				 "%s is an iWARP device, which cannot be used; use InfiniBand or "
				 "RoCE, or tcp:",
				 channel->domain->device_name);
	result = make_slots(channel, error);
	if (result)
		return result;
	result = make_queue(channel);
	for (unsigned i = 0; !result && i < RDMA_SLOTS + RDMA_SLOTS_EXTRA; i++)
		result = rdma_receive_post(channel, i);
	if (!result) {
		channel->shut_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		result = channel->shut_fd < 0 ? -errno : 0;
	}
	if (result)
		return error_set(error, -result, "rdma",
				 "%s refuses a queue pair: %s; see its limits in `jaunt doctor'",
				 channel->domain->device_name, strerror(-result));
	return 0;
}

int rdma_channel_create(struct rdma_channel **out, struct rdma_cm_id *id,
			struct rdma_event_channel *events, const struct rdma_options *options,
			uint64_t group, struct rdma_greeting *greeting, struct jaunt_error *error)
{
	struct rdma_channel *channel = calloc(1, sizeof(*channel));

	if (!channel)
		return error_set(error, ENOMEM, "connect", "out of memory");
	channel->base.ops = &channel_ops;
	channel->library = rdma_library(NULL);
	channel->id = id;
	channel->events_from = events;
	channel->dialed = group != RDMA_GROUP_ACCEPTED;
	channel->shut_fd = -1;
	channel->odp = options->odp;
	channel->poll_ns = options->poll_us * 1000;
	channel->task.run = run_task;
	int result = set_up(channel, group, error);
	if (result) {
		release(channel);
		return result;
	}
	rdma_events_init(channel);
	rdma_liveness_init(channel);
	rdma_send_init(channel);
	*greeting = (struct rdma_greeting){
		.slots = RDMA_SLOTS,
		.slot_bytes = RDMA_SLOT_BYTES,
		.reads_served =
			(uint8_t)least((unsigned)channel->domain->limits.max_qp_rd_atom, UINT8_MAX),
		.reads_started = (uint8_t)least(
			(unsigned)channel->domain->limits.max_qp_init_rd_atom, UINT8_MAX),
	};
	*out = channel;
	return 0;
}

void rdma_channel_discard(struct rdma_channel *channel)
{
	release(channel);
}

static void describe(struct rdma_channel *channel)
{
	struct rdma_cm_id *id = channel->id;
	struct ibv_qp_init_attr made;
	struct ibv_qp_attr now = {0};
	const uint8_t *gid = id->route.addr.addr.ibaddr.sgid.raw;
	char near[RESOLVE_TEXT], far[RESOLVE_TEXT];
	size_t used = 0, room = sizeof(channel->device);

	resolve_format(&id->route.addr.src_storage, near);
	resolve_format(&id->route.addr.dst_storage, far);
	/* From who dialed to who listened: the same on both sides. */
	snprintf(channel->name, sizeof(channel->name), "%s → %s", channel->dialed ? near : far,
		 channel->dialed ? far : near);
	channel->library->verbs.query_qp(id->qp, &now,
					 IBV_QP_PATH_MTU | IBV_QP_MAX_QP_RD_ATOMIC |
						 IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT,
					 &made);
	used += (size_t)snprintf(channel->device, room, "%s port %u, GID ",
				 channel->domain->device_name, id->port_num);
	for (unsigned i = 0; i < 16; i += 2)
		used += (size_t)snprintf(channel->device + used, room - used, "%s%02x%02x",
					 i ? ":" : "", gid[i], gid[i + 1]);
	snprintf(channel->device + used, room - used,
		 ", MTU %u, %u reads at once, ack timeout %u, %u retries",
		 now.path_mtu ? 128u << now.path_mtu : 0, now.max_rd_atomic, now.timeout,
		 now.retry_cnt);
}

void rdma_channel_connected(struct rdma_channel *channel, const struct rdma_greeting *peer)
{
	channel->peer_slots = channel->credits = peer->slots;
	channel->peer_slot_bytes =
		peer->slot_bytes < RDMA_SLOT_BYTES ? peer->slot_bytes : RDMA_SLOT_BYTES;
	describe(channel);
}

struct channel *rdma_channel_base(struct rdma_channel *channel)
{
	return &channel->base;
}
