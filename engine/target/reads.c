/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A region is divided into cells, and each cell names the chunk that was told last of those that
 * touch it: 8 bytes for 16 MiB, in memory that the kernel provides when it is first written. A
 * source makes its chunks so that none shares a cell with another; one that does otherwise merely
 * has some of its pages fetched instead of READ.
 *
 * A chunk that was replaced or forgotten stays in memory for a thread that has just found it: until
 * the session has been attached again twice, or the end. What a peer may tell in all is bounded.
 */
#include "engine/target/reads.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/bits.h"

struct reads_batch {
	struct reads_batch *next;
	uint64_t bytes;
	struct reads_chunk chunks[];
};

static uint64_t cell_pages(const struct guest_region *region)
{
	return region->page_bytes < READS_CELL_BYTES ? READS_CELL_BYTES / region->page_bytes : 1;
}

int reads_open(struct reads *reads, const struct guestmem *memory)
{
	*reads = (struct reads){.memory = memory};
	for (size_t i = 0; i < memory->region_count; i++) {
		uint64_t pages = cell_pages(&memory->regions[i]);
		uint64_t cells = round_up(memory->regions[i].pages, pages) / pages;
		void *memory_of_cells =
			mmap(NULL, cells * sizeof(*reads->cells[i]), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (memory_of_cells == MAP_FAILED) {
			reads_close(reads);
			return -ENOMEM;
		}
		reads->cells[i] = memory_of_cells;
		reads->cell_count[i] = cells;
		/* Each cell told and told again after the pause, and some more. */
		reads->chunks_max += 4 * cells;
		reads->bytes += cells * sizeof(*reads->cells[i]);
		reads->pages += memory->regions[i].pages;
	}
	return 0;
}

static void free_batches(struct reads *reads, struct reads_batch **batches)
{
	while (*batches) {
		struct reads_batch *next = (*batches)->next;
		reads->bytes -= (*batches)->bytes;
		free(*batches);
		*batches = next;
	}
}

void reads_close(struct reads *reads)
{
	for (size_t i = 0; i < JAUNT_MAX_REGIONS; i++)
		if (reads->cells[i])
			munmap(reads->cells[i], reads->cell_count[i] * sizeof(*reads->cells[i]));
	free_batches(reads, &reads->batches);
	free_batches(reads, &reads->past);
	*reads = (struct reads){0};
}

void reads_restart(struct reads *reads, bool quiet)
{
	struct reads_batch **last = &reads->past;

	if (!reads->memory)
		return;
	for (size_t i = 0; i < reads->memory->region_count; i++)
		for (uint64_t cell = 0; cell < reads->cell_count[i]; cell++) {
			struct reads_chunk *chunk = reads->cells[i][cell];
			if (!chunk) /* untouched cells stay untouched */
				continue;
			atomic_store(&chunk->withdrawn, true);
			reads->cells[i][cell] = NULL;
		}
	if (quiet)
		free_batches(reads, &reads->past);
	while (*last)
		last = &(*last)->next;
	*last = reads->batches;
	reads->batches = NULL;
	reads->chunks = reads->forgotten = 0;
}

static bool run_exists(const struct reads *reads, size_t region, uint64_t first, uint64_t count)
{
	return reads->memory && region < reads->memory->region_count && count &&
	       first < reads->memory->regions[region].pages &&
	       count <= reads->memory->regions[region].pages - first;
}

static void publish(struct reads *reads, size_t region, struct reads_chunk *chunk)
{
	uint64_t pages = cell_pages(&reads->memory->regions[region]);

	for (uint64_t cell = chunk->first / pages; cell * pages < chunk->first + chunk->count;
	     cell++)
		atomic_store_explicit(&reads->cells[region][cell], chunk, memory_order_release);
}

int reads_tell(struct reads *reads, const size_t *regions, const struct reads_chunk *chunks,
	       size_t count)
{
	if (!count)
		return 0;
	for (size_t i = 0; i < count; i++)
		if (!run_exists(reads, regions[i], chunks[i].first, chunks[i].count))
			return -EPROTO;
	if (count > reads->chunks_max - reads->chunks)
		return -EPROTO;
	struct reads_batch *batch = malloc(sizeof(*batch) + count * sizeof(batch->chunks[0]));
	if (!batch)
		return -ENOMEM;
	batch->bytes = count * sizeof(batch->chunks[0]);
	batch->next = reads->batches;
	reads->batches = batch;
	reads->chunks += count;
	reads->bytes += batch->bytes;
	for (size_t i = 0; i < count; i++) {
		batch->chunks[i] = (struct reads_chunk){.first = chunks[i].first,
							.count = chunks[i].count,
							.address = chunks[i].address,
							.key = chunks[i].key};
		publish(reads, regions[i], &batch->chunks[i]);
	}
	return 0;
}

static bool touches(const struct reads_chunk *chunk, uint64_t first, uint64_t count)
{
	return chunk && chunk->first < first + count && first < chunk->first + chunk->count;
}

/* The chunk is withdrawn as a whole: in its other cells, by what it says itself. */
int reads_forget(struct reads *reads, size_t region, uint64_t first, uint64_t count)
{
	if (!run_exists(reads, region, first, count) || count > reads->pages - reads->forgotten)
		return -EPROTO;
	uint64_t pages = cell_pages(&reads->memory->regions[region]);

	reads->forgotten += count;
	for (uint64_t cell = first / pages; cell * pages < first + count; cell++) {
		struct reads_chunk *chunk = reads->cells[region][cell];
		if (!touches(chunk, first, count))
			continue;
		atomic_store(&chunk->withdrawn, true);
		reads->cells[region][cell] = NULL;
	}
	return 0;
}

bool reads_find(const struct reads *reads, size_t region, uint64_t page, uint64_t count,
		struct reads_place *place)
{
	const struct guest_region *of;
	const struct reads_chunk *chunk;

	if (!reads->memory || !reads->cells[region])
		return false;
	of = &reads->memory->regions[region];
	chunk = atomic_load_explicit(&reads->cells[region][page / cell_pages(of)],
				     memory_order_acquire);
	if (!chunk || atomic_load_explicit(&chunk->withdrawn, memory_order_acquire) ||
	    page < chunk->first || page - chunk->first >= chunk->count)
		return false;
	uint64_t left = chunk->count - (page - chunk->first);
	place->address = chunk->address + (page - chunk->first) * of->page_bytes;
	place->key = chunk->key;
	place->count = count < left ? count : left;
	return true;
}
