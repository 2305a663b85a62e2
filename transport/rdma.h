/* SPDX-License-Identifier: Apache-2.0 */
/* What making connections and the channels of the RDMA transport share. */
#ifndef TRANSPORT_RDMA_H
#define TRANSPORT_RDMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/provider.h"
#include "transport/rdma_library.h"

/* What an address may add behind its port: ",name=value" each. Those of the dialing end hold for
 * both directions of a connection but for `poll_us`, which is each end's own. */
struct rdma_options {
	int traffic_class; /* 0 to 255, -1: the fabric's default; selects the service level too */
	int ack_timeout;   /* 4.096 us * 2^n, 1 to 31; -1: what the connection manager computes */
	unsigned retries;  /* of an unanswered packet, 0 to 7 */
	enum on_demand odp;
	uint32_t poll_us; /* look for completions so long before sleeping */
};

int rdma_options_parse(struct rdma_options *options, const struct address *address,
		       struct jaunt_error *error);

/* What each end tells the other when it connects. */
struct rdma_greeting {
	uint16_t slots; /* messages it can take unread */
	uint32_t slot_bytes;
	uint8_t reads_served;               /* READs of the peer that its device serves at once */
	uint8_t reads_started;              /* READs that it may start at once */
	uint8_t token[CONNECT_TOKEN_BYTES]; /* of who connects; in the answer all zero */
};

#define RDMA_GREETING_BYTES (16 + CONNECT_TOKEN_BYTES) /* all that a request may carry */

/* What a listener says to one that it refuses by its token. */
#define RDMA_REFUSAL_BYTES 4
void rdma_refusal_encode(uint8_t bytes[RDMA_REFUSAL_BYTES]);
bool rdma_is_refusal(const void *bytes, size_t count);

void rdma_greeting_encode(const struct rdma_greeting *greeting, uint8_t bytes[RDMA_GREETING_BYTES]);
/* `count` bytes came. -EPROTO: not from a channel of this transport, or of another version of it,
 * or out of bounds. */
int rdma_greeting_decode(struct rdma_greeting *greeting, const void *bytes, size_t count);

/* Of a channel that was accepted: what nobody may READ. */
#define RDMA_GROUP_ACCEPTED UINT64_MAX

/* A fresh channel around `id`, whose events come through `events`, both not owned before it
 * succeeds: its queue pair is made and takes messages. `group`: of what may be READ over it.
 * `greeting` is what to tell the peer. Fills `error`. */
struct rdma_channel;
int rdma_channel_create(struct rdma_channel **out, struct rdma_cm_id *id,
			struct rdma_event_channel *events, const struct rdma_options *options,
			uint64_t group, struct rdma_greeting *greeting, struct jaunt_error *error);
/* Before it is connected: undoes rdma_channel_create(); the id and its events stay. */
void rdma_channel_discard(struct rdma_channel *channel);
/* Once the peer's greeting is known. */
void rdma_channel_connected(struct rdma_channel *channel, const struct rdma_greeting *peer);
struct channel *rdma_channel_base(struct rdma_channel *channel);

int rdma_transport_listen(struct listener **out, const struct address *address,
			  struct jaunt_error *error);

/* A descriptor of the libraries: does not block, and is not inherited. -1: errno. */
int rdma_unblock(int fd);

/* An event channel whose descriptor is so; NULL: errno. */
struct rdma_event_channel *rdma_events_create(const struct rdma_library *library);

#endif
