/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread with a ring: the shape of every thread that serves a channel.
 *
 *     begin → { pump → ring_wait }* → end
 *
 * All three run on the worker's thread. `pump` does what there is to do without waiting and returns
 * how long ring_wait() may sleep (nanoseconds, negative: until something happens).
 */
#ifndef ENGINE_WORKER_H
#define ENGINE_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "transport/ring.h"

struct worker_ops {
	int (*begin)(void *user,
		     struct ring *ring); /* optional; 0 or -errno, then no pump, no end */
	int64_t (*pump)(void *user);
	void (*end)(void *user); /* optional */
};

enum worker_rank {
	WORKER_URGENT, /* a guest waits for it */
	WORKER_BULK,   /* works long stretches, and must let go of the CPU soon */
	WORKER_NORMAL,
};

struct worker {
	const struct worker_ops *ops;
	void *user;
	char name[16];
	enum worker_rank rank;
	pthread_t thread;
	_Atomic int id;           /* the kernel's, of the running thread; else 0 */
	_Atomic uint64_t busy_ns; /* once it has ended */
	struct ring *ring;        /* set before worker_start() returns; woken by other threads */
	_Atomic bool stop;        /* set by worker_stop(); read in the loop */
	bool running;             /* owned by whoever starts and stops */
	int begin_result;         /* written by the thread before `started`, read after */
	pthread_mutex_t mutex;    /* guards `started` */
	pthread_cond_t changed;
	bool started;
};

/* Starts the thread and waits until begin() returned; its result. */
int worker_start(struct worker *worker, const char *name, enum worker_rank rank,
		 const struct worker_ops *ops, void *user);
/* Makes pump() run. Any thread, at any time after the struct was zeroed. */
void worker_wake(struct worker *worker);
/* Has the thread end, without waiting for that: of several, before the first worker_stop(), so that
 * they end side by side. */
void worker_tell_to_stop(struct worker *worker);
/* How long the thread has run, or waited for a CPU, so far; where the kernel does not tell the wait
 * (CONFIG_SCHED_INFO), 0. Any thread, until worker_stop(). */
uint64_t worker_busy_ns(const struct worker *worker);
/* Ends and joins the thread, if it runs. */
void worker_stop(struct worker *worker);

/* Makes the calling thread one that a guest waits for; says what it was before. */
struct worker_rank_saved {
	bool known;
	int32_t nice;
	uint64_t slice_ns;
};
struct worker_rank_saved worker_rank_raise(void);
void worker_rank_restore(const struct worker_rank_saved *before);

#endif
