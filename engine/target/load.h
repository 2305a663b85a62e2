/* SPDX-License-Identifier: Apache-2.0 */
/* Loading the VM's device state at the target, with somebody to look on: a load that waits for
 * guest memory which will not come any more is let go of, and has failed. */
#ifndef ENGINE_TARGET_LOAD_H
#define ENGINE_TARGET_LOAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

struct target;

enum load_state {
	LOAD_WAITING,
	LOAD_LOADING,
	LOAD_DOOMED, /* given up while it was loading: the VM's memory is not what it should be */
	LOAD_ENDED,
};

struct load {
	struct target *target;
	bool prepared;     /* owned by whoever prepares and ends */
	uint64_t since_ns; /* written before LOADING, read after */
	pthread_t thread;
	pthread_mutex_t mutex; /* guards the rest */
	pthread_cond_t changed;
	enum load_state state;
	struct jaunt_error why; /* DOOMED; does not change any more */
};

/* Starts the thread that looks on: before the VM is paused, since that takes time. 0 or -errno,
 * with nothing to end. */
int load_prepare(struct load *load, struct target *target);
/* Calls the driver. 0, or -errno with `error`: then the VM must not run, but be destroyed. */
int load_run(struct load *load, uint64_t *took_ns, struct jaunt_error *error);
/* Joins the thread, if it was prepared. The VM's memory is still there. */
void load_end(struct load *load);

#endif
