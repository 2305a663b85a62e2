/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/simulate/sweep.h"

#include <string.h>

#include "base/bits.h"
#include "engine/source/estimate.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define DEAR         1.10

static const double rates[] = {1e6, 3e7, 2e8, 1e9, 8e9};
static const double sets[] = {0.02, 0.25, 0.9}; /* of what is no hole */
static const double bandwidths[] = {125e6, 1.25e9, 5e9};
static const uint64_t rams[] = {GIB(1), GIB(8), GIB(64)};
static const uint64_t downtimes_ms[] = {300, 30};

size_t sweep_cells(void)
{
	return COUNT(rates) * COUNT(sets) * COUNT(bandwidths) * COUNT(rams) * COUNT(downtimes_ms) *
	       2;
}

static size_t digit(size_t *index, size_t base)
{
	size_t value = *index % base;
	*index /= base;
	return value;
}

/* As in precopy.c. */
static unsigned every(const struct world *world)
{
	unsigned every = 16;
	while (world->ram_bytes / world->page_bytes / every > 65536)
		every *= 2;
	return every;
}

void sweep_cell(size_t index, double noise, struct sweep_cell *cell)
{
	struct world *world = &cell->world;

	memset(cell, 0, sizeof(*cell));
	policy_limits_init(&cell->limits);
	policy_costs_init(&world->costs);
	world->seed = index + 1;
	cell->limits.no_postcopy = digit(&index, 2) == 1;
	cell->limits.downtime_ns = downtimes_ms[digit(&index, COUNT(downtimes_ms))] * 1000000;
	cell->limits.max_rounds = 30;
	world->ram_bytes = rams[digit(&index, COUNT(rams))];
	world->data_bytes = world->ram_bytes / 4 * 3;
	world->page_bytes = 4096;
	world->bandwidth = bandwidths[digit(&index, COUNT(bandwidths))];
	double set = sets[digit(&index, COUNT(sets))] * (double)world->data_bytes;
	double rate = rates[digit(&index, COUNT(rates))];
	/* A tenth of the set takes half of the writes. */
	world->sets[0].bytes = set;
	world->sets[0].rate = rate;
	world_split(world, 0.1, 0.5);
	world->vcpus = 4;
	world->every = every(world);
	world->noise = noise;
	world->round_trip_ns = 100e3;
	world->device_ns = estimate_device_ns(world->vcpus);
}

static bool ran_there(const struct world_result *result)
{
	return result->end == POLICY_SWITCH || result->end == POLICY_FINISH;
}

static bool keeps_limits(const struct world_result *result, const struct policy_limits *limits)
{
	if (!ran_there(result) || (limits->no_postcopy && result->end == POLICY_SWITCH))
		return false;
	return (!limits->downtime_ns || result->downtime_ns <= (double)limits->downtime_ns) &&
	       (!limits->total_ns || result->total_ns <= (double)limits->total_ns);
}

void sweep_row(const struct sweep_cell *cell, struct sweep_row *row)
{
	memset(row, 0, sizeof(*row));
	row->best = POLICY_MODES;
	for (unsigned mode = 0; mode < POLICY_MODES; mode++) {
		struct policy_limits limits = cell->limits;
		struct world_result *result = &row->modes[mode];
		/* What it costs is asked of stop-and-copy even where it breaks the limit. */
		if (mode == POLICY_STOP_AND_COPY)
			limits.downtime_ns = 0;
		world_run(&cell->world, (enum policy_mode)mode, &limits, NULL, NULL, result);
		row->possible[mode] = keeps_limits(result, &cell->limits);
		if (mode != POLICY_AUTO && row->possible[mode] &&
		    (row->best == POLICY_MODES || result->cost_ns < row->modes[row->best].cost_ns))
			row->best = (enum policy_mode)mode;
	}
	if (row->best != POLICY_MODES && ran_there(&row->modes[POLICY_AUTO]))
		row->ratio = row->modes[POLICY_AUTO].cost_ns / row->modes[row->best].cost_ns;
}

static void print_row(const struct sweep_cell *cell, const struct sweep_row *row, FILE *out)
{
	const struct world *world = &cell->world;

	fprintf(out, "%5.0f GiB %6.0f MB/s of %6.0f MB %5.0f MB/s %4.0f ms%s ",
		(double)world->ram_bytes / (double)GIB(1),
		(world->sets[0].rate + world->sets[1].rate) / 1e6,
		(world->sets[0].bytes + world->sets[1].bytes) / 1e6, world->bandwidth / 1e6,
		(double)cell->limits.downtime_ns / 1e6, cell->limits.no_postcopy ? " np" : "   ");
	for (unsigned mode = 0; mode < POLICY_MODES; mode++) {
		const struct world_result *result = &row->modes[mode];
		if (ran_there(result))
			fprintf(out, " %10.1f%c", result->cost_ns / 1e6,
				row->possible[mode] ? ' ' : '!');
		else
			fprintf(out, " %10s ", "aborted");
	}
	fprintf(out, " %6s %2u  %5.2f %s\n", policy_action_name(row->modes[POLICY_AUTO].end),
		row->modes[POLICY_AUTO].rounds, row->ratio,
		row->best == POLICY_MODES ? "" : policy_mode_name(row->best));
}

void sweep_all(double noise, FILE *out, struct sweep_count *count)
{
	memset(count, 0, sizeof(*count));
	for (size_t i = 0; i < sweep_cells(); i++) {
		struct sweep_cell cell;
		struct sweep_row row;
		sweep_cell(i, noise, &cell);
		sweep_row(&cell, &row);
		count->cells++;
		count->forbidden +=
			cell.limits.no_postcopy && row.modes[POLICY_AUTO].end == POLICY_SWITCH;
		if (row.best != POLICY_MODES) {
			count->reachable++;
			count->missed += !row.possible[POLICY_AUTO];
			count->dearer += !row.possible[POLICY_AUTO] || row.ratio > DEAR;
			if (row.ratio > count->worst_ratio)
				count->worst_ratio = row.ratio;
		}
		if (out)
			print_row(&cell, &row, out);
	}
}
