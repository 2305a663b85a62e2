/* SPDX-License-Identifier: Apache-2.0 */
/* The background pusher of one stream of the source: streams what the target grants, in the order
 * it was granted, and (on the first stream) tells of holes as they are found. */
#ifndef ENGINE_SOURCE_PUSHER_H
#define ENGINE_SOURCE_PUSHER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/source/holes.h"
#include "engine/source/rounds.h"
#include "engine/source/shared.h"
#include "engine/stats.h"
#include "engine/worker.h"

#define PUSHER_BUFFER_BYTES (16u << 10)
#define PUSHER_RUN_PAGES    64u /* 4 KiB pages in one DATA frame */
#define PUSHER_IN_FLIGHT    8u  /* DATA frames that the channel holds: bounded bulk */

struct trace_lane;

struct pusher {
	struct worker worker;
	struct source_shared *shared;
	unsigned index;
	struct channel *channel; /* owned */
	struct holes *holes;     /* the first stream's, else NULL; not owned */
	struct rounds *rounds;   /* not owned; none has begun in modes without them */
	/* Its thread's own from here on, but for the counters. */
	struct trace_lane *lane;
	struct {
		uint64_t first;
		uint32_t count;
		uint16_t region;
		bool told, describe;
	} * grants; /* ring; received and not answered: more end the channel */
	unsigned grant_head, grant_count, grants_max;
	uint64_t at;                      /* page of the first grant that comes next */
	uint8_t *slots[PUSHER_IN_FLIGHT]; /* copies, where a page may not be touched; lazily */
	uint64_t slot_bytes;
	unsigned copies; /* slots that may have one */
	uint32_t busy;   /* bitmap of frames that the channel holds */
	struct round_walk walk;
	bool attached, dead;
	_Atomic int64_t pace; /* wanted limit, bytes per second; -1: as it is */
	counter payload_bytes, wire_bytes, zero_pages, data_pages;
	counter memory_bytes; /* of this thread beyond the struct */
};

/* Takes the channels over, also on an error. 0 or -errno. */
int pusher_start(struct pusher *pusher, struct source_shared *shared, unsigned index,
		 struct channel *channel, struct holes *holes, struct rounds *rounds);
/* Limits what it sends, 0: not at all. Any thread. */
void pusher_pace(struct pusher *pusher, uint64_t bytes_per_s);
void pusher_stop(struct pusher *pusher);

#endif
