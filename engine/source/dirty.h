/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the target does not have, or not as it is now: one bit a page. Trackers, discards and the
 * VMM's own writes mark pages, whoever sends them takes them. Marking and taking may be done from
 * any threads at once; each mark is found by exactly one take.
 *
 * Walking costs what is dirty, not what there is: 4096 pages in which nothing is dirty are skipped
 * with one look (an idle TiB of 4 KiB pages: 65536 looks).
 */
#ifndef ENGINE_SOURCE_DIRTY_H
#define ENGINE_SOURCE_DIRTY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/guestmem.h"

#define DIRTY_GROUP_PAGES 4096u

struct dirty_region {
	uint64_t pages, words, groups;
	_Atomic uint64_t *bits; /* marked by fetch_or (release), taken by exchange (acquire) */
	/* For each group at least as many as it has bits set: see dirty.c. */
	_Atomic uint32_t *counts;
};

struct dirty {
	struct dirty_region regions[JAUNT_MAX_REGIONS];
	size_t region_count;
	uint64_t bytes; /* of address space; memory is used where something was dirty */
};

/* Nothing is dirty. 0 or -ENOMEM. */
int dirty_open(struct dirty *dirty, const struct guestmem *memory);
void dirty_close(struct dirty *dirty);

/* The pages' bytes have changed, and whatever tells of changes was armed again for them, before the
 * call. What lies outside of the region is ignored. */
void dirty_mark(struct dirty *dirty, size_t region, uint64_t first, uint64_t count);

/* Takes the first run of dirty pages at or behind `from` and before `end`, at most `most` of them:
 * they are clean. To be read only after the call. False if there is none. A page that was marked
 * before the call and lies there is found, if nobody else takes it. */
bool dirty_take(struct dirty *dirty, size_t region, uint64_t from, uint64_t end, uint64_t most,
		uint64_t *first, uint64_t *count);

/* Takes all that are dirty in `there` as well; how many. `there` is of the same memory, and nobody
 * marks or takes in it meanwhile. */
uint64_t dirty_subtract(struct dirty *dirty, const struct dirty *there);

/* The first dirty page at or behind `from` and before `end`, or `end`. Takes nothing. */
uint64_t dirty_next(const struct dirty *dirty, size_t region, uint64_t from, uint64_t end);

/* Dirty pages of a region, of all of them; exact when nobody marks or takes, else a moment's view.
 */
uint64_t dirty_count(const struct dirty *dirty, size_t region);
uint64_t dirty_count_all(const struct dirty *dirty);
/* The same in bytes of guest memory. */
uint64_t dirty_bytes(const struct dirty *dirty, const struct guestmem *memory);

/* Forgets all marks, at the cost of what was dirty. Nobody marks or takes meanwhile. */
void dirty_clear(struct dirty *dirty);

#endif
