/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placing pages before FREEZE, while the VM still runs and writes at the source: rounds.
 *
 * Pages go into the memory file through the engine's view, a newer copy over an older one. Nobody
 * can see them: the VM here has not run, and no fault is answered before the epoch begins. What is
 * placed is entered in the page map as present, so that at FREEZE only what has become stale must
 * be taken out, and nothing walks all pages.
 *
 * With digests to check, a placed page stays absent and is remembered as `copied`: it becomes
 * visible only after a check, by place_check(). Zeros and holes are then told once more in the
 * epoch, and checked like any others.
 *
 * Each page is placed by the one stream that owns it, and only until the first FREEZE message:
 * place_end(). Holes may come on any stream, at any time of the first round: they never touch
 * bytes.
 */
#ifndef ENGINE_TARGET_PLACE_H
#define ENGINE_TARGET_PLACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/target/shared.h"

struct channel;
struct checker;
struct frame;

/* One stream's part in rounds. */
struct place {
	struct target_shared *shared;
	/* From a frame of a round to the ROUND that ends it. Stored before `placing` is looked at,
	 * and looked at after `placing` was cleared (both seq_cst): one of the two sees the other.
	 */
	_Atomic bool busy;
	uint64_t rounds; /* ended on this stream */
};

/* With digests: room to remember what was copied. 0 or -ENOMEM. */
int place_open(struct target_shared *shared);
void place_close(struct target_shared *shared);

/* Whether a frame of epoch 0 may be placed; marks the stream as busy with a round. */
bool place_begin(struct place *place);
/* Bytes of pages, or zeros, over whatever was placed before. 0, or -errno: they could not be. */
int place_pages(struct target_shared *shared, size_t region, uint64_t first, uint64_t count,
		const uint8_t *bytes);
int place_zero_run(struct target_shared *shared, size_t region, uint64_t first, uint64_t count);
/* Those of the pages that nothing was placed for are zeros: the file is empty there. */
void place_holes(struct target_shared *shared, size_t region, uint64_t first, uint64_t count);
/* ROUND: everything before it on this stream is placed; says so. NULL, or what is wrong with it. */
const char *place_round(struct place *place, struct channel *channel, const struct frame *frame);

/* No round follows. Then, per stream, whether one was in the middle of a round. */
void place_end(struct target_shared *shared);
bool place_busy(const struct place *place);
/* These pages were written since they were sent: absent, whatever was placed. After place_end(),
 * before the epoch begins. */
void place_stale(struct target_shared *shared, size_t region, uint64_t first, uint64_t count);

/* With digests, in the epoch: checks what was copied of a range of absent pages, makes visible what
 * is right, and forgets what is not, so that it is fetched. On a thread with a checker. */
void place_check(struct target_shared *shared, struct checker *checker, size_t region,
		 uint64_t first, uint64_t count, struct page_counters *counters);

#endif
