/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/estimate.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define SECOND 1e9
#define MS_NS  1e6

/* Less than this is not counted as a working set, or as dirty at all. */
#define LEAST_BYTES 4096.0
/* Weight of a collect for each that came after it. */
#define FADING 0.85
/* A sample in which so many pages were written counts half of a collect. */
#define FEW 4.0
/* Where collects cannot tell, the larger working set and the smaller rate are taken. */
#define LEANING 1e-4
/* A stretch of sending that is long enough for a rate, and how long a rate is remembered. */
#define STRETCH_NS       (20 * MS_NS)
#define SHORT_STRETCH_NS (4 * MS_NS)
#define MEMORY_NS        (250 * MS_NS)
#define GRID             13u
#define REFINEMENTS      6u

void estimate_init(struct estimate *estimate, uint64_t most_bytes)
{
	memset(estimate, 0, sizeof(*estimate));
	estimate->most_bytes = most_bytes > LEAST_BYTES ? (double)most_bytes : LEAST_BYTES;
}

/* --- Writes
 * -------------------------------------------------------------------------------------------- */

static double dirtied(double rate, double set, double ns)
{
	return set * -expm1(-rate * (ns / SECOND) / set);
}

/* The i-th collect, the newest being 0. */
static unsigned back(const struct estimate *estimate, unsigned i)
{
	return (estimate->collect_next + ESTIMATE_COLLECTS - 1 - i) % ESTIMATE_COLLECTS;
}

/* Mean square of the logarithms of what the model says over what was seen. A longer collect counts
 * for more: what is asked of the model are times that are longer still. */
static double misfit(const struct estimate *estimate, double rate, double set)
{
	double sum = 0, weights = 0, fading = 1;

	for (unsigned i = 0; i < estimate->collect_count; i++) {
		unsigned at = back(estimate, i);
		double seen = estimate->collects[at].bytes, ns = estimate->collects[at].ns;
		double said = dirtied(rate, set, ns);
		double off = log((said + LEAST_BYTES) / (seen + LEAST_BYTES));
		double weight = fading * sqrt(ns) * estimate->collects[at].weight;
		sum += weight * off * off;
		weights += weight;
		fading *= FADING;
	}
	return sum / weights;
}

/* The best of a grid over both logarithms, then a finer grid around the best, and so on. Collects
 * are few and this is not often: no cleverer way is needed. */
static void fit(struct estimate *estimate)
{
	double most = 0, fastest = DBL_MIN, slowest = INFINITY;

	for (unsigned i = 0; i < estimate->collect_count; i++) {
		double bytes = fmax(estimate->collects[i].bytes, LEAST_BYTES);
		double rate = bytes / estimate->collects[i].ns * SECOND;
		most = fmax(most, bytes);
		fastest = fmax(fastest, rate);
		slowest = fmin(slowest, rate);
	}
	/* A collect that was saturated four times over cannot be told from one of eight times. */
	double low_set = log(fmin(most, estimate->most_bytes) / 4),
	       high_set = log(estimate->most_bytes);
	double low_rate = log(slowest / 2), high_rate = log(fastest * 8);
	double best = INFINITY, best_set = high_set, best_rate = log(fastest);
	double set_span = high_set - low_set, rate_span = high_rate - low_rate;
	double from_set = low_set, from_rate = low_rate;

	for (unsigned pass = 0; pass < REFINEMENTS; pass++) {
		for (unsigned i = 0; i < GRID; i++) {
			for (unsigned j = 0; j < GRID; j++) {
				double set = fmin(from_set + set_span * i / (GRID - 1), high_set);
				double rate = from_rate + rate_span * j / (GRID - 1);
				double cost = misfit(estimate, exp(rate), exp(set)) +
					      LEANING * ((high_set - set) + (rate - low_rate));
				if (cost < best) {
					best = cost;
					best_set = set;
					best_rate = rate;
				}
			}
		}
		set_span /= 3;
		rate_span /= 3;
		from_set = best_set - set_span / 2;
		from_rate = best_rate - rate_span / 2;
	}
	estimate->working_set = exp(best_set);
	estimate->dirty_rate = exp(best_rate);
	/* A collect alone is half a word; collects that agree within 10 % are a whole one. */
	double error = sqrt(misfit(estimate, estimate->dirty_rate, estimate->working_set));
	double count = 0;
	for (unsigned i = 0; i < estimate->collect_count; i++)
		count += estimate->collects[i].weight;
	estimate->dirty_confidence = count / (count + 1) / (1 + error * error / 0.25);
}

static void remember(struct estimate *estimate, double ran_ns, double bytes, double weight)
{
	if (ran_ns < 1000)
		return;
	estimate->collects[estimate->collect_next].ns = ran_ns;
	estimate->collects[estimate->collect_next].bytes = bytes;
	estimate->collects[estimate->collect_next].weight = weight;
	estimate->collect_next = (estimate->collect_next + 1) % ESTIMATE_COLLECTS;
	if (estimate->collect_count < ESTIMATE_COLLECTS)
		estimate->collect_count++;
	fit(estimate);
}

void estimate_collected(struct estimate *estimate, uint64_t ns, uint64_t bytes, unsigned throttle)
{
	double ran_ns = (double)ns * (1 - (throttle < 99 ? throttle : 99) / 100.0);

	estimate->most_bytes = fmax(estimate->most_bytes, (double)bytes); /* holes were filled */
	remember(estimate, ran_ns, (double)bytes, 1);
}

void estimate_sampled(struct estimate *estimate, uint64_t ns, uint64_t pages,
		      uint64_t bytes_of_each)
{
	double count = (double)pages;

	remember(estimate, (double)ns, count * (double)bytes_of_each,
		 (count + 1) / (count + 1 + FEW));
}

/* --- Bandwidth
 * ----------------------------------------------------------------------------------------- */

static void end_stretch(struct estimate *estimate)
{
	double ns = (double)(estimate->last_ns - estimate->since_ns);
	double bytes = (double)(estimate->last_bytes - estimate->since_bytes);

	if (ns >= SHORT_STRETCH_NS && bytes > 0) {
		double rate = bytes / ns * SECOND;
		double weight = 1 - exp(-ns / MEMORY_NS);
		/* What is remembered counts as long as it was measured. */
		double known = 1 - exp(-estimate->measured_ns / MEMORY_NS);
		double old = (1 - weight) * known;
		estimate->bandwidth = (estimate->bandwidth * old + rate * weight) / (old + weight);
		estimate->measured_ns += ns;
	}
	estimate->since_ns = estimate->last_ns;
	estimate->since_bytes = estimate->last_bytes;
}

static void advance(struct estimate *estimate, uint64_t now_ns, uint64_t total_bytes)
{
	if (!estimate->since_ns) {
		estimate->since_ns = now_ns;
		estimate->since_bytes = total_bytes;
	}
	estimate->last_ns = now_ns;
	estimate->last_bytes = total_bytes;
}

void estimate_sent(struct estimate *estimate, uint64_t now_ns, uint64_t total_bytes)
{
	advance(estimate, now_ns, total_bytes);
	if ((double)(now_ns - estimate->since_ns) >= STRETCH_NS)
		end_stretch(estimate);
}

void estimate_idle(struct estimate *estimate, uint64_t now_ns, uint64_t total_bytes)
{
	advance(estimate, now_ns, total_bytes);
	end_stretch(estimate);
	estimate->since_ns = 0;
}

/* --- Telling
 * ------------------------------------------------------------------------------------------- */

void estimate_tell(const struct estimate *estimate, struct policy_input *input)
{
	input->bandwidth = estimate->bandwidth;
	input->bandwidth_confidence = 1 - exp(-estimate->measured_ns / (MEMORY_NS / 4));
	input->dirty_rate = estimate->dirty_rate;
	input->working_set = estimate->working_set;
	input->dirty_confidence = estimate->dirty_confidence;
	input->horizon_ns = 0;
	for (unsigned i = 0; i < estimate->collect_count; i++)
		input->horizon_ns = fmax(input->horizon_ns, estimate->collects[i].ns);
}

double estimate_device_ns(unsigned vcpus)
{
	return 0.4 * MS_NS + 0.05 * MS_NS * (vcpus ? vcpus : 1);
}
