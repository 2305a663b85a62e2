/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/prefetch.h"

#include <string.h>

void prefetch_init(struct prefetch *prefetch, const struct pagemap *map,
		   const struct guestmem *memory)
{
	memset(prefetch, 0, sizeof(*prefetch));
	prefetch->map = map;
	for (size_t i = 0; i < map->region_count; i++) {
		uint64_t page_bytes = memory->regions[i].page_bytes;
		uint64_t pages = PREFETCH_BLOCK_BYTES / page_bytes;
		prefetch->block_pages[i] = pages ? pages : 1;
		prefetch->blocks[i] = (map->regions[i].pages + prefetch->block_pages[i] - 1) /
				      prefetch->block_pages[i];
	}
}

static bool is_out(const struct prefetch *prefetch, size_t region, uint64_t block)
{
	for (unsigned i = 0; i < prefetch->out_count; i++)
		if (prefetch->out[i].block == block && prefetch->out[i].region == region)
			return true;
	return false;
}

static bool has_absent(const struct prefetch *prefetch, size_t region, uint64_t block)
{
	uint64_t pages = prefetch->block_pages[region];
	uint64_t first, count;
	return pagemap_find_absent(prefetch->map, region, block * pages, (block + 1) * pages,
				   &first, &count);
}

static bool give(struct prefetch *prefetch, size_t region, uint64_t block,
		 struct prefetch_block *out)
{
	if (is_out(prefetch, region, block) || !has_absent(prefetch, region, block))
		return false;
	uint64_t pages = prefetch->block_pages[region];
	uint64_t end = prefetch->map->regions[region].pages;
	out->region = region;
	out->first = block * pages;
	out->count = end - out->first < pages ? end - out->first : pages;
	prefetch->out[prefetch->out_count].region = region;
	prefetch->out[prefetch->out_count++].block = block;
	return true;
}

void prefetch_fault(struct prefetch *prefetch, size_t region, uint64_t page)
{
	uint64_t block = page / prefetch->block_pages[region];

	/* Faults close together are one place; following it once is enough. */
	for (unsigned i = 0; i < PREFETCH_FAULTS; i++)
		if (prefetch->faults[i].used && prefetch->faults[i].region == region &&
		    prefetch->faults[i].block == block)
			return;
	prefetch->newest = (prefetch->newest + 1) % PREFETCH_FAULTS;
	prefetch->faults[prefetch->newest].region = region;
	prefetch->faults[prefetch->newest].block = block;
	prefetch->faults[prefetch->newest].step = 0;
	prefetch->faults[prefetch->newest].used = true;
}

/* Follows one fault outward: block, +1, -1, +2, -2 … */
static bool follow(struct prefetch *prefetch, unsigned index, struct prefetch_block *out)
{
	while (prefetch->faults[index].step <= 2 * PREFETCH_REACH) {
		unsigned step = prefetch->faults[index].step++;
		uint64_t distance = (step + 1) / 2;
		uint64_t block = prefetch->faults[index].block;
		size_t region = prefetch->faults[index].region;
		bool up = step % 2 == 1;
		if (up ? block + distance >= prefetch->blocks[region] : block < distance)
			continue;
		if (give(prefetch, region, up ? block + distance : block - distance, out))
			return true;
	}
	prefetch->faults[index].used = false;
	return false;
}

static bool next_in_sequence(struct prefetch *prefetch, struct prefetch_block *out)
{
	uint64_t releases = atomic_load_explicit(&prefetch->map->releases, memory_order_acquire);

	if (prefetch->exhausted && prefetch->exhausted_releases == releases)
		return false;
	/* Each region once from where we stand, the first one's beginning last. */
	for (size_t turn = 0; turn <= prefetch->map->region_count; turn++) {
		size_t region = prefetch->region;
		uint64_t pages = prefetch->block_pages[region];
		uint64_t at = prefetch->block * pages;
		uint64_t first, count;
		while (pagemap_find_absent(prefetch->map, region, at, UINT64_MAX, &first, &count)) {
			uint64_t block = first / pages;
			prefetch->block = block;
			if (give(prefetch, region, block, out)) {
				prefetch->block++;
				return true;
			}
			at = (block + 1) * pages;
		}
		prefetch->region = (region + 1) % prefetch->map->region_count;
		prefetch->block = 0;
	}
	prefetch->exhausted = true;
	prefetch->exhausted_releases = releases;
	return false;
}

bool prefetch_next(struct prefetch *prefetch, struct prefetch_block *block)
{
	if (prefetch->out_count == PREFETCH_OUT_MAX)
		return false;
	for (unsigned i = 0; i < PREFETCH_FAULTS; i++) {
		unsigned index = (prefetch->newest + PREFETCH_FAULTS - i) % PREFETCH_FAULTS;
		if (prefetch->faults[index].used && follow(prefetch, index, block))
			return true;
	}
	return next_in_sequence(prefetch, block);
}

void prefetch_return(struct prefetch *prefetch, const struct prefetch_block *block)
{
	uint64_t index = block->first / prefetch->block_pages[block->region];

	for (unsigned i = 0; i < prefetch->out_count; i++)
		if (prefetch->out[i].region == block->region && prefetch->out[i].block == index) {
			prefetch->out[i] = prefetch->out[--prefetch->out_count];
			if (has_absent(prefetch, block->region, index))
				prefetch->exhausted = false;
			return;
		}
}
