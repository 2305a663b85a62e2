/* SPDX-License-Identifier: Apache-2.0 */
/* Counters that one thread writes and any thread reads. */
#ifndef ENGINE_STATS_H
#define ENGINE_STATS_H

#include <stdatomic.h>
#include <stdint.h>

/* Written by its one owner; no read-modify-write needed. Readers get a recent value (relaxed: the
 * figure orders nothing). */
typedef _Atomic uint64_t counter;

static inline void counter_add(counter *at, uint64_t amount)
{
	atomic_store_explicit(at, atomic_load_explicit(at, memory_order_relaxed) + amount,
			      memory_order_relaxed);
}

static inline void counter_set(counter *at, uint64_t value)
{
	atomic_store_explicit(at, value, memory_order_relaxed);
}

static inline uint64_t counter_get(const counter *at)
{
	return atomic_load_explicit(at, memory_order_relaxed);
}

/* What happened to pages at the target, as one thread saw it. */
struct page_counters {
	counter zero, hole, pushed, demanded; /* installed, by what brought them */
	counter duplicate;                    /* dropped: claimed or present already */
	counter discarded;                    /* zero-filled again: present, but not in the file */
	counter conflicts;                    /* mapped by somebody else behind our back */
	counter verified, mismatched;
	counter copied; /* in rounds, and found right by a digest */
	counter payload_bytes;
	counter read, read_bytes; /* pages that came by one-sided READ; of payload_bytes */
};

#endif
