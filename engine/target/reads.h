/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of the source's memory this side may READ: the chunks that the source has exposed, found by
 * page.
 *
 * One thread tells it of chunks and lets it forget them (before the epoch begins, or when all
 * channels are replaced: otherwise no chunk goes away, and so no READ can be under way of one that
 * has); any thread looks up. A chunk
 * is never changed once it can be found.
 */
#ifndef ENGINE_TARGET_READS_H
#define ENGINE_TARGET_READS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/guestmem.h"

/* A look-up finds what was told last for the cell that the page lies in. */
#define READS_CELL_BYTES (UINT64_C(16) << 20)

struct reads_chunk {
	uint64_t first, count; /* pages */
	uint64_t address;      /* of the first, at the source */
	uint32_t key;
	_Atomic bool withdrawn; /* by reads_forget(); no matter to reads_tell() */
};

struct reads {
	const struct guestmem *memory;
	/* By cell; set (release) once the chunk is whole, read with acquire. */
	_Atomic(struct reads_chunk *) *cells[JAUNT_MAX_REGIONS];
	uint64_t cell_count[JAUNT_MAX_REGIONS];
	/* The telling thread's own. */
	struct reads_batch *batches; /* every chunk that was told, until reads_close() */
	struct reads_batch *past;    /* of attachments before, for whoever still looks at one */
	uint64_t chunks, chunks_max;
	uint64_t pages, forgotten; /* of memory; of them, in runs that were forgotten */
	_Atomic uint64_t bytes;    /* of memory that this holds */
};

/* Where to READ a run of pages. */
struct reads_place {
	uint64_t address;
	uint64_t
		count; /* pages from there on that are exposed in one piece, as asked for at most */
	uint32_t key;
};

int reads_open(struct reads *reads, const struct guestmem *memory);
void reads_close(struct reads *reads); /* nobody looks up any more; also of one that is all zero */

/* Takes chunks; -EPROTO: one lies beyond its region; there are more than could ever be of use;
 * -ENOMEM. `region` and `chunk` of the same index belong together. */
int reads_tell(struct reads *reads, const size_t *regions, const struct reads_chunk *chunks,
	       size_t count);
/* Forgets every chunk that a page of the run would be READ from, all of it. -EPROTO: no such run;
 * more pages in all than memory has, which runs of their own never are. */
int reads_forget(struct reads *reads, size_t region, uint64_t first, uint64_t count);

/* The session is attached again: what was told before is found no more, and keys are told from
 * scratch. `quiet`: whoever looks up has taken over new channels since the last call, and so
 * has nothing in hand of what was told before it. */
void reads_restart(struct reads *reads, bool quiet);

/* Whether the page may be READ; how, and how many of up to `count` from it on. Any thread. */
bool reads_find(const struct reads *reads, size_t region, uint64_t page, uint64_t count,
		struct reads_place *place);

#endif
