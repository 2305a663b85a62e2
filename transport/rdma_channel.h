/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One RDMA connection as its files share it: rdma_channel.c (life and death), rdma_events.c (what
 * the device and the connection manager say), rdma_send.c, rdma_receive.c, rdma_read.c,
 * rdma_liveness.c. All of it belongs to the thread of the ring, but for the atomics.
 */
#ifndef TRANSPORT_RDMA_CHANNEL_H
#define TRANSPORT_RDMA_CHANNEL_H

#include <linux/time_types.h>
#include <stdatomic.h>

#include "base/bits.h"
#include "transport/rdma.h"
#include "transport/rdma_domain.h"
#include "transport/resolve.h"
#include "transport/ring.h"

#define RDMA_SLOT_BYTES KIB(16)
#define RDMA_SLOTS      32 /* to receive into, that the peer may count on */
/* Beyond those: messages that only give credit back (at most two can be unread, each giving back at
 * least half of all) and the farewell. */
#define RDMA_SLOTS_EXTRA 4
#define RDMA_SEND_SLOTS  16
#define RDMA_QUEUE       64  /* messages of the owner */
#define RDMA_OTHERS      32  /* requests at once that are no READs */
#define RDMA_READS       128 /* READs at once, at most */
#define RDMA_POSTED      (RDMA_OTHERS + RDMA_READS)
#define RDMA_INLINE      64 /* bytes of a message that the device takes along with the request */

/* The immediate data of every message. */
#define RDMA_IMM_CREDITS  0xffffu /* slots that are free again */
#define RDMA_IMM_FAREWELL 0x10000u

struct rdma_message {
	uint8_t head[CHANNEL_HEAD_MAX];
	size_t head_bytes;
	const uint8_t *payload;
	size_t payload_bytes;
	uint64_t cookie;
};

/* A request that the device has, in the order of posting. */
struct rdma_posted {
	enum { RDMA_POSTED_SEND, RDMA_POSTED_CREDIT, RDMA_POSTED_PROBE, RDMA_POSTED_READ } kind;
	unsigned messages; /* of the owner's that end in this SEND */
	uint64_t cookie;   /* of a READ */
};

/* What the completion queue makes an event of. */
enum rdma_armed {
	RDMA_UNARMED,
	RDMA_ARMED_MESSAGES, /* messages of the peer */
	RDMA_ARMED_ALL,
};

#define RDMA_RECEIVE_ID (UINT64_C(1) << 63) /* the id of a receive; its slot below */
#define RDMA_BATCH      16                  /* completions taken at once */

struct rdma_channel {
	struct channel base;
	const struct rdma_library *library;
	struct rdma_domain *domain;
	struct rdma_event_channel *events_from;
	struct rdma_cm_id *id; /* id->qp NULL: destroyed, the device has no part in it any more */
	struct ibv_comp_channel *completions;
	struct ibv_cq *queue;
	unsigned unacknowledged; /* events of `completions` */
	enum rdma_armed armed;
	int shut_fd; /* an eventfd, written by channel_shutdown() */
	bool dialed;
	enum on_demand odp; /* as the address says; of a device that can */
	char name[2 * RESOLVE_TEXT + 8];
	char device[160];
	char failure[160]; /* what the device said when the channel died */

	/* Registered: receive slots, then send slots. */
	uint8_t *slots;
	size_t slots_bytes;
	struct ibv_mr *slots_region;

	/* NULL: not bound */
	struct ring *ring;
	const struct channel_events *events;
	void *user;
	struct ring_task task;
	struct ring_operation again, watchdog, pacer;
	struct ring_watch completion_watch, event_watch, shut_watch;

	/* Receiving: what is in slots, and the buffer it is copied to. */
	struct {
		uint16_t slot;
		uint32_t bytes;
	} arrived[RDMA_SLOTS + RDMA_SLOTS_EXTRA];
	unsigned arrived_first, arrived_count;
	uint32_t arrived_taken; /* bytes of the first that are copied */
	unsigned owed;          /* slots to give back to the peer */
	uint8_t *buffer;        /* kept while unbound if it holds bytes */
	size_t buffer_bytes, start, end;
	size_t offered; /* bytes that `received` has seen and left */
	size_t wanted;
	bool paused, delivering, offer_again;
	bool peer_closed; /* nothing more will arrive */
	bool farewell;    /* and the peer said so itself: it was not killed */

	/* Sending. */
	struct rdma_message messages[RDMA_QUEUE]; /* those of `sent` still to be called included */
	unsigned message_first, message_count;
	unsigned message_posted; /* of those, posted whole */
	size_t posted_of_next;   /* bytes of the one behind them */
	unsigned credits;
	unsigned peer_slots;
	uint32_t peer_slot_bytes;
	unsigned send_slot; /* the next */
	unsigned sends;     /* posted and not known to be done */
	int send_error;     /* nothing can be sent any more */

	/* Requests that the device has: [posted_first, posted_next) */
	struct rdma_posted posted[RDMA_POSTED];
	uint64_t posted_first, posted_next;
	unsigned others, reads; /* of those */
	unsigned unsignaled;    /* since the last that asks for a completion */
	unsigned read_limit;
	unsigned inline_bytes;

	uint64_t pace_bytes_per_s; /* 0: none */
	uint64_t pace_next_ns;     /* nothing is sent before */
	struct __kernel_timespec pace_wait;

	uint32_t timeout_ms;          /* 0: none */
	uint64_t heard, heard_before; /* signs of life of the peer's device, now and a look ago */
	unsigned silent_looks;
	bool probing;
	struct __kernel_timespec watch_interval;

	/* Completions that were seen and not yet told of. */
	struct ibv_wc seen[RDMA_BATCH];
	int seen_count;
	uint32_t poll_ns;
	unsigned polls_failed; /* in a row: then it rests */

	int doomed; /* the device refused something where nobody could be told: die of it */
	bool dying, closed, unbinding;
	int error; /* why; valid when dying */

	/* Set by channel_shutdown() before it acts. Relaxed: the eventfd orders it. */
	_Atomic bool shut;
	/* Written by the owner alone, read by anybody. Relaxed: they order nothing. */
	_Atomic uint64_t sent_bytes, received_bytes;
	_Atomic uint64_t reads_total, read_completions, others_total;
};

static inline struct rdma_channel *rdma_channel_of(struct channel *base)
{
	return container_of(base, struct rdma_channel, base);
}

static inline const struct rdma_channel *rdma_channel_of_const(const struct channel *base)
{
	return container_of(base, const struct rdma_channel, base);
}

static inline void rdma_count(_Atomic uint64_t *total, uint64_t more)
{
	/* One writer: no need for a locked addition. */
	uint64_t before = atomic_load_explicit(total, memory_order_relaxed);
	atomic_store_explicit(total, before + more, memory_order_relaxed);
}

static inline bool rdma_is_shut(const struct rdma_channel *channel)
{
	return atomic_load_explicit(&channel->shut, memory_order_relaxed);
}

/* What an end is to the owner that came with `error`, 0: the peer is gone: 0 only if it said
 * farewell. */
int rdma_end_of(const struct rdma_channel *channel, int error);
/* Ends the connection, tells what was under way and calls `closed`. Out of a callback of the ring,
 * not from within one of the channel's. The channel may be gone afterwards. */
void rdma_channel_die(struct rdma_channel *channel, int error);

/* --- What the device says (rdma_events.c) --- */

void rdma_events_init(struct rdma_channel *channel);
int rdma_events_bind(struct rdma_channel *channel); /* -ENOMEM */
void rdma_events_unbind(struct rdma_channel *channel);
/* Has the completions looked at, and bytes delivered, by the next ring_wait(). */
void rdma_events_again(struct rdma_channel *channel);
/* Takes what is complete, without delivering bytes: 0, or -errno of what went wrong (`failure` says
 * what). `tell`: with callbacks of the owner. */
int rdma_events_take(struct rdma_channel *channel, bool tell);
/* Takes what the connection manager has said: 0, or -errno to die of. No callbacks. */
int rdma_events_hear(struct rdma_channel *channel);
/* Waits until no READ is under way, or, with `all`, nothing that was posted; at most timeout_ms: 0,
 * -ETIMEDOUT, -errno. `tell`: with callbacks of the owner. */
int rdma_events_settle(struct rdma_channel *channel, bool all, bool tell, unsigned timeout_ms);
/* Before sleeping: has the device say when there is something, and looks once more. No callbacks.
 */
void rdma_events_arm(struct rdma_channel *channel);

/* --- Sending (rdma_send.c) --- */

/* Hands a request of `kind` to the device; the caller has set what it is. 0 or -errno. */
int rdma_post(struct rdma_channel *channel, struct ibv_send_wr *request,
	      const struct rdma_posted *posted, bool signaled);
/* Sends what is queued and can go; before a submission. No callbacks. */
void rdma_send_run(struct rdma_channel *channel);
/* A SEND is done: its slot is free, and the owner hears of the messages that ended in it. */
void rdma_send_done(struct rdma_channel *channel, unsigned messages, bool tell);
/* Says farewell, so that the peer knows of the end although the message of the connection manager
 * may be lost. */
void rdma_send_farewell(struct rdma_channel *channel);
void rdma_send_init(struct rdma_channel *channel);
int rdma_send_pace(struct channel *base, uint64_t bytes_per_s);
void rdma_send_close(struct rdma_channel *channel);
int rdma_send_message(struct channel *base, const void *head, size_t head_bytes,
		      const void *payload, size_t payload_bytes, uint64_t cookie);
size_t rdma_send_room(const struct channel *base);

/* --- Receiving (rdma_receive.c) --- */

int rdma_receive_post(struct rdma_channel *channel, unsigned slot);
/* A message has come. 0 or -EPROTO. */
int rdma_receive_arrived(struct rdma_channel *channel, unsigned slot, uint32_t bytes,
			 uint32_t immediate);
/* Offers what there is. 0, or the error to die with (1: the peer has closed and all is told). */
int rdma_receive_deliver(struct rdma_channel *channel);
int rdma_receive_open(struct rdma_channel *channel, size_t bytes); /* -ENOMEM, -EMSGSIZE */
void rdma_receive_close(struct rdma_channel *channel, bool keep);
void rdma_receive_want(struct channel *base, size_t bytes);
void rdma_receive_pause(struct channel *base, bool paused);

/* --- READs, and the memory for them (rdma_read.c, rdma_memory.c) --- */

int rdma_read_start(struct channel *base, struct landing *landing, size_t offset, uint64_t address,
		    uint32_t key, size_t bytes, uint64_t cookie);
size_t rdma_read_room(const struct channel *base);
enum on_demand rdma_memory_on_demand(const struct channel *base);
int rdma_memory_expose(struct exposure *out, const struct channel *base, void *memory, size_t bytes,
		       bool on_demand, struct jaunt_error *error);
int rdma_memory_land(struct landing *out, struct channel *base, void *memory, size_t bytes,
		     struct jaunt_error *error);
/* Whether [offset, offset + bytes) lies in it; its key then. */
bool rdma_memory_key(const struct landing *landing, size_t offset, size_t bytes, uint32_t *key);

/* --- Liveness (rdma_liveness.c) --- */

void rdma_liveness_init(struct rdma_channel *channel);
void rdma_liveness_start(struct rdma_channel *channel); /* if there is a timeout */
int rdma_liveness_timeout(struct channel *base, uint32_t timeout_ms);

#endif
