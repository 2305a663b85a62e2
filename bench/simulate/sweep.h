/* SPDX-License-Identifier: Apache-2.0 */
/* Cells of simulated worlds, every mode in each: does `auto` do what it promises? */
#ifndef BENCH_SIMULATE_SWEEP_H
#define BENCH_SIMULATE_SWEEP_H

#include <stdbool.h>
#include <stdio.h>

#include "bench/simulate/world.h"

struct sweep_cell {
	struct world world;
	struct policy_limits limits;
};

struct sweep_row {
	struct world_result modes[POLICY_MODES];
	bool possible[POLICY_MODES]; /* it ended there, and kept the limits */
	enum policy_mode best;       /* the cheapest possible mode but auto; POLICY_MODES: none */
	double ratio;                /* auto's cost over the best one's; 0: no best one */
};

struct sweep_count {
	unsigned cells;
	unsigned reachable; /* in which some fixed mode kept the limits */
	unsigned missed;    /* of those, in which auto did not */
	unsigned dearer;    /* of those, in which auto cost more than a tenth more than the best */
	unsigned forbidden; /* in which auto did what was forbidden */
	double worst_ratio;
};

size_t sweep_cells(void);
/* The i-th cell; noise is the world's. */
void sweep_cell(size_t index, double noise, struct sweep_cell *cell);
void sweep_row(const struct sweep_cell *cell, struct sweep_row *row);
/* All cells, a line each on `out` (NULL: none). */
void sweep_all(double noise, FILE *out, struct sweep_count *count);

#endif
