/* SPDX-License-Identifier: Apache-2.0 */
/* Whether the process that the VM runs in is still there, where it is not this one. Belongs to the
 * thread of the ring. */
#ifndef ENGINE_PROCESS_H
#define ENGINE_PROCESS_H

#include <stdbool.h>

#include "jaunt.h"
#include "transport/ring.h"

struct process {
	bool watched;
	int fd;
	struct ring_watch watch;
};

/* The ring wakes when it ends. Does nothing for a VM in this process, or of one that cannot be
 * watched. */
void process_watch(struct process *process, const struct jaunt_vm_ops *ops, void *vm,
		   struct ring *ring);
/* Before the ring is destroyed. All zero is fine. */
void process_unwatch(struct process *process);

/* -ESRCH and "vm-gone" if it has ended, or does within patience_ms; else 0. A process that is being
 * killed closes its sockets a moment before it counts as ended. */
int process_check(const struct process *process, int patience_ms, struct jaunt_error *error);

#endif
