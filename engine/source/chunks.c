/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * SEEK_DATA crosses whatever is empty in one call; of a block that has something, mincore() says
 * which pages are there. A page that was swapped out counts as a hole by that: its block may be
 * left out, which costs a fetch by message, or it is read in by the registration.
 *
 * hugetlbfs says "all data" to SEEK_DATA, and mincore() knows of pages that the VM's own view maps
 * only. There a hole would cost 2 MiB out of a pool that others may have been promised, so a chunk
 * has none: it ends at the first page that is not mapped.
 */
#include "engine/source/chunks.h"

#include <sys/mman.h>
#include <sys/stat.h>

#define BLOCK_PAGES_MAX (CHUNK_BYTES / 4096)

bool chunk_cut(const unsigned char *there, uint64_t count, bool holes, struct chunk *chunk)
{
	uint64_t last = 0;

	*chunk = (struct chunk){0};
	for (uint64_t i = 0; i < count; i++) {
		if (!(there[i] & 1)) {
			if (chunk->data && !holes)
				break;
			continue;
		}
		if (!chunk->data++)
			chunk->first = i;
		last = i;
	}
	if (!chunk->data)
		return false;
	chunk->count = last - chunk->first + 1;
	return chunk->count <= 2 * chunk->data;
}

bool chunk_find(const struct guest_region *region, uint64_t block, struct chunk *chunk)
{
	unsigned char there[BLOCK_PAGES_MAX];
	uint64_t first = block * chunk_block_pages(region);
	uint64_t count = region->pages - first;

	if (count > chunk_block_pages(region))
		count = chunk_block_pages(region);
	if (region->page_bytes > CHUNK_BYTES) /* none that a VM has; `there` is too short for it */
		return false;
	if (!region->hugetlb && guestmem_next_data(region, first) >= first + count)
		return false;
	if (mincore(region->near_view + first * region->page_bytes, count * region->page_bytes,
		    there) < 0)
		return false;
	/* mincore() speaks of small pages. */
	for (uint64_t i = 0; region->hugetlb && i < count; i++)
		there[i] = there[i * (region->page_bytes / 4096)];
	if (!chunk_cut(there, count, !region->hugetlb, chunk))
		return false;
	chunk->first += first;
	return true;
}

uint64_t chunk_dense(const struct guest_region *region, const struct chunk *chunk, uint64_t most)
{
	unsigned char there[BLOCK_PAGES_MAX];
	uint64_t count = 0;

	if (most > chunk->count)
		most = chunk->count;
	if (region->hugetlb) /* it has no holes */
		return most;
	if (!most || mincore(region->near_view + chunk->first * region->page_bytes,
			     most * region->page_bytes, there) < 0)
		return 0;
	while (count < most && (there[count] & 1))
		count++;
	return count;
}

uint64_t chunks_data_bytes(const struct guestmem *memory)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < memory->region_count; i++) {
		const struct guest_region *region = &memory->regions[i];
		uint64_t all = region->pages * region->page_bytes;
		struct stat status;
		uint64_t data =
			fstat(region->fd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : all;
		sum += data < all ? data : all;
	}
	return sum;
}
