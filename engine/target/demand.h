/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fault thread: reads the faults of its shard, asks for absent pages on its urgent channel,
 * installs what comes back. Several faults are in flight at once, always.
 */
#ifndef ENGINE_TARGET_DEMAND_H
#define ENGINE_TARGET_DEMAND_H

#include <stdatomic.h>
#include <stdbool.h>

#include "engine/histogram.h"
#include "engine/stats.h"
#include "engine/target/checker.h"
#include "engine/target/handover.h"
#include "engine/target/readpage.h"
#include "engine/target/requests.h"
#include "engine/target/shared.h"
#include "engine/worker.h"

struct trace_lane;

struct demand {
	struct worker worker;
	struct target_shared *shared;
	unsigned shard;
	struct channel *channel;       /* owned; urgent; NULL until attached */
	struct channel *check_channel; /* owned until the checker has it; NULL without verify */
	struct handover handover;
	/* Its thread's own from here on, but for counters and latency, which anyone may read. */
	uint32_t attachment; /* the channels' */
	struct ring *ring;
	struct ring_watch watch;
	struct trace_lane *lane;
	struct checker checker;
	struct requests requests;
	struct readpage readpage;
	unsigned unsent; /* requests whose FETCH found no room */
	bool readable;   /* the userfaultfd has, or may have, more events */
	bool dead;       /* the channel is gone: faults on absent pages are entered and wait */
	struct page_counters counters;
	counter memory_bytes;     /* of this thread beyond the struct and its channel */
	struct histogram latency; /* event read → made visible */
};

/* Starts serving. The channels may be NULL only in tests. 0 or -errno; on an error the channels are
 * freed. */
int demand_start(struct demand *demand, struct target_shared *shared, unsigned shard,
		 struct channel *channel, struct channel *check_channel);
/* New channels in place of the old: what was asked for and has not come is asked for again. Takes
 * them over. */
void demand_reattach(struct demand *demand, struct channel *channel, struct channel *check_channel,
		     uint32_t attachment);
void demand_stop(struct demand *demand);

#endif
