/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: why no dirty page is missed
 *
 * Bits. A page's bit is set by fetch_or (release), even if it looks set already, and cleared by
 * compare-and-exchange or fetch_and (acquire). All of them are read-modify-writes of one word, so
 * the one that clears reads from every mark before it and is ordered behind all of these: the bytes
 * that the caller reads after a take are at least as new as what any of those marks was about. A
 * mark after the take sets the bit again.
 *
 * Counts. A group whose count is 0 is skipped without a look at its words, so the count must never
 * be less than the bits that are set. Whoever marks first adds all it is about to set, then sets
 * the bits, then subtracts those that were set already; whoever takes first clears bits, then
 * subtracts these. So every subtraction is preceded, in the order in which the count changes, by
 * the addition of the very same bit (the taker saw the bit, which was set after its addition), and
 * for a bit that is set and not taken an addition stands against no subtraction. A reader that
 * comes after dirty_mark() returned sees that addition or something later: not 0. A summary of bits
 * could not do that: whoever clears a summary bit must look at the words again afterwards, and in
 * between another one skips the group.
 */
#include "engine/source/dirty.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"

#define GROUP_WORDS (DIRTY_GROUP_PAGES / 64)

static void *map_zeros(uint64_t bytes)
{
	/* Untouched parts of the map of a sparse guest must cost nothing. */
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return at == MAP_FAILED ? NULL : at;
}

int dirty_open(struct dirty *dirty, const struct guestmem *memory)
{
	memset(dirty, 0, sizeof(*dirty));
	for (size_t i = 0; i < memory->region_count; i++) {
		struct dirty_region *region = &dirty->regions[i];
		region->pages = memory->regions[i].pages;
		region->words = (region->pages + 63) / 64;
		region->groups = (region->pages + DIRTY_GROUP_PAGES - 1) / DIRTY_GROUP_PAGES;
		region->bits = map_zeros(region->words * 8);
		region->counts = map_zeros(region->groups * 4);
		dirty->region_count = i + 1;
		if (!region->bits || !region->counts) {
			dirty_close(dirty);
			return -ENOMEM;
		}
		dirty->bytes += region->words * 8 + region->groups * 4;
	}
	return 0;
}

void dirty_close(struct dirty *dirty)
{
	for (size_t i = 0; i < dirty->region_count; i++) {
		struct dirty_region *region = &dirty->regions[i];
		if (region->bits)
			munmap((void *)region->bits, region->words * 8);
		if (region->counts)
			munmap((void *)region->counts, region->groups * 4);
	}
	memset(dirty, 0, sizeof(*dirty));
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Pages of one group. */
static void mark_in_group(struct dirty_region *region, uint64_t first, uint64_t end)
{
	_Atomic uint32_t *count = &region->counts[first / DIRTY_GROUP_PAGES];
	uint32_t already = 0;

	atomic_fetch_add_explicit(count, (uint32_t)(end - first), memory_order_relaxed);
	while (first < end) {
		uint64_t next = least(end, (first / 64 + 1) * 64);
		uint64_t mask = bits_mask(first % 64, (unsigned)(next - first));
		/* Release, for the addition above too. */
		uint64_t before = atomic_fetch_or_explicit(&region->bits[first / 64], mask,
							   memory_order_acq_rel);
		already += (uint32_t)__builtin_popcountll(before & mask);
		first = next;
	}
	if (already)
		atomic_fetch_sub_explicit(count, already, memory_order_relaxed);
}

void dirty_mark(struct dirty *dirty, size_t region, uint64_t first, uint64_t count)
{
	if (region >= dirty->region_count)
		return;
	struct dirty_region *at = &dirty->regions[region];
	if (first >= at->pages)
		return;
	uint64_t end = first + least(count, at->pages - first);
	while (first < end) {
		uint64_t next = least(end, (first / DIRTY_GROUP_PAGES + 1) * DIRTY_GROUP_PAGES);
		mark_in_group(at, first, next);
		first = next;
	}
}

uint64_t dirty_next(const struct dirty *dirty, size_t region, uint64_t from, uint64_t end)
{
	const struct dirty_region *at = &dirty->regions[region];

	end = least(end, at->pages);
	while (from < end) {
		uint64_t group = from / DIRTY_GROUP_PAGES;
		if (!atomic_load_explicit(&at->counts[group], memory_order_relaxed)) {
			from = (group + 1) * DIRTY_GROUP_PAGES;
			continue;
		}
		uint64_t group_end = least(end, (group + 1) * DIRTY_GROUP_PAGES);
		while (from < group_end) {
			uint64_t word =
				atomic_load_explicit(&at->bits[from / 64], memory_order_relaxed) >>
				(from % 64);
			if (word)
				return least(end, from + (uint64_t)__builtin_ctzll(word));
			from = (from / 64 + 1) * 64;
		}
	}
	return end;
}

/* Takes the run of dirty pages that begins at `first`, within its word and before `end`. Returns
 * its length, 0 if somebody was faster. */
static uint64_t take_in_word(struct dirty_region *region, uint64_t first, uint64_t end)
{
	_Atomic uint64_t *word = &region->bits[first / 64];
	unsigned shift = (unsigned)(first % 64);
	uint64_t room = least(end - first, 64 - shift);
	uint64_t before = atomic_load_explicit(word, memory_order_relaxed), mask;

	do {
		uint64_t rest = ~(before >> shift); /* ones: clean, or beyond the word */
		uint64_t run = rest ? (uint64_t)__builtin_ctzll(rest) : 64;
		run = least(run, room);
		if (!run)
			return 0;
		mask = bits_mask(shift, (unsigned)run);
	} while (!atomic_compare_exchange_weak_explicit(
		word, &before, before & ~mask, memory_order_acq_rel, memory_order_relaxed));
	uint32_t taken = (uint32_t)__builtin_popcountll(mask);
	atomic_fetch_sub_explicit(&region->counts[first / DIRTY_GROUP_PAGES], taken,
				  memory_order_relaxed);
	return taken;
}

bool dirty_take(struct dirty *dirty, size_t region, uint64_t from, uint64_t end, uint64_t most,
		uint64_t *first, uint64_t *count)
{
	struct dirty_region *at = &dirty->regions[region];
	uint64_t taken = 0;

	end = least(end, at->pages);
	if (!most)
		return false;
	while (!taken) {
		from = dirty_next(dirty, region, from, end);
		if (from >= end)
			return false;
		taken = take_in_word(at, from, least(end, from + least(most, 64)));
	}
	*first = from;
	while (taken < most && from + taken < end && (from + taken) % 64 == 0) {
		uint64_t more = take_in_word(at, from + taken,
					     least(end, from + taken + least(most - taken, 64)));
		if (!more)
			break;
		taken += more;
	}
	*count = taken;
	return true;
}

static uint32_t subtract_in_group(struct dirty_region *region, const struct dirty_region *there,
				  uint64_t group)
{
	uint32_t taken = 0;

	for (uint64_t i = group * GROUP_WORDS; i < least(region->words, (group + 1) * GROUP_WORDS);
	     i++) {
		uint64_t mask = atomic_load_explicit(&there->bits[i], memory_order_relaxed);
		if (!(atomic_load_explicit(&region->bits[i], memory_order_relaxed) & mask))
			continue;
		mask &= atomic_fetch_and_explicit(&region->bits[i], ~mask, memory_order_acq_rel);
		taken += (uint32_t)__builtin_popcountll(mask);
	}
	atomic_fetch_sub_explicit(&region->counts[group], taken, memory_order_relaxed);
	return taken;
}

uint64_t dirty_subtract(struct dirty *dirty, const struct dirty *there)
{
	uint64_t taken = 0;

	for (size_t i = 0; i < dirty->region_count && i < there->region_count; i++) {
		struct dirty_region *at = &dirty->regions[i];
		const struct dirty_region *other = &there->regions[i];
		for (uint64_t group = 0; group < at->groups; group++)
			if (atomic_load_explicit(&at->counts[group], memory_order_relaxed) &&
			    atomic_load_explicit(&other->counts[group], memory_order_relaxed))
				taken += subtract_in_group(at, other, group);
	}
	return taken;
}

uint64_t dirty_count(const struct dirty *dirty, size_t region)
{
	const struct dirty_region *at = &dirty->regions[region];
	uint64_t sum = 0;

	for (uint64_t i = 0; i < at->groups; i++)
		sum += atomic_load_explicit(&at->counts[i], memory_order_relaxed);
	return least(sum, at->pages);
}

uint64_t dirty_count_all(const struct dirty *dirty)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < dirty->region_count; i++)
		sum += dirty_count(dirty, i);
	return sum;
}

uint64_t dirty_bytes(const struct dirty *dirty, const struct guestmem *memory)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < dirty->region_count; i++)
		sum += dirty_count(dirty, i) * memory->regions[i].page_bytes;
	return sum;
}

void dirty_clear(struct dirty *dirty)
{
	uint64_t first, count;

	for (size_t i = 0; i < dirty->region_count; i++)
		for (uint64_t from = 0;
		     dirty_take(dirty, i, from, UINT64_MAX, UINT64_MAX, &first, &count);)
			from = first + count;
}
