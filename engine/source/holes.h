/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search for holes in guest memory, in a thread of its own, after the pause and beside
 * everything else. It finds runs in order; the first stream takes them and tells the target.
 */
#ifndef ENGINE_SOURCE_HOLES_H
#define ENGINE_SOURCE_HOLES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/guestmem.h"

#define HOLES_QUEUE 1024u

struct hole_run {
	size_t region;
	uint64_t first, count; /* pages; count 0: only progress */
	uint64_t told;         /* after this run, all holes before this page are known */
};

struct holes {
	const struct guestmem *memory;
	void (*found)(void *user); /* something was put into an empty queue */
	void *user;
	pthread_t thread;
	bool running;
	pthread_mutex_t mutex; /* guards the queue */
	pthread_cond_t changed;
	struct hole_run queue[HOLES_QUEUE]; /* ring */
	unsigned head, count;
	bool stop, over;
};

/* Before anything else; holes_take() finds nothing until the search was started. */
void holes_init(struct holes *holes, const struct guestmem *memory, void (*found)(void *user),
		void *user);
int holes_start(struct holes *holes);
/* Any thread; false: nothing there right now. */
bool holes_take(struct holes *holes, struct hole_run *run);
/* The search came to its end, and all of it was taken. Any thread. */
bool holes_over(struct holes *holes);
void holes_stop(struct holes *holes);
/* Stopped: forgets what was found, so that it can be started again. */
void holes_reset(struct holes *holes);

#endif
