/* SPDX-License-Identifier: Apache-2.0 */
/* What the threads of a target that ask for and receive pages share. */
#ifndef ENGINE_TARGET_SHARED_H
#define ENGINE_TARGET_SHARED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "engine/guestmem.h"
#include "engine/session.h"
#include "engine/target/install.h"
#include "engine/target/pagemap.h"
#include "engine/target/prefetch.h"
#include "engine/target/reads.h"

struct trace;

#define HINTS 16u

/* The last faults of one fault thread, for the prefetcher. The fault thread never waits for it: it
 * overwrites what nobody has read. */
struct hints {
	_Atomic uint64_t at[HINTS]; /* region << 48 | page */
	_Atomic uint32_t head;      /* written by the fault thread (release), read (acquire) */
	uint32_t read;              /* under prefetch_mutex */
};

struct target_shared {
	struct session session;
	struct guestmem memory;
	struct pagemap map;
	struct install install;
	struct reads reads; /* all zero where the transport cannot READ */
	struct trace *trace;

	pthread_mutex_t prefetch_mutex; /* guards prefetch, and `read` of the hints */
	struct prefetch prefetch;
	struct hints hints[INSTALL_SHARDS_MAX];
	unsigned hint_count;

	unsigned streams;               /* does not change once they are there */
	_Atomic uint64_t round_trip_ns; /* of the control link; 0: not known */
	_Atomic bool placing;           /* rounds: pages of epoch 0 are placed (place.h) */
	_Atomic bool granting; /* the source's memory is frozen: streams may ask for ranges */
	_Atomic bool push;
	_Atomic bool
		complete_first; /* the VM waits for all of it: streams fill even without push */
	_Atomic uint64_t told[JAUNT_MAX_REGIONS]; /* holes before this page have all been told */

	/* With digests and rounds, else NULL: the file has a copy, to be checked. One bit a page.
	 */
	_Atomic uint64_t *copied[JAUNT_MAX_REGIONS];
	_Atomic uint64_t *demanded[JAUNT_MAX_REGIONS]; /* with note_demanded, else NULL */

	pthread_mutex_t suspects_mutex; /* held to map `suspects` */
	/* A bit a page: a copy did not match its digest, and none has since. Mapped at the first
	 * such copy, for all regions. */
	_Atomic(_Atomic uint64_t *) suspects[JAUNT_MAX_REGIONS];
	_Atomic uint64_t suspects_bytes;
	_Atomic uint64_t condemned; /* pages that did not match twice: they stay missing */
};

/* A receive buffer holds the largest page, and the frames around it. */
static inline size_t target_buffer_bytes(const struct target_shared *shared, size_t least)
{
	size_t one = guestmem_largest_page(&shared->memory) + (64u << 10);
	return one > least ? one : least;
}

#define DEMAND_BUFFER_BYTES (256u << 10)

#endif
