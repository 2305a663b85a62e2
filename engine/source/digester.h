/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `--verify` at the source: computes the digests that the target asks for, from the frozen memory,
 * by a path that shares nothing with the one that sends pages: own channels, own thread, own reads.
 */
#ifndef ENGINE_SOURCE_DIGESTER_H
#define ENGINE_SOURCE_DIGESTER_H

#include <stdbool.h>

#include "engine/source/shared.h"
#include "engine/worker.h"

#define DIGESTER_CHANNELS 80u /* 16 urgent and 64 streams */

struct trace_lane;
struct digester;

struct digester_channel {
	struct digester *digester;
	struct channel *channel;
	unsigned index;
	bool attached, dead, sending;
	uint64_t digests[FRAME_DIGEST_PAGES]; /* of the answer that is being sent */
};

struct digester {
	struct worker worker;
	struct source_shared *shared;
	struct digester_channel *channels; /* each owns its channel */
	unsigned count;
	struct trace_lane *lane; /* the thread's */
	uint8_t *page;           /* what is being read */
	uint64_t page_bytes;
};

/* Takes the channels over (on -ENOMEM those that are still in `channels` were not). 0 or -errno. */
int digester_start(struct digester *digester, struct source_shared *shared,
		   struct channel **channels, unsigned count);
/* Memory that it holds with so many channels. */
uint64_t digester_bytes(const struct guestmem *memory, unsigned channels);
void digester_stop(struct digester *digester);

#endif
