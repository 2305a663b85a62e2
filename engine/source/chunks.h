/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which parts of guest memory are worth registering with a device. A region is cut into blocks of
 * CHUNK_BYTES, and what is exposed of a block is one run from its first page with data to its last:
 * a chunk. The holes in between get memory by that (registering allocates), so a block that is
 * mostly holes is left out. Functions of the memory files alone; they allocate nothing.
 */
#ifndef ENGINE_SOURCE_CHUNKS_H
#define ENGINE_SOURCE_CHUNKS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/guestmem.h"

#define CHUNK_BYTES (UINT64_C(16) << 20)

struct chunk {
	uint64_t first, count; /* pages of the region */
	uint64_t data;         /* of them; the others are holes */
};

static inline uint64_t chunk_block_pages(const struct guest_region *region)
{
	return region->page_bytes < CHUNK_BYTES ? CHUNK_BYTES / region->page_bytes : 1;
}

static inline uint64_t chunk_blocks(const struct guest_region *region)
{
	return (region->pages + chunk_block_pages(region) - 1) / chunk_block_pages(region);
}

/* What to expose of a block; false: nothing, and always so of pages above CHUNK_BYTES. */
bool chunk_find(const struct guest_region *region, uint64_t block, struct chunk *chunk);

/* The same, of `count` pages of which it is known which are there (bit 0 of each byte, as mincore()
 * gives it). `holes`: the chunk may have some. */
bool chunk_cut(const unsigned char *there, uint64_t count, bool holes, struct chunk *chunk);

/* Of a chunk, how many pages from its first on are there, at most `most`: none of them is a hole.
 */
uint64_t chunk_dense(const struct guest_region *region, const struct chunk *chunk, uint64_t most);

/* Bytes that the regions' files have, and so about what there is to register. */
uint64_t chunks_data_bytes(const struct guestmem *memory);

#endif
