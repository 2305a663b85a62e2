/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/eta.h"

#include <math.h>

#define SECOND 1e9
/* How long a rate of pages is remembered. */
#define MEMORY_NS 1e9

void eta_expect(struct eta *eta, uint64_t now_ns, uint64_t total_ns)
{
	eta->total_ns = total_ns;
	if (eta->count && now_ns - eta->samples[eta->count - 1].at_ns < eta->apart_ns)
		return;
	if (eta->count == ETA_SAMPLES) {
		for (unsigned i = 0; i < ETA_SAMPLES / 2; i++)
			eta->samples[i] = eta->samples[2 * i + 1];
		eta->count = ETA_SAMPLES / 2;
		eta->apart_ns = (now_ns - eta->samples[0].at_ns) / eta->count;
	}
	eta->samples[eta->count].at_ns = now_ns;
	eta->samples[eta->count++].total_ns = total_ns;
}

void eta_switch(struct eta *eta, uint64_t now_ns)
{
	eta->arrived_ns = now_ns;
	eta->arrived = 0;
	eta->pages_per_s = 0;
}

void eta_arrived(struct eta *eta, uint64_t now_ns, uint64_t arrived, uint64_t missing)
{
	if (now_ns <= eta->arrived_ns || arrived < eta->arrived)
		return;
	double ns = (double)(now_ns - eta->arrived_ns);
	double rate = (double)(arrived - eta->arrived) * SECOND / ns;
	double weight = eta->pages_per_s > 0 ? 1 - exp(-ns / MEMORY_NS) : 1;

	eta->pages_per_s += weight * (rate - eta->pages_per_s);
	eta->arrived_ns = now_ns;
	eta->arrived = arrived;
	double left_ns = (double)missing / eta->pages_per_s * SECOND;
	if (!missing)
		left_ns = 0;
	eta_expect(eta, now_ns,
		   isfinite(left_ns) && left_ns < 1e18 ? now_ns + (uint64_t)left_ns : 0);
}

uint64_t eta_left_ns(const struct eta *eta, uint64_t now_ns)
{
	return eta->total_ns > now_ns ? eta->total_ns - now_ns : 0;
}

void eta_errors(const struct eta *eta, uint64_t total_ns, double percent[ETA_MARKS])
{
	for (unsigned mark = 0; mark < ETA_MARKS; mark++) {
		uint64_t at_ns = total_ns / (ETA_MARKS + 1) * (mark + 1);
		double expected = 0;
		percent[mark] = NAN;
		for (unsigned i = 0; i < eta->count && eta->samples[i].at_ns <= at_ns; i++)
			expected = (double)eta->samples[i].total_ns;
		if (expected > 0 && total_ns)
			percent[mark] = 100 * (expected - (double)total_ns) / (double)total_ns;
	}
}
