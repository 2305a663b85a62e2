/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the policy must know of the guest and the link and nobody says: estimated from what is seen.
 * Arithmetic alone: no clock, no I/O. Owned by the source's thread.
 *
 * Writes: a guest that writes pages at a rate r (bytes a second, the same page counted each time),
 * all over a working set of W bytes, dirties in a time t
 *
 *	D(t) = W (1 - exp(-r t / W))
 *
 * distinct bytes: r t at first, W in the end. r and W are fitted to the last collects, by least
 * squares of the logarithms, newer ones counting more, and samples of few pages less. Collects
 *after different times are what tells the two apart: one of 10 ms and one of a whole round say more
 *than ten of a round.
 *
 * Bandwidth: a mean of the rates of the last half second or so in which there was something to
 * send.
 */
#ifndef ENGINE_SOURCE_ESTIMATE_H
#define ENGINE_SOURCE_ESTIMATE_H

#include <stdint.h>

#include "engine/source/policy.h"

#define ESTIMATE_COLLECTS 12u /* that are remembered */

struct estimate {
	struct {
		double ns;             /* of running, as if the guest had not been throttled */
		double bytes;          /* distinct ones that were written in it */
		double weight;         /* 0 to 1: a sample says less, the fewer it has */
	} collects[ESTIMATE_COLLECTS]; /* a ring */
	unsigned collect_count, collect_next;
	double most_bytes; /* that can be dirty at all */
	/* Fitted: */
	double dirty_rate, working_set, dirty_confidence;
	/* The stretch of sending that is being measured: */
	uint64_t since_ns, since_bytes, last_ns, last_bytes;
	double bandwidth;
	double measured_ns; /* how long there was something to measure */
};

/* most_bytes: guest memory that is no hole, or all of it. */
void estimate_init(struct estimate *estimate, uint64_t most_bytes);

/* A collect found `bytes` distinct bytes, written within the `ns` before it; the vCPUs were held
 * for `throttle` percent of that time. */
void estimate_collected(struct estimate *estimate, uint64_t ns, uint64_t bytes, unsigned throttle);
/* Of a sample, `pages` were written within the `ns` since it was drawn; each stands for so many
 * bytes of the guest's. */
void estimate_sampled(struct estimate *estimate, uint64_t ns, uint64_t pages,
		      uint64_t bytes_of_each);

/* The streams have sent total_bytes of pages in all, and still have something to send. */
void estimate_sent(struct estimate *estimate, uint64_t now_ns, uint64_t total_bytes);
/* They have sent total_bytes, and now there is nothing to send: what follows is no measure of the
 * link. */
void estimate_idle(struct estimate *estimate, uint64_t now_ns, uint64_t total_bytes);

/* Fills in bandwidth, dirty_rate, working_set, their confidences, and horizon_ns. */
void estimate_tell(const struct estimate *estimate, struct policy_input *input);

/* Pause, save, load and resume of so many vCPUs, before any of it was measured. */
double estimate_device_ns(unsigned vcpus);

#endif
