/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest gives back, told to the engine: the agent notes it in a record that is shared with
 * QEMU (record.h), a thread looks into that now and then, and report_now() when the guest has been
 * stopped. Dirty tracking sees nothing of it.
 */
#ifndef VMM_QEMU_REPORT_H
#define VMM_QEMU_REPORT_H

#include <pthread.h>
#include <stdbool.h>

#include "vmm/qemu/attach.h"
#include "vmm/qemu/record.h"
#include "vmm/qemu/regions.h"

struct report {
	bool on;
	struct attach *attach;
	const struct regions *regions;
	struct jaunt_migration *migration;
	pthread_t thread;
	pthread_mutex_t mutex; /* guards the rest, and collecting */
	pthread_cond_t changed;
	bool stop;
	struct record record;
};

/* `attach` and `regions` must outlive it. */
int report_start(struct report *report, struct attach *attach, const struct regions *regions,
		 struct jaunt_migration *migration, struct jaunt_error *error);
/* Tells all that was noted until now. Does nothing if it was not started, like the next. */
void report_now(struct report *report);
void report_stop(struct report *report);

#endif
