/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread tells of chunks and takes some back while others look pages up: what they find is
 * always one whole chunk that was told for that page, never half of one and half of another.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/target/reads.h"

#define CELL    (READS_CELL_BYTES / 4096)
#define CELLS   16384u
#define READERS 2
#define ROUNDS  3u
#define STEP    1024u /* cells, after which somebody must have found something */

static struct guestmem memory = {.regions = {{.pages = CELLS * CELL, .page_bytes = 4096}},
				 .region_count = 1};
static struct reads reads;
static atomic_bool finished;
static atomic_int started;
static atomic_ulong found;

static void check(int ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "reads_table: %s\n", what);
		exit(1);
	}
}

/* Everything about a chunk follows from its key: which cell, and which telling of it. */
static struct reads_chunk make(uint32_t cell, uint32_t round)
{
	uint64_t skip = (cell * 7 + round * 13) % 100;
	return (struct reads_chunk){.first = cell * CELL + skip,
				    .count = CELL - 2 * skip,
				    .address =
					    ((uint64_t)(cell + 1) << 32) + round * READS_CELL_BYTES,
				    .key = cell * ROUNDS + round};
}

/* However busy the host is: what is told next is told while the others look. */
static void await_a_find(void)
{
	unsigned long before = atomic_load(&found);

	while (atomic_load(&found) == before)
		sched_yield();
}

static void *tell(void *argument)
{
	const size_t region = 0;

	(void)argument;
	while (atomic_load(&started) < READERS)
		sched_yield();
	for (uint32_t round = 0; round < ROUNDS; round++)
		for (uint32_t cell = 0; cell < CELLS; cell++) {
			struct reads_chunk chunk = make(cell, round);
			check(reads_tell(&reads, &region, &chunk, 1) == 0, "a chunk was refused");
			if (cell % 3 == 0)
				check(reads_forget(&reads, 0, chunk.first, 1) == 0,
				      "a chunk cannot be taken back");
			if (cell % STEP == STEP - 1)
				await_a_find();
		}
	atomic_store(&finished, 1);
	return NULL;
}

static void *look_up(void *argument)
{
	uint64_t state = (uintptr_t)argument;
	struct reads_place place;

	atomic_fetch_add(&started, 1);
	do {
		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		uint64_t page = (state >> 33) % (CELLS * CELL);
		if (!reads_find(&reads, 0, page, 32, &place))
			continue;
		struct reads_chunk chunk = make(place.key / ROUNDS, place.key % ROUNDS);
		check(place.key / ROUNDS == page / CELL, "a chunk of another cell");
		check(page >= chunk.first && page + place.count <= chunk.first + chunk.count &&
			      place.count >= 1 && place.count <= 32,
		      "pages that the chunk does not have");
		check(place.address == chunk.address + (page - chunk.first) * 4096,
		      "an address of another chunk");
		atomic_fetch_add_explicit(&found, 1, memory_order_relaxed);
	} while (!atomic_load(&finished));
	return NULL;
}

int main(void)
{
	pthread_t teller, readers[READERS];

	check(reads_open(&reads, &memory) == 0, "out of memory");
	for (uintptr_t i = 0; i < READERS; i++)
		pthread_create(&readers[i], NULL, look_up, (void *)(i + 1));
	pthread_create(&teller, NULL, tell, NULL);
	pthread_join(teller, NULL);
	for (int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	reads_close(&reads);
	printf("reads_table: %lu found\n", atomic_load(&found));
	return 0;
}
