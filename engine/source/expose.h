/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exposing guest memory at the source, so that the target can READ it: registration with the
 * device, chunk by chunk, in threads of its own. Once while the VM runs, ahead of the pause; and
 * once after the switch, for what has gone stale or come since. What is not exposed at any moment
 * is fetched by message.
 *
 * Threads: one thread starts, takes, freezes and stops; expose_discarded() and the figures are for
 * any.
 */
#ifndef ENGINE_SOURCE_EXPOSE_H
#define ENGINE_SOURCE_EXPOSE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/guestmem.h"
#include "engine/source/chunks.h"
#include "transport/transport.h"

#define EXPOSE_THREADS_MAX 4u

struct expose_block;

/* A chunk to tell of, or a run to be forgotten (then only region, first and count). */
struct expose_told {
	size_t region;
	uint64_t first, count;
	uint64_t address;
	uint32_t key;
};

struct expose_figures {
	uint64_t bytes;       /* registered now, of both passes */
	uint64_t hole_bytes;  /* of them: allocated by the registration */
	uint64_t wanted;      /* bytes of data before the first pass */
	uint64_t took_ns;     /* from a pass's start to its end or to now, of both passes */
	uint64_t estimate_ns; /* of the first pass, made before it began; 0: there is none */
	uint64_t stale; /* chunks that were registered again since the guest gave back pages */
};

struct expose {
	const struct guestmem *memory;
	const struct channel *channel; /* not owned; its device is the one */
	void (*ready)(void *user);     /* there is something to take, or a pass is over */
	void *user;
	struct expose_block *blocks; /* of all regions, one after the other */
	uint64_t block_count, region_block[JAUNT_MAX_REGIONS];
	bool on_demand;                       /* nothing is pinned, so nothing goes stale */
	uint64_t room_bytes, hole_room_bytes; /* what may be registered, allocated, at most */

	pthread_t threads[EXPOSE_THREADS_MAX];
	unsigned thread_count;     /* to be joined */
	_Atomic unsigned working;  /* threads of the pass that goes on */
	_Atomic uint64_t next;     /* block to be taken */
	_Atomic uint64_t untold;   /* chunks that nobody has taken */
	_Atomic bool stop, refuse; /* refuse: no more can be registered */
	bool after;                /* the second pass */
	uint64_t scanned;          /* expose_take(): where to go on */

	_Atomic bool exposing; /* `blocks` are there, until expose_free() */
	_Atomic bool discards; /* some block is stale */
	_Atomic bool open;     /* `mutex` exists: set once, for those who ask for figures */

	_Atomic uint64_t bytes, hole_bytes, wanted, stale, started_ns, took_ns, estimate_ns;
	pthread_mutex_t mutex;  /* guards `why` */
	struct jaunt_error why; /* why less is exposed than there is; code 0: it is not */
};

/* Looks at the limits and estimates. Nothing is exposed before expose_again(), unless it is on
 * demand. For a VM of which nobody hears what it gives back while it runs. -ENOMEM */
int expose_open(struct expose *expose, const struct guestmem *memory, const struct channel *channel,
		void (*ready)(void *user), void *user);
/* The same, and starts the first pass. -ENOMEM, -EAGAIN: the threads; then nothing is exposed. */
int expose_start(struct expose *expose, const struct guestmem *memory,
		 const struct channel *channel, void (*ready)(void *user), void *user);
/* The pass is over. */
bool expose_finished(const struct expose *expose);
/* Up to `room` chunks that the target has not been told of. */
size_t expose_take(struct expose *expose, struct expose_told *out, size_t room);

/* The guest gave these pages back (a balloon, free page reporting): what is registered there is not
 * the guest's memory any more. At any time before expose_freeze(). */
void expose_discarded(struct expose *expose, size_t region, uint64_t first, uint64_t count);
/* The VM is paused: runs with chunks that the target was told of and must forget. At most `room`,
 * which is more than the regions: where there would be more, runs take in chunks that were good. */
size_t expose_freeze(struct expose *expose, struct expose_told *out, size_t room);
/* After the switch: the second pass. As expose_start(). */
int expose_again(struct expose *expose);

/* Stopped, and no channel of the session is left: revokes and forgets all that is exposed. */
void expose_forget(struct expose *expose);
/* That channel's device from here on; behind it expose_again(). */
void expose_use(struct expose *expose, const struct channel *channel);

/* Ends a pass. */
void expose_stop(struct expose *expose);
/* Revokes every key and unpins; when no channel of the session is left, or nothing matters any
 * more. Also of one that is all zero, and more than once. */
void expose_close(struct expose *expose);
/* Closed, and nobody reports discards or asks for figures any more. */
void expose_free(struct expose *expose);

void expose_figures(const struct expose *expose, struct expose_figures *figures);
/* Why less is exposed than there is; false: it is not. Any thread. */
bool expose_why(struct expose *expose, struct jaunt_error *why);

#endif
