/* SPDX-License-Identifier: Apache-2.0 */
/* What the threads of a source that send pages share. */
#ifndef ENGINE_SOURCE_SHARED_H
#define ENGINE_SOURCE_SHARED_H

#include "engine/guestmem.h"
#include "engine/session.h"
#include "engine/source/dirty.h"

struct trace;

struct source_shared {
	struct session session;
	struct guestmem memory; /* does not change from FREEZE on */
	/* What the target lacks, while a tracker runs: source_track(). Exists from then on. */
	struct dirty dirty;
	/* `dirty` exists and is being marked. Set before the first page is read (seq_cst), so that
	 * whoever reports a change and sees it clear has changed what is read later. */
	_Atomic bool tracking;
	_Atomic bool discards; /* the guest has given pages back since tracking began */
	struct trace *trace;   /* or NULL */
	unsigned streams;      /* does not change once they are there */
	_Atomic bool paced;    /* what is sent is limited: the target is not to READ past that */
};

/* Whether a frame of the target names pages that exist. */
static inline bool source_frame_ok(const struct source_shared *shared, const struct frame *frame)
{
	return frame->region < shared->memory.region_count &&
	       frame_in_region(frame, shared->memory.regions[frame->region].pages,
			       shared->memory.regions[frame->region].page_bytes);
}

#endif
