/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/touch.h"

#include <stdlib.h>
#include <string.h>

static int compare_places(const void *a, const void *b)
{
	const struct touch *x = a, *y = b;
	if (x->page != y->page)
		return x->page < y->page ? -1 : 1;
	return x->when < y->when ? -1 : x->when > y->when;
}

static int compare_latencies(const void *a, const void *b)
{
	const struct touch *x = a, *y = b;
	return x->latency_us < y->latency_us ? -1 : x->latency_us > y->latency_us;
}

/* The smallest value that at least `per_mille` of the values do not exceed (nearest rank). */
static double rank(const struct touch *sorted, size_t count, unsigned per_mille)
{
	size_t index = (count * per_mille + 999) / 1000;
	return sorted[index ? index - 1 : 0].latency_us;
}

void touch_percentiles(struct touch *touches, size_t count,
		       bool (*demanded)(const void *context, uint64_t page), const void *context,
		       struct jaunt_percentiles *out)
{
	size_t kept = 0;
	uint64_t last_page = 0;

	memset(out, 0, sizeof(*out));
	if (!count)
		return;
	qsort(touches, count, sizeof(*touches), compare_places);
	for (size_t i = 0; i < count; i++) {
		bool first = i == 0 || touches[i].page != last_page;
		last_page = touches[i].page;
		if (first && demanded(context, touches[i].page))
			touches[kept++] = touches[i];
	}
	if (!kept)
		return;
	qsort(touches, kept, sizeof(*touches), compare_latencies);
	*out = (struct jaunt_percentiles){.count = kept,
					  .p50 = rank(touches, kept, 500),
					  .p90 = rank(touches, kept, 900),
					  .p99 = rank(touches, kept, 990),
					  .p999 = rank(touches, kept, 999),
					  .max = touches[kept - 1].latency_us};
}
