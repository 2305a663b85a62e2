/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A simulated guest, link and pair of hosts, which the policy's own code decides about. Time is
 * computed, not spent. The world knows what the policy can only estimate, and is a little richer
 * than what the policy assumes: a guest may have several working sets of different rates, its rate
 * and the link's vary, and what first writes to tracked pages cost is time that it does not run.
 */
#ifndef BENCH_SIMULATE_WORLD_H
#define BENCH_SIMULATE_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/source/policy.h"

#define WORLD_SETS_MAX 4u

struct world {
	uint64_t ram_bytes, data_bytes, page_bytes;
	unsigned vcpus;
	unsigned cpus;  /* that these run on; 0: each its own */
	bool paced;     /* the guest has time to spare: it keeps its rates where it can */
	unsigned every; /* one page in so many is looked at first; 0: all are, for a moment */
	unsigned set_count;
	struct world_set {
		double bytes, rate; /* of this set; the rate is in bytes of pages a second */
	} sets[WORLD_SETS_MAX];
	double bandwidth; /* of the link, or of what the hosts can do */
	double noise;     /* relative deviation of rates and bandwidth, 0: none */
	double round_trip_ns, device_ns;
	struct policy_costs costs; /* the true ones */
	uint64_t seed;
};

struct world_result {
	enum policy_action end; /* switch, finish or abort */
	unsigned rounds;
	double downtime_ns, stall_ns, total_ns, cost_ns;
	double sent_bytes;
	/* What was predicted at the last decision, for the way that was then taken. */
	struct policy_prediction predicted;
};

typedef void world_tell(void *context, const struct policy_input *input,
			const struct policy_decision *decision);

/* Makes two sets of the one: a share of its bytes takes a share of its writes. */
void world_split(struct world *world, double bytes, double writes);

/* Moves the guest once; `tell` (or NULL) hears of each decision. */
void world_run(const struct world *world, enum policy_mode mode, const struct policy_limits *limits,
	       world_tell *tell, void *context, struct world_result *result);

#endif
