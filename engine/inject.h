/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named points of fault injection. Compiled in with JAUNT_INJECT; otherwise every function here is
 * an empty inline and costs nothing.
 *
 * The environment variable JAUNT_INJECT says which points fire, and when:
 *
 *     JAUNT_INJECT="data.flip:nth=100;reply.delay:every=1,delay_us=1000"
 *
 * A pass is one time that the code comes by an armed point. A point with no key fires once, on its
 * first pass. The keys:
 *
 *     nth=N       the first pass to fire on (without it: 1, or `every`)
 *     every=N     from then on, every N-th pass, for ever unless `count` says otherwise
 *     count=N     how often it fires in all
 *     delay_us=N  how long a delay lasts; a hold lasts for ever without it
 *     seed=N      where a choice is made (which byte), it follows from this and the pass
 *
 * A name may be preceded by the side it is meant for, "source." or "target.", of which a process
 * says which one it is (inject_side()); a point for another side never fires.
 */
#ifndef ENGINE_INJECT_H
#define ENGINE_INJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

enum inject_point {
	INJECT_DATA_FLIP,       /* flip one bit of a payload */
	INJECT_DATA_LOSE,       /* a page is lost: zeros are sent in its place */
	INJECT_DATA_TEAR,       /* the second half of a page comes from elsewhere */
	INJECT_DATA_TWICE,      /* send a run of pages twice */
	INJECT_DATA_STALE,      /* send an older valid copy of a page */
	INJECT_REPLY_DELAY,     /* answer a demand fetch late, by delay_us */
	INJECT_CHANNEL_DROP,    /* go silent: nothing is sent on the channel any more */
	INJECT_CHANNEL_CUT,     /* shut the channel down */
	INJECT_MEMORY_FULL,     /* target: no room for a page that is to be placed */
	INJECT_LINK_CUT_LOADED, /* target: the control link ends before LOADED is sent */
	INJECT_LINK_CUT_COMMIT, /* source: it ends with COMMIT recorded, before it is sent */
	INJECT_KILL_PREPARE,    /* SIGKILL this process: before the pause */
	INJECT_KILL_ROUND,      /* in a round of pre-copy; the target: where one ends */
	INJECT_KILL_AHEAD,      /* device state is under way, and the VM runs at the source */
	INJECT_KILL_SWITCHOVER,
	INJECT_KILL_BEFORE_COMMIT,
	INJECT_KILL_AFTER_COMMIT,
	INJECT_KILL_POSTCOPY,
	INJECT_KILL_CLAIMED, /* target: pages are claimed, nothing of them is placed */
	INJECT_KILL_WRITTEN, /* they are in the file, and not yet made visible */
	INJECT_KILL_VISIBLE, /* they are visible, and not yet called present */
	INJECT_HOLD_PREPARE, /* source: everything is connected, and it does not pause the VM */
	INJECT_HOLD_AHEAD,   /* source: the first device state is sent; the VM runs, or may */
	INJECT_HOLD_HELD, /* source: all that can be sent ahead is; perhaps the VMM has paused it */
	INJECT_HOLD_SWITCHOVER, /* the state is saved and not sent, or has come and is not loaded */
	INJECT_HOLD_BEFORE_COMMIT, /* source: LOADED was heard */
	INJECT_POINTS,
};

enum inject_key {
	INJECT_NTH,
	INJECT_EVERY,
	INJECT_COUNT,
	INJECT_DELAY_US,
	INJECT_SEED,
	INJECT_KEYS,
};

enum inject_side { INJECT_ANY_SIDE, INJECT_SOURCE, INJECT_TARGET };

#ifdef JAUNT_INJECT

/* Arms what the text says, in place of what was armed before; NULL or "": nothing. -EINVAL: `error`
 * names what is wrong, and the names there are. Not while points may be passed. */
int inject_configure(const char *text, struct jaunt_error *error);
/* The same from the environment, once a process; every further call returns what the first did.
 * Any thread. */
int inject_init(struct jaunt_error *error);
/* The side that this process is; INJECT_ANY_SIDE, as at the beginning, fires for both. */
void inject_side(enum inject_side side);

/* A pass: does the point fire? Any thread; exactly one of those passing at once is the n-th. */
bool inject_fires(enum inject_point point);
/* Whether it may ever fire: for preparations. No pass. */
bool inject_armed(enum inject_point point);
/* How often it fired. */
uint64_t inject_fired(enum inject_point point);
/* What a key was set to, else 0. */
uint64_t inject_value(enum inject_point point, enum inject_key key);
/* A number that follows from `seed` and how often the point fired. */
uint64_t inject_random(enum inject_point point);

/* A pass of a point of those kinds, and what it says. */
void inject_kill(enum inject_point point);
void inject_delay(enum inject_point point);
/* Until when (CLOCK_MONOTONIC) to wait there for whatever else may end the phase, UINT64_MAX: for
 * nothing but that. 0: it does not fire. */
uint64_t inject_hold_until_ns(enum inject_point point);

#else

static inline int inject_configure(const char *text, struct jaunt_error *error)
{
	(void)text, (void)error;
	return 0;
}
static inline int inject_init(struct jaunt_error *error)
{
	(void)error;
	return 0;
}
static inline void inject_side(enum inject_side side)
{
	(void)side;
}
static inline bool inject_fires(enum inject_point point)
{
	(void)point;
	return false;
}
static inline bool inject_armed(enum inject_point point)
{
	(void)point;
	return false;
}
static inline uint64_t inject_fired(enum inject_point point)
{
	(void)point;
	return 0;
}
static inline uint64_t inject_value(enum inject_point point, enum inject_key key)
{
	(void)point, (void)key;
	return 0;
}
static inline uint64_t inject_random(enum inject_point point)
{
	(void)point;
	return 0;
}
static inline void inject_kill(enum inject_point point)
{
	(void)point;
}
static inline void inject_delay(enum inject_point point)
{
	(void)point;
}
static inline uint64_t inject_hold_until_ns(enum inject_point point)
{
	(void)point;
	return 0;
}

#endif
#endif
