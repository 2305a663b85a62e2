/* SPDX-License-Identifier: MIT */
/* Notes in a shared record what the guest gives back. Noting neither allocates nor waits, and may
 * happen on any thread of QEMU's; the rest is for the agent's own thread. */
#ifndef VMM_QEMU_AGENT_DISCARDS_H
#define VMM_QEMU_AGENT_DISCARDS_H

#include <stdint.h>

#include "vmm/qemu/agent/protocol.h"

/* Begins to note, in place of what was noted before. `record` stays the caller's. -EINVAL: the
 * request or the record is not sound; -EPERM: the record could shrink under our feet; -ENOMEM. */
int discards_watch(const struct agent_watch *watch, int record);
/* When it returns, nobody looks at the record any more. */
void discards_unwatch(void);
/* In a child of fork(): forgets what only the parent may note. */
void discards_forget(void);

/* After the fact: [offset, offset + bytes) of a file was punched, of a mapping removed. */
void discards_note_file(int fd, int64_t offset, int64_t bytes);
void discards_note_view(const void *address, uint64_t bytes);

#endif
