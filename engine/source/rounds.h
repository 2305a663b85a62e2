/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of pre-copy, as the streams share them: each round sends what is dirty when its stream
 * comes by, every stream its own stripes of memory (2 MiB, in turn), from the beginning to the end,
 * and ends with ROUND; the round is over when the target has acknowledged it on every stream.
 *
 * The first round has no tracker's reports to go by: it begins with nothing dirty, and what the
 * search for holes calls data becomes dirty as the search goes on. No stream passes the search.
 *
 * A page is taken before its bytes are read (dirty.h), so a write after that is found by the next
 * collect. It always travels on the stream that owns its stripe, so no older copy passes a newer
 * one; only holes come on the first stream, and never replace anything.
 */
#ifndef ENGINE_SOURCE_ROUNDS_H
#define ENGINE_SOURCE_ROUNDS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/source/shared.h"

struct hole_run;

#define ROUNDS_STRIPE_BYTES (UINT64_C(2) << 20)

struct rounds {
	struct source_shared *shared;
	/* Rounds begun. Written (release) by the source's thread when all is set for the round. */
	_Atomic uint64_t begun;
	_Atomic bool cut;         /* the round ends where it stands */
	_Atomic unsigned to_come; /* streams that have not acknowledged it */
	/* First round: before this page everything is dirty, sent, or told to be a hole. */
	_Atomic uint64_t searched[JAUNT_MAX_REGIONS];
	_Atomic bool search_over;
	_Atomic uint64_t hole_bytes; /* found so far */
	void (*wake)(void *user);    /* all streams: there may be something to do. Any thread */
	void *user;
};

/* Where one stream stands. Its thread's own. */
struct round_walk {
	uint64_t round; /* that it has begun; 0: none */
	size_t region;
	uint64_t page;
	bool ended, acknowledged;
	/* Taken, and not sent yet. */
	uint64_t first, count;
};

enum round_step {
	ROUND_IDLE, /* nothing to do until somebody wakes the stream */
	ROUND_RUN,  /* send pages of walk->region from walk->first on, and say so: rounds_sent() */
	ROUND_END,  /* send ROUND, and say so: rounds_ended() */
};

/* --- The source's thread -----------------------------------------------------------------------
 */

void rounds_init(struct rounds *rounds, struct source_shared *shared, void (*wake)(void *user),
		 void *user);
/* Afterwards every stream is to be woken. */
void rounds_begin(struct rounds *rounds);
bool rounds_over(const struct rounds *rounds);
/* The round ends as soon as what is under way is sent; streams are to be woken. */
void rounds_cut(struct rounds *rounds);

/* --- The streams' threads ----------------------------------------------------------------------
 */

enum round_step rounds_next(struct rounds *rounds, struct round_walk *walk, unsigned stream,
			    uint64_t most);
void rounds_sent(struct round_walk *walk, uint64_t count);
void rounds_ended(struct round_walk *walk);
/* ROUND-ACK: 1 it was the last stream's, 0, or -EPROTO: it makes no sense. */
int rounds_acknowledged(struct rounds *rounds, struct round_walk *walk, uint64_t number);

/* The first stream's: what lies between the last hole and this one is data. */
void rounds_searched(struct rounds *rounds, const struct hole_run *run);
/* The search is over: what it did not get to is data. True the first time. */
bool rounds_search_over(struct rounds *rounds);

#endif
