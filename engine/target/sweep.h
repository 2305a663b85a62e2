/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that rounds brought are in the file and not in the VM's view: each would cost the guest a
 * MINOR fault and a trip to a fault thread. So parts of memory with nothing outstanding leave the
 * userfaultfd, after which the kernel maps their pages by itself; some of them before the VM runs,
 * as many as take no time worth mention, the rest behind it. Elsewhere runs are CONTINUEd in the
 * background.
 *
 * Only present pages are touched, so no claim is needed: their bytes are the guest's already
 * (pagemap.h), and mapping them changes none. Not used with digests to check, where what rounds
 * brought is not present.
 */
#ifndef ENGINE_TARGET_SWEEP_H
#define ENGINE_TARGET_SWEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/stats.h"
#include "engine/target/shared.h"
#include "engine/worker.h"

#define SWEEP_CALLS 64u /* of 3 to 5 us each, before the VM runs */

struct sweep {
	struct worker worker;
	struct target_shared *shared;
	bool open;
	bool *released[JAUNT_MAX_REGIONS]; /* parts that have left the userfaultfd */
	uint64_t left;                     /* those that have not */
	/* Where the one pass over what is placed stands. Its thread's own. */
	size_t region;
	uint64_t page;
	bool mapped_all;
	unsigned slices;
	counter mapped; /* pages */
};

/* Room for a flag a part. 0 or -ENOMEM. */
int sweep_open(struct sweep *sweep, struct target_shared *shared);
/* Lets go of complete parts with at most `calls` system calls. Before the thread is started. */
void sweep_release(struct sweep *sweep, unsigned calls);
/* The rest, in a thread. 0 or -errno; without it everything works, with more faults. */
int sweep_start(struct sweep *sweep);
/* Ends the thread, frees the flags. Does nothing if it was not opened. */
void sweep_close(struct sweep *sweep);

#endif
