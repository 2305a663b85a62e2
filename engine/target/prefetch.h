/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages to ask for next: outward from the last demand faults in both directions ("bubbling",
 * Hines, Deshpande and Gopalan, "Post-copy live migration of virtual machines", 2009), then
 * sequentially. A function of the page map, the faults it is told of and the blocks it has given
 * out: no clock, no I/O, no VM. Not thread-safe: the caller holds a lock.
 */
#ifndef ENGINE_TARGET_PREFETCH_H
#define ENGINE_TARGET_PREFETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/target/pagemap.h"

#define PREFETCH_BLOCK_BYTES (UINT64_C(2) << 20) /* what is given out at once, aligned */
#define PREFETCH_FAULTS      16u                 /* recent faults that are followed outward */
#define PREFETCH_REACH       16u                 /* blocks, in each direction */
#define PREFETCH_OUT_MAX     1024u

struct prefetch_block {
	size_t region;
	uint64_t first; /* page */
	uint64_t count; /* pages, present ones included */
};

struct prefetch {
	const struct pagemap *map;
	uint64_t block_pages[JAUNT_MAX_REGIONS];
	uint64_t blocks[JAUNT_MAX_REGIONS];
	struct {
		size_t region;
		uint64_t block;
		unsigned step; /* 0: itself, then +1, -1, +2, -2 … */
		bool used;
	} faults[PREFETCH_FAULTS]; /* a ring; the newest at `newest` */
	unsigned newest;
	size_t region; /* where the sequential walk stands */
	uint64_t block;
	struct {
		size_t region;
		uint64_t block;
	} out[PREFETCH_OUT_MAX]; /* given out and not returned */
	unsigned out_count;
	/* A full turn found nothing absent but in blocks that are out, when the map's `releases`
	 * was this. Nothing becomes absent but by a release, so nothing needs to be looked for
	 * until one, or until a block is returned with absent pages. */
	bool exhausted;
	uint64_t exhausted_releases;
};

void prefetch_init(struct prefetch *prefetch, const struct pagemap *map,
		   const struct guestmem *memory);
/* The guest faulted on this absent page. */
void prefetch_fault(struct prefetch *prefetch, size_t region, uint64_t page);
/* The next block with absent pages that is not out already; false if there is none. */
bool prefetch_next(struct prefetch *prefetch, struct prefetch_block *block);
/* Everything asked for of that block was answered (or never will be). */
void prefetch_return(struct prefetch *prefetch, const struct prefetch_block *block);

#endif
