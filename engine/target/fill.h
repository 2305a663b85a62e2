/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream thread of the target: asks for ranges (GRANT) in the order the prefetcher says, and
 * installs what the source streams, and the holes it tells of.
 */
#ifndef ENGINE_TARGET_FILL_H
#define ENGINE_TARGET_FILL_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/budget.h"
#include "engine/stats.h"
#include "engine/target/checker.h"
#include "engine/target/shared.h"
#include "engine/worker.h"

struct trace_lane;

/* Blocks asked for and not answered, per stream. */
#define FILL_BLOCKS_MAX BUDGET_BLOCKS
#define FILL_BLOCKS_MIN BUDGET_BLOCKS_LEAST
#define FILL_BLOCK_RUNS BUDGET_BLOCK_GRANTS

#define FILL_BLOCK_WORDS 8u /* words of the map that a block of small pages covers */

struct fill_block {
	struct prefetch_block block;
	unsigned runs;     /* grants not yet ended */
	unsigned next_end; /* index of the grant that ends next */
	bool sending;      /* `grants` belongs to the channel */
	bool used;
	/* Those of its pages that were suspects when the grants were made, by words of the map. */
	uint64_t suspects[FILL_BLOCK_WORDS];
	struct {
		uint64_t first, count;
	} range[FILL_BLOCK_RUNS];
	uint8_t grants[FILL_BLOCK_RUNS * FRAME_BYTES];
};

struct fill {
	struct worker worker;
	struct target_shared *shared;
	unsigned index;
	struct channel *channel;       /* owned */
	struct channel *check_channel; /* owned until the checker has it */
	/* Its thread's own from here on, but for the counters. */
	struct ring *ring;
	struct trace_lane *lane;
	struct checker checker;
	struct fill_block *blocks[FILL_BLOCKS_MAX]; /* allocated when first used */
	unsigned order[FILL_BLOCKS_MAX]; /* ring of the blocks that are out, oldest first */
	unsigned order_head, order_count;
	_Atomic unsigned window; /* blocks to keep out; read by status */
	struct frame frame;      /* being received; payload left: `left` pages */
	uint32_t left;
	unsigned window_max;
	bool dead;
	uint64_t granted_ns,
		granted_bytes;             /* when the oldest of an idle stream's grants went out */
	uint64_t round_trip_ns;            /* shortest seen from GRANT to its end, idle stream */
	uint64_t rate_from_ns, rate_bytes; /* of the current measurement of the rate */
	struct page_counters counters;
	counter memory_bytes; /* of this thread beyond the struct */
};

/* Takes the channels over, also on an error. 0 or -errno. */
int fill_start(struct fill *fill, struct target_shared *shared, unsigned index,
	       struct channel *channel, struct channel *check_channel);
void fill_stop(struct fill *fill);

#endif
