/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The target's page map: which pages are claimed, and which are present.
 *
 *   state     claimed  present   who may write its bytes
 *   absent       0        0      nobody
 *   filling      1        0      whoever won the claim
 *   present      1        1      the guest
 *
 * Two bits a page in two bitmaps of atomic words. Every function may be called from any thread. A
 * claim is won by exactly one caller; it ends with pagemap_set_present() or pagemap_release().
 * `present` is never cleared. Bits are handled a word at a time: `word` is page / 64, and a mask
 * selects pages within it.
 */
#ifndef ENGINE_TARGET_PAGEMAP_H
#define ENGINE_TARGET_PAGEMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/guestmem.h"

struct ledger;

#define PAGEMAP_PART_BYTES (UINT64_C(512) << 20)

enum page_state { PAGE_ABSENT, PAGE_FILLING, PAGE_PRESENT };

struct pagemap_region {
	uint64_t pages;
	uint64_t words;
	_Atomic uint64_t *claimed; /* won by fetch_or (acq_rel); pairs with itself */
	_Atomic uint64_t
		*present; /* set (release) after the bytes are visible; read with acquire */
	/* Pages of each part that are not present; counted down after `present` is set. A part is
	 * PAGEMAP_PART_BYTES of guest memory, and at least a word of the map. */
	_Atomic uint32_t *outstanding;
	uint64_t part_pages, parts;
};

struct pagemap {
	struct pagemap_region regions[JAUNT_MAX_REGIONS];
	size_t region_count;
	uint64_t bytes;           /* of the bitmaps */
	bool in_ledger;           /* they are the ledger's */
	_Atomic uint64_t missing; /* pages not present; counted down after `present` is set */
	/* Calls of pagemap_release(): as long as it does not change, no page becomes absent.
	 * Written (release) after the claims are gone; read (acquire) before looking for some. */
	_Atomic uint64_t releases;
};

int pagemap_open(struct pagemap *map, const struct guestmem *memory);
/* The same with the bitmaps of a ledger of that memory, as they are; it stays the caller's. */
int pagemap_open_ledger(struct pagemap *map, const struct guestmem *memory,
			const struct ledger *ledger);
void pagemap_close(struct pagemap *map);

enum page_state pagemap_state(const struct pagemap *map, size_t region, uint64_t page);

/* Claims those of the pages that nobody has claimed; returns the ones won. */
uint64_t pagemap_claim(struct pagemap *map, size_t region, uint64_t word, uint64_t mask);

/* The holder's: these pages are visible, all of them. Returns how many pages are still missing
 * anywhere; exactly one caller sees 0. The caller WAKEs afterwards. */
uint64_t pagemap_set_present(struct pagemap *map, size_t region, uint64_t word, uint64_t mask);

/* Before the epoch, while nobody claims: these pages are placed, or are not what was placed. Of a
 * word each, by any thread (see place.h for who may do which when). */
void pagemap_place(struct pagemap *map, size_t region, uint64_t word, uint64_t mask);
void pagemap_stale(struct pagemap *map, size_t region, uint64_t word, uint64_t mask);
/* Every page of the part is present, for good if the epoch has begun. */
bool pagemap_part_complete(const struct pagemap *map, size_t region, uint64_t part);

/* While nobody else uses the map: pages that a process had claimed which is dead. Those of `done`
 * are present, the others absent again. */
void pagemap_settle(struct pagemap *map, size_t region, uint64_t word, uint64_t claimed,
		    uint64_t done);

/* The holder's: gives claims up, nothing having been made visible. The caller WAKEs afterwards. */
void pagemap_release(struct pagemap *map, size_t region, uint64_t word, uint64_t mask);

/* The first run of absent pages at or behind `from` and before `end`; false if there is none. A
 * hint: by the time the caller acts on it, some may have been claimed. */
bool pagemap_find_absent(const struct pagemap *map, size_t region, uint64_t from, uint64_t end,
			 uint64_t *first, uint64_t *count);

uint64_t pagemap_missing(const struct pagemap *map);

#endif
