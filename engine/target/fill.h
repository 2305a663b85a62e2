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
#include "engine/target/handover.h"
#include "engine/target/place.h"
#include "engine/target/shared.h"
#include "engine/target/window.h"
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
	uint64_t bytes;   /* of the pages that it was asked for with; while used */
	bool described;   /* some grant asked only what is zero: the rest is to be READ */
	unsigned reading; /* READs of it under way */
	/* Those of its pages that were suspects when the grants were made, by words of the map. */
	uint64_t suspects[FILL_BLOCK_WORDS];
	struct {
		uint64_t first, count;
	} range[FILL_BLOCK_RUNS];
	uint8_t grants[FILL_BLOCK_RUNS * FRAME_BYTES];
};

/* The READs of a stream; see pull.c. */
#define PULL_READS_MAX 64u

struct pull {
	struct landing landing; /* all zero: nothing is READ */
	size_t slot_bytes;
	unsigned slots;
	uint64_t busy; /* slots that belong to the device */
	struct {
		uint64_t first, count; /* pages */
		unsigned block;
	} slot[PULL_READS_MAX];
	unsigned order[FILL_BLOCKS_MAX]; /* ring of the blocks to READ from, oldest first */
	unsigned head, count;
	uint64_t at; /* page of the oldest that comes next; UINT64_MAX: its first */
};

struct fill {
	struct worker worker;
	struct target_shared *shared;
	unsigned index;
	struct channel *channel;       /* owned */
	struct channel *check_channel; /* owned until the checker has it */
	struct handover handover;
	/* Its thread's own from here on, but for the counters. */
	uint32_t attachment; /* the channels' */
	struct ring *ring;
	struct trace_lane *lane;
	struct checker checker;
	struct place place;
	struct fill_block *blocks[FILL_BLOCKS_MAX]; /* allocated when first used */
	unsigned order[FILL_BLOCKS_MAX]; /* ring of the blocks that are out, oldest first */
	unsigned order_head, order_count;
	/* What to keep out, in whole blocks. A block of which little is absent counts for little,
	 * so there may be more of them. */
	struct window window;
	uint64_t out_bytes; /* of the blocks that are used */
	unsigned out_count; /* of these */
	unsigned sending;   /* of these; see there */
	struct frame frame; /* being received; payload left: `left` pages */
	uint32_t left;
	bool dead;
	bool granting; /* the first grant has been made */
	struct pull pull;
	struct page_counters counters;
	counter memory_bytes; /* of this thread beyond the struct */
};

/* Takes the channels over, also on an error. 0 or -errno. */
int fill_start(struct fill *fill, struct target_shared *shared, unsigned index,
	       struct channel *channel, struct channel *check_channel);
/* New channels in place of the old: what was granted and has not come is absent, and will be
 * granted again. Takes them over. */
void fill_reattach(struct fill *fill, struct channel *channel, struct channel *check_channel,
		   uint32_t attachment);
void fill_stop(struct fill *fill);

/* --- Shared by fill.c, blocks.c and pull.c
 * ------------------------------------------------------------------------ */

/* Asks for the next block that the prefetcher has; false: it has none, or there is no room. */
bool fill_ask_for_block(struct fill *fill);
/* The channel's `sent`: the grants of a block are its own again. */
void fill_sent(void *user, uint64_t cookie);
/* What was asked for on channels that are gone will not come: it is offered again. */
void fill_return_blocks(struct fill *fill);

/* Pages have come, as answers to what was asked for with `block` (or NULL): checks and installs
 * them. At most 64, bounded by what one ioctl should cover. */
void fill_take_pages(struct fill *fill, const struct fill_block *block, size_t region,
		     uint64_t first, unsigned count, const uint8_t *bytes);
/* All that was asked for of it has come, or never will. */
void fill_return_block(struct fill *fill, struct fill_block *block);

void pull_open(struct fill *fill);
void pull_close(struct fill *fill); /* after the channel */
/* Whether absent pages from `first` on are to be described only; shortens the run to those. */
bool pull_grant(struct fill *fill, struct fill_block *block, uint64_t first, uint64_t *count);
/* The grants of a block were answered: READs what is still absent, and returns it. */
void pull_add(struct fill *fill, unsigned block);
void pull_pump(struct fill *fill);
void pull_done(void *user, uint64_t cookie, int error);

#endif
