/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/histogram.h"

static uint64_t bucket_middle(unsigned bucket)
{
	unsigned octave = bucket >> HISTOGRAM_SUB_BITS;
	if (octave <= 1)
		return bucket;
	octave--;
	uint64_t low = (uint64_t)(bucket - (octave << HISTOGRAM_SUB_BITS)) << octave;
	return low + (UINT64_C(1) << octave) / 2;
}

static uint64_t snapshot(const struct histogram *histogram, uint64_t counts[HISTOGRAM_BUCKETS],
			 uint64_t *max)
{
	uint64_t total = 0;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		counts[i] = atomic_load_explicit(&histogram->counts[i], memory_order_acquire);
		total += counts[i];
	}
	*max = atomic_load_explicit(&histogram->max_ns, memory_order_relaxed);
	return total;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
	uint64_t counts[HISTOGRAM_BUCKETS], max;

	snapshot(from, counts, &max);
	if (max > atomic_load_explicit(&into->max_ns, memory_order_relaxed))
		atomic_store_explicit(&into->max_ns, max, memory_order_relaxed);
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		if (!counts[i])
			continue;
		uint64_t sum = atomic_load_explicit(&into->counts[i], memory_order_relaxed);
		atomic_store_explicit(&into->counts[i], sum + counts[i], memory_order_release);
	}
}

uint64_t histogram_count(const struct histogram *histogram)
{
	uint64_t total = 0;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
		total += atomic_load_explicit(&histogram->counts[i], memory_order_relaxed);
	return total;
}

static uint64_t percentile(const uint64_t counts[HISTOGRAM_BUCKETS], uint64_t total, uint64_t max,
			   double fraction)
{
	uint64_t seen = 0;
	double exact = fraction * (double)total;
	uint64_t rank = (uint64_t)exact;

	if (!total)
		return 0;
	if ((double)rank < exact || !rank)
		rank++;
	if (rank >= total)
		return max;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS - 1; i++) {
		seen += counts[i];
		if (seen >= rank) {
			uint64_t value = bucket_middle(i);
			return value < max ? value : max;
		}
	}
	return max;
}

uint64_t histogram_percentile_ns(const struct histogram *histogram, double fraction)
{
	uint64_t counts[HISTOGRAM_BUCKETS], max;
	uint64_t total = snapshot(histogram, counts, &max);
	return percentile(counts, total, max, fraction);
}

void histogram_percentiles(const struct histogram *histogram, struct jaunt_percentiles *out)
{
	uint64_t counts[HISTOGRAM_BUCKETS], max;
	uint64_t total = snapshot(histogram, counts, &max);

	out->count = total;
	out->p50 = (double)percentile(counts, total, max, 0.5) / 1e3;
	out->p90 = (double)percentile(counts, total, max, 0.9) / 1e3;
	out->p99 = (double)percentile(counts, total, max, 0.99) / 1e3;
	out->p999 = (double)percentile(counts, total, max, 0.999) / 1e3;
	out->max = total ? (double)max / 1e3 : 0;
}
