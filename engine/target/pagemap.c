/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * `claimed` is the only lock in the fault path: fetch_or hands each page to exactly one filler, so
 * no byte of a page is ever written by two. `present` tells the fault handler that a fault on the
 * page is the guest's own affair (a page it gave back, or one that was swapped out).
 *
 * The order that keeps wake-ups from being lost: a filler makes the bytes visible, sets `present`,
 * then WAKEs. A handler reads the event first (the waiter is queued by then) and the bits after it.
 * If it saw `present` clear, the WAKE is still to come and finds the waiter. Both sides enter the
 * kernel and take the userfaultfd's lock between the two steps, which orders them; sequentially
 * consistent loads here keep the two bits of one page in order (present implies claimed).
 */
#include "engine/target/pagemap.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "engine/target/ledger.h"

static void *map_bits(uint64_t bytes)
{
	/* Untouched parts of the map of a sparse guest must cost nothing. */
	void *bits = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return bits == MAP_FAILED ? NULL : bits;
}

static bool open_parts(struct pagemap_region *region, uint64_t page_bytes)
{
	region->part_pages = PAGEMAP_PART_BYTES / page_bytes;
	if (region->part_pages < 64)
		region->part_pages = 64;
	region->parts = (region->pages + region->part_pages - 1) / region->part_pages;
	region->outstanding = calloc(region->parts, sizeof(*region->outstanding));
	for (uint64_t i = 0; region->outstanding && i < region->parts; i++) {
		uint64_t left = region->pages - i * region->part_pages;
		region->outstanding[i] =
			(uint32_t)(left < region->part_pages ? left : region->part_pages);
	}
	return region->outstanding;
}

static _Atomic uint32_t *part_of(const struct pagemap_region *region, uint64_t word)
{
	return &region->outstanding[word * 64 / region->part_pages];
}

/* What the ledger has as present is not outstanding. */
static void count_present(struct pagemap *map, struct pagemap_region *region)
{
	for (uint64_t word = 0; word < region->words; word++) {
		uint64_t present = atomic_load(&region->present[word]);
		uint64_t count = (uint64_t)__builtin_popcountll(present);
		if (!count)
			continue;
		atomic_fetch_sub(part_of(region, word), (uint32_t)count);
		atomic_fetch_sub(&map->missing, count);
	}
}

static int open_map(struct pagemap *map, const struct guestmem *memory, const struct ledger *ledger)
{
	memset(map, 0, sizeof(*map));
	map->in_ledger = ledger;
	atomic_store(&map->missing, memory->pages);
	for (size_t i = 0; i < memory->region_count; i++) {
		struct pagemap_region *region = &map->regions[i];
		region->pages = memory->regions[i].pages;
		region->words = (region->pages + 63) / 64;
		region->claimed = ledger ? ledger->claimed[i] : map_bits(region->words * 8);
		region->present = ledger ? ledger->present[i] : map_bits(region->words * 8);
		map->region_count = i + 1;
		if (!region->claimed || !region->present) {
			pagemap_close(map);
			return -ENOMEM;
		}
		map->bytes += region->words * 16;
		if (!open_parts(region, memory->regions[i].page_bytes)) {
			pagemap_close(map);
			return -ENOMEM;
		}
		if (ledger)
			count_present(map, region);
	}
	return 0;
}

int pagemap_open(struct pagemap *map, const struct guestmem *memory)
{
	return open_map(map, memory, NULL);
}

int pagemap_open_ledger(struct pagemap *map, const struct guestmem *memory,
			const struct ledger *ledger)
{
	return open_map(map, memory, ledger);
}

void pagemap_close(struct pagemap *map)
{
	for (size_t i = 0; i < map->region_count; i++) {
		struct pagemap_region *region = &map->regions[i];
		if (region->claimed && !map->in_ledger)
			munmap((void *)region->claimed, region->words * 8);
		if (region->present && !map->in_ledger)
			munmap((void *)region->present, region->words * 8);
		free((void *)region->outstanding);
	}
	memset(map, 0, sizeof(*map));
}

enum page_state pagemap_state(const struct pagemap *map, size_t region, uint64_t page)
{
	const struct pagemap_region *at = &map->regions[region];
	uint64_t bit = UINT64_C(1) << (page % 64);

	/* `present` first: if it is set in between, the page was filling when we looked, and its
	 * filler's WAKE comes after our look. */
	if (atomic_load(&at->present[page / 64]) & bit)
		return PAGE_PRESENT;
	if (atomic_load(&at->claimed[page / 64]) & bit)
		return PAGE_FILLING;
	return PAGE_ABSENT;
}

uint64_t pagemap_claim(struct pagemap *map, size_t region, uint64_t word, uint64_t mask)
{
	_Atomic uint64_t *claimed = &map->regions[region].claimed[word];

	if ((atomic_load_explicit(claimed, memory_order_relaxed) & mask) == mask)
		return 0;
	return mask & ~atomic_fetch_or(claimed, mask);
}

uint64_t pagemap_set_present(struct pagemap *map, size_t region, uint64_t word, uint64_t mask)
{
	struct pagemap_region *at = &map->regions[region];
	uint64_t before = atomic_fetch_or(&at->present[word], mask);

	assert((before & mask) == 0);
	assert((atomic_load(&at->claimed[word]) & mask) == mask);
	(void)before;
	uint64_t count = (uint64_t)__builtin_popcountll(mask);
	atomic_fetch_sub(part_of(at, word), (uint32_t)count);
	return atomic_fetch_sub(&map->missing, count) - count;
}

void pagemap_place(struct pagemap *map, size_t region, uint64_t word, uint64_t mask)
{
	struct pagemap_region *at = &map->regions[region];

	atomic_fetch_or(&at->claimed[word], mask);
	uint64_t added = mask & ~atomic_fetch_or(&at->present[word], mask);
	uint64_t count = (uint64_t)__builtin_popcountll(added);
	if (!count)
		return;
	atomic_fetch_sub(part_of(at, word), (uint32_t)count);
	atomic_fetch_sub(&map->missing, count);
}

void pagemap_stale(struct pagemap *map, size_t region, uint64_t word, uint64_t mask)
{
	struct pagemap_region *at = &map->regions[region];
	uint64_t taken = mask & atomic_fetch_and(&at->present[word], ~mask);
	uint64_t count = (uint64_t)__builtin_popcountll(taken);

	atomic_fetch_and(&at->claimed[word], ~mask);
	atomic_fetch_add(part_of(at, word), (uint32_t)count);
	atomic_fetch_add(&map->missing, count);
}

bool pagemap_part_complete(const struct pagemap *map, size_t region, uint64_t part)
{
	return atomic_load(&map->regions[region].outstanding[part]) == 0;
}

void pagemap_release(struct pagemap *map, size_t region, uint64_t word, uint64_t mask)
{
	struct pagemap_region *at = &map->regions[region];

	assert((atomic_load(&at->present[word]) & mask) == 0);
	uint64_t before = atomic_fetch_and(&at->claimed[word], ~mask);
	assert((before & mask) == mask);
	(void)before;
	atomic_fetch_add_explicit(&map->releases, 1, memory_order_release);
}

void pagemap_settle(struct pagemap *map, size_t region, uint64_t word, uint64_t claimed,
		    uint64_t done)
{
	if (done)
		pagemap_set_present(map, region, word, done);
	if (claimed & ~done)
		pagemap_release(map, region, word, claimed & ~done);
}

/* Behind the parts from this page on of which all is present: where nothing is outstanding, nothing
 * is absent. */
static uint64_t skip_complete(const struct pagemap_region *at, uint64_t page)
{
	while (page < at->pages && page % at->part_pages == 0 &&
	       atomic_load_explicit(&at->outstanding[page / at->part_pages],
				    memory_order_relaxed) == 0)
		page += at->part_pages;
	return page;
}

bool pagemap_find_absent(const struct pagemap *map, size_t region, uint64_t from, uint64_t end,
			 uint64_t *first, uint64_t *count)
{
	const struct pagemap_region *at = &map->regions[region];
	uint64_t page = from;

	if (end > at->pages)
		end = at->pages;
	while ((page = skip_complete(at, page)) < end) {
		uint64_t claimed =
			atomic_load_explicit(&at->claimed[page / 64], memory_order_relaxed);
		uint64_t absent = ~claimed >> (page % 64);
		if (absent) {
			page += (uint64_t)__builtin_ctzll(absent);
			break;
		}
		page = (page / 64 + 1) * 64;
	}
	if (page >= end)
		return false;
	*first = page;
	while (page < end) {
		uint64_t claimed =
			atomic_load_explicit(&at->claimed[page / 64], memory_order_relaxed);
		uint64_t rest = claimed >> (page % 64);
		if (rest) {
			page += (uint64_t)__builtin_ctzll(rest);
			break;
		}
		page = (page / 64 + 1) * 64;
	}
	*count = (page < end ? page : end) - *first;
	return true;
}

uint64_t pagemap_missing(const struct pagemap *map)
{
	return atomic_load(&map->missing);
}
