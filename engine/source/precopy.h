/* SPDX-License-Identifier: Apache-2.0 */
/* Copying memory while the VM runs: rounds, what the policy says of them, and what is stale. */
#ifndef ENGINE_SOURCE_PRECOPY_H
#define ENGINE_SOURCE_PRECOPY_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/source/decision.h"
#include "engine/source/estimate.h"
#include "engine/source/policy.h"
#include "engine/source/rounds.h"
#include "engine/source/tracker.h"
#include "jaunt.h"

struct source;

/* The thread in run() owns it, but for the rounds. */
struct precopy {
	struct rounds rounds;
	struct estimate estimate;
	struct policy_input input;
	struct policy_decision decision;
	struct decisions decisions;
	enum tracker_kind tracker; /* as it was asked for */
	bool can_track;
	uint64_t round_ns, round_bytes; /* when the round began, and what had been sent by then */
	uint64_t
		first_bytes; /* sent by the end of the first round; 0: it did not come to its end */
	bool throttled;      /* vCPUs were held at some time */
	uint64_t collect_ns; /* when the last collect was */
	uint64_t progress_ns, progress_bytes; /* when something was sent last */
	unsigned throttle;                    /* percent, as asked of the driver last */
};

/* Rounds, until the policy ends them; in a mode without any, nothing. Decides whether the memory is
 * to be complete before the VM runs there, and tells what is stale ahead of the pause. 0, or -errno
 * with `error`. */
int source_precopy(struct source *source, struct jaunt_error *error);
/* Makes every stream look around. Any thread, while they run. */
void source_wake_streams(void *user);
/* The guest is not held back any more; writes are still tracked. */
void source_unthrottle(struct source *source);
/* Nothing of it is left: the guest is as fast as before. */
void source_precopy_end(struct source *source);

#endif
