/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jaunt's end of a conversation with the agent inside a QEMU (vmm/qemu/agent). One thread at a
 * time. Calls wait for the agent's answer, 5 s at most. Errors come as -errno with `error` filled:
 * reason "no-agent" (nobody is there), "agent-refused" (it said no: the errno is its own),
 * "agent-silent".
 */
#ifndef VMM_QEMU_ATTACH_H
#define VMM_QEMU_ATTACH_H

#include <stddef.h>
#include <sys/types.h>

#include "jaunt.h"
#include "vmm/qemu/agent/protocol.h"

struct attach {
	int fd;
	pid_t process; /* QEMU, as the agent numbers it */
};

/* Where the agent of a process listens, found through its environment as it was started. */
int attach_path(pid_t process, char *path, size_t room, struct jaunt_error *error);

int attach_open(struct attach *attach, const char *path, struct jaunt_error *error);
void attach_close(struct attach *attach);

/* A new userfaultfd of QEMU's address space, on which UFFDIO_API has not been called; the agent
 * keeps a copy in `slot`. Where QEMU may not make one it is made through /dev/userfaultfd, if this
 * process may open that. Returns the caller's descriptor; -EBUSY: there is one in that slot. */
int attach_make(struct attach *attach, unsigned slot, struct jaunt_error *error);
/* A copy of what lies in `slot`; -ENOENT: nothing. */
int attach_take(struct attach *attach, unsigned slot, struct jaunt_error *error);
/* The agent keeps a copy of `fd` open for the life of QEMU. */
int attach_keep(struct attach *attach, unsigned slot, int fd, struct jaunt_error *error);
int attach_drop(struct attach *attach, unsigned slot, struct jaunt_error *error);

/* Notes the guest's discards in `record` (see record.h) until attach_unwatch() or attach_close().
 */
int attach_watch(struct attach *attach, const struct agent_region *regions, size_t count,
		 int record, struct jaunt_error *error);
int attach_unwatch(struct attach *attach, struct jaunt_error *error);

#endif
