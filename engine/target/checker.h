/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `--verify` at the target: digests of pages, asked of the source over a channel of its own and
 * compared with the bytes that arrived, before the guest may see them. Synchronous: each thread
 * that receives pages has a checker of its own. Its cost is no part of any other figure.
 */
#ifndef ENGINE_TARGET_CHECKER_H
#define ENGINE_TARGET_CHECKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/stats.h"
#include "engine/target/shared.h"

#define CHECKER_BUFFER_BYTES (8u << 10) /* one answer */
/* Memory of one beyond the struct. */
#define CHECKER_BYTES (CHECKER_BUFFER_BYTES + FRAME_DIGEST_PAGES * sizeof(uint64_t))

struct checker {
	struct target_shared *shared;
	struct channel *channel; /* owned */
	struct ring *ring;       /* its own: a wait for digests dispatches nothing else */
	struct frame asked;      /* the question that is out; page_count 0: none */
	uint64_t *digests;       /* the answer */
	uint32_t attachment;     /* the channel's */
	/* Set by another thread: what is being waited for will not come. */
	const _Atomic bool *interrupt;
	bool all_zero, answered, dead;
	uint64_t zero_digest[2]; /* of a page of zeros: small, huge */
};

/* On the thread that uses it. Takes the channel over. `interrupt` ends every wait once it is set;
 * NULL: nothing does. */
int checker_open(struct checker *checker, struct target_shared *shared, struct channel *channel,
		 unsigned index, uint32_t attachment, const _Atomic bool *interrupt);
void checker_close(struct checker *checker);

/* Compares count <= 64 pages; sets the bit of each that is not what the source has. -errno: the
 * digests could not be had, nothing is known. */
int checker_pages(struct checker *checker, size_t region, uint64_t first, unsigned count,
		  const uint8_t *bytes, uint64_t *wrong, struct page_counters *counters);

/* Whether all of a run is zero at the source: 1, 0, -errno. Only of a single page is 0 counted as a
 * mismatch: of a longer run it does not say which. At most FRAME_DIGEST_ZERO_BYTES of them. */
int checker_zeros(struct checker *checker, size_t region, uint64_t first, uint64_t count,
		  struct page_counters *counters);

/* A copy of a page was wrong. It stays absent, to be fetched again: true. A wrong copy that was
 * asked for when the page was a suspect already (`asked_again`) takes it out of circulation, and
 * the guest blocks on it: false. Any thread, as all below. */
bool checker_suspect(struct target_shared *shared, size_t region, uint64_t page, bool asked_again);
/* Which pages of one word of the map are suspects: a copy was wrong and none right since. */
uint64_t checker_suspects(struct target_shared *shared, size_t region, uint64_t word);
/* No thread checks any more; while the map is open. */
void checker_forget_suspects(struct target_shared *shared);

#endif
