/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much a stream keeps outstanding, as a function of when it asked and of what came when: no
 * clock and no I/O. So much that the link stays busy over its round trip: twice the product of the
 * rate achieved and the shortest time from asking to the first answer of an idle stream, in whole
 * blocks.
 *
 * The rate goes up at once and down slowly, since a stream that has too little out measures that,
 * and not the link. Pages told to be zero keep it from going down, and never raise it: they come
 * faster than any link would bring them, and what would be asked for on their word then queues in
 * the link when it is data.
 */
#ifndef ENGINE_TARGET_WINDOW_H
#define ENGINE_TARGET_WINDOW_H

#include <stdint.h>

#include "engine/budget.h"

struct window {
	unsigned blocks;        /* to keep out */
	unsigned most;          /* of them, ever */
	double rate;            /* bytes a nanosecond: the last measured, or what is left of more */
	uint64_t round_trip_ns; /* the shortest seen; 0: none yet */
	uint64_t asked_ns;      /* when an idle stream asked; 0: the first answer has come */
	/* Of the measurement under way. */
	uint64_t from_ns, data_bytes, zero_bytes;
};

/* Nothing is known but guesses: what the link brings, and how long its round trip is (0: no idea).
 */
void window_open(struct window *window, unsigned most, uint64_t bytes_per_s,
		 uint64_t round_trip_ns);
/* An idle stream, of which nothing was out, has asked. */
void window_asked(struct window *window, uint64_t now_ns);
/* So much of what was asked for has come, as data and as zeros; perhaps only word that it ends. */
void window_answered(struct window *window, uint64_t now_ns, uint64_t data_bytes,
		     uint64_t zero_bytes);

#endif
