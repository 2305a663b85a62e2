/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram of nanoseconds, log-linear: every octave is divided into 64 equal buckets, so a
 * percentile is off by less than 0.8 % (the middle of a bucket stands for it); values below 128 ns
 * are exact. From 2^42 ns (73 minutes) on, values share the last bucket; the maximum is exact
 * always.
 *
 * One thread records (and merges into it), any thread reads at the same time: a reader sees each
 * count at some recent moment, not all at the same one. All zeros is an empty histogram. 19 KiB.
 */
#ifndef ENGINE_HISTOGRAM_H
#define ENGINE_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#include "jaunt.h"

#define HISTOGRAM_SUB_BITS 6u
#define HISTOGRAM_MAX_BITS 42u
#define HISTOGRAM_BUCKETS  ((HISTOGRAM_MAX_BITS - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS)

struct histogram {
	/* A count is stored with release after the maximum, and loaded with acquire before it: who
	 * sees a value counted sees a maximum that is no smaller. */
	_Atomic uint64_t counts[HISTOGRAM_BUCKETS];
	_Atomic uint64_t max_ns;
};

/* The bucket of a value. Bucket 64 * k + s, k >= 1, begins at (64 + s) * 2^(k - 1). */
static inline unsigned histogram_bucket(uint64_t ns)
{
	if (ns >> HISTOGRAM_SUB_BITS == 0)
		return (unsigned)ns;
	unsigned octave = 63u - (unsigned)__builtin_clzll(ns) - HISTOGRAM_SUB_BITS;
	if (octave >= HISTOGRAM_MAX_BITS - HISTOGRAM_SUB_BITS)
		return HISTOGRAM_BUCKETS - 1;
	return (octave << HISTOGRAM_SUB_BITS) + (unsigned)(ns >> octave);
}

/* The owner's. No locked instruction: nobody else writes. */
static inline void histogram_record(struct histogram *histogram, uint64_t ns)
{
	_Atomic uint64_t *count = &histogram->counts[histogram_bucket(ns)];
	if (ns > atomic_load_explicit(&histogram->max_ns, memory_order_relaxed))
		atomic_store_explicit(&histogram->max_ns, ns, memory_order_relaxed);
	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1,
			      memory_order_release);
}

/* Adds `from` (which may still be recorded into) to `into` (whose owner calls). */
void histogram_merge(struct histogram *into, const struct histogram *from);

uint64_t histogram_count(const struct histogram *histogram);

/* The smallest recorded value that at least `fraction` (0 to 1) of the values do not exceed, to the
 * precision above; 0 when nothing was recorded. */
uint64_t histogram_percentile_ns(const struct histogram *histogram, double fraction);

/* All of them of one moment of the counts, in microseconds. */
void histogram_percentiles(const struct histogram *histogram, struct jaunt_percentiles *out);

#endif
