/* SPDX-License-Identifier: Apache-2.0 */
/* Recorded decisions (lines "decision" of a trace), asked again of the policy as it is now. */
#ifndef BENCH_SIMULATE_REPLAY_H
#define BENCH_SIMULATE_REPLAY_H

#include <stdio.h>

struct replay_count {
	unsigned decisions, different, broken; /* broken: no JSON, or not what is expected */
};

/* Prints each decision, beside the recorded one where they differ, on `out`. 0, or -errno when the
 * file cannot be read. */
int replay_file(const char *path, FILE *out, struct replay_count *count);

#endif
