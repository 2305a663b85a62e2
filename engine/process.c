/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/process.h"

#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

static void ended(void *user, int mask_or_error)
{
	(void)user, (void)mask_or_error; /* whoever waits looks by itself */
}

void process_watch(struct process *process, const struct jaunt_vm_ops *ops, void *vm,
		   struct ring *ring)
{
	int id = ops->process ? ops->process(vm) : 0;

	process_unwatch(process);
	if (id <= 0)
		return;
	process->fd = (int)syscall(SYS_pidfd_open, id, 0);
	if (process->fd < 0)
		return;
	process->watch = (struct ring_watch){.ready = ended, .fd = process->fd};
	process->watched = ring_watch_add(ring, &process->watch) == 0;
	if (!process->watched)
		close(process->fd);
}

void process_unwatch(struct process *process)
{
	if (!process->watched)
		return;
	ring_watch_remove(&process->watch);
	close(process->fd);
	process->watched = false;
}

/* Whether its parent has noticed or not. */
int process_check(const struct process *process, int patience_ms, struct jaunt_error *error)
{
	struct pollfd asked = {.fd = process->fd, .events = POLLIN};

	if (!process->watched || poll(&asked, 1, patience_ms) <= 0)
		return 0;
	return error_set(error, ESRCH, "vm-gone",
			 "the process that the VM ran in has ended; its own log says why");
}
