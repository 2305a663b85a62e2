/* SPDX-License-Identifier: Apache-2.0 */
/* A page server of the source: answers the FETCHes of one urgent channel. */
#ifndef ENGINE_SOURCE_SERVE_H
#define ENGINE_SOURCE_SERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/source/shared.h"
#include "engine/stats.h"
#include "engine/worker.h"

#define SERVE_SLOTS        32u
#define SERVE_BUFFER_BYTES 65536u
#define SERVE_PENDING      4096u /* fetches received and not answered: more ends the channel */

struct trace_lane;

struct serve {
	struct worker worker;
	struct source_shared *shared;
	unsigned index;
	struct channel *channel; /* owned */
	/* Its thread's own from here on, but for the counters. */
	struct trace_lane *lane;
	uint8_t *slots; /* pages on their way out */
	uint64_t slot_bytes;
	unsigned slot_count;
	uint64_t busy; /* bitmap of slots that the channel holds */
	struct {
		uint64_t first;
		uint32_t count;
		uint16_t region;
	} pending[SERVE_PENDING]; /* ring */
	unsigned pending_head, pending_count;
	bool attached, dead;
	counter fetches, payload_bytes, wire_bytes;
};

/* Takes the channels over, also on an error. 0 or -errno. */
int serve_start(struct serve *serve, struct source_shared *shared, unsigned index,
		struct channel *channel);
void serve_stop(struct serve *serve);

#endif
