/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target's door: accepts connections and reads the 96 bytes that begin each, without letting a
 * silent or senseless one hold up the others. What proves to belong to us is handed on, unbound.
 * Who is then found to have come in vain is told why, and seen out.
 */
#ifndef ENGINE_TARGET_GATE_H
#define ENGINE_TARGET_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/session.h"
#include "proto/control.h"

#define GATE_PENDING_MAX 128u
/* Of those that were asked for a token first: they come over a transport where each costs a queue
 * pair and memory that stays in place. */
#define GATE_ADMITTED_MAX 16u

struct gate;

struct gate_visitor {
	struct gate *gate;
	struct channel *channel; /* owned; NULL: free slot */
	uint64_t deadline_ns;
	struct attach attach;
	bool arrived;      /* the preamble is there and makes sense */
	bool refused;      /* to be freed outside of its own callback */
	bool leaving;      /* was told why; stays until it has gone, or its time is up */
	uint8_t *farewell; /* what it is being told; freed after the channel */
};

struct gate {
	struct listener *listener; /* not owned */
	struct ring *ring;
	uint32_t timeout_ms;
	bool (*admit)(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]);
	void *user;
	struct gate_visitor visitors[GATE_PENDING_MAX];
	/* Why the last visitor was turned away; empty: none was. */
	char turned_away[256];
	uint64_t turned_away_count;
};

/* `admit`: see listener_admit(); NULL: everybody. */
int gate_open(struct gate *gate, struct listener *listener, struct ring *ring, uint32_t timeout_ms,
	      bool (*admit)(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]), void *user);
void gate_close(struct gate *gate);

/* Call after every wait on the ring: lets go of who is too late. Takes one visitor whose preamble
 * is complete: true, and the caller owns the unbound channel. */
bool gate_take(struct gate *gate, struct channel **channel, struct attach *attach);

/* Tells one that was taken (control, unbound) with REFUSED why it cannot stay. Takes it over. */
void gate_refuse(struct gate *gate, struct channel *channel, const char *reason, const char *text);

/* When gate_take() should be called at the latest (CLOCK_MONOTONIC), UINT64_MAX: no hurry. */
uint64_t gate_deadline_ns(const struct gate *gate);

#endif
