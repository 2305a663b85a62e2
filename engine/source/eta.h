/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the migration will be over, as it is expected while it runs, and, at its end, how far off
 * that was. While the VM runs at the source the policy's prediction says it; from the switch on it
 * follows from how fast pages become fewer at the target.
 *
 * Arithmetic alone: no clock, no I/O. Whoever shares one guards it.
 */
#ifndef ENGINE_SOURCE_ETA_H
#define ENGINE_SOURCE_ETA_H

#include <stdint.h>

#define ETA_SAMPLES 128u /* at most that many are kept; of more, every second is let go */
#define ETA_MARKS   3u   /* 25, 50 and 75 % */

struct eta {
	uint64_t total_ns; /* since the command, as expected last; 0: not known */
	struct {
		uint64_t at_ns, total_ns;
	} samples[ETA_SAMPLES]; /* oldest first */
	unsigned count;
	uint64_t apart_ns; /* the least time between two */
	/* Of pages at the target: */
	uint64_t arrived_ns, arrived;
	double pages_per_s;
};

/* Times are since the command. total_ns 0: no end is in sight. */
void eta_expect(struct eta *eta, uint64_t now_ns, uint64_t total_ns);
/* The VM is paused: nothing has arrived since, and what was expected still is. */
void eta_switch(struct eta *eta, uint64_t now_ns);
/* Since then so many pages came with bytes or as zeros, and so many are missing still. */
void eta_arrived(struct eta *eta, uint64_t now_ns, uint64_t arrived, uint64_t missing);
/* What is left; 0: not known. */
uint64_t eta_left_ns(const struct eta *eta, uint64_t now_ns);
/* It took total_ns: how far off what was expected at 25, 50 and 75 % of it was, in percent of it,
 * above 0 if it was expected later; NAN: nothing was expected then. */
void eta_errors(const struct eta *eta, uint64_t total_ns, double percent[ETA_MARKS]);

#endif
