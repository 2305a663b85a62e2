/* SPDX-License-Identifier: Apache-2.0 */
/* A guest in a QEMU, as the commands see it: beside cli/guest.h, the one place that knows. */
#ifndef CLI_GUEST_QEMU_H
#define CLI_GUEST_QEMU_H

#include <limits.h>

#include "cli/guest.h"
#include "vmm/qemu/qemu.h"

/* One QEMU: by its name on the command line. */
struct guest_qemu {
	struct qemu_place place;
	char monitor[PATH_MAX], record[PATH_MAX];
};

/* `name` is qemu:SOCKET. */
int guest_qemu_place(struct guest_qemu *qemu, const char *name, struct jaunt_error *error);

/* To be moved away. What a process that died left behind is repaired first; -EBUSY, reason
 * "committed": its guest is another host's. The caller holds the VM's name. */
int guest_qemu_open(const struct guest_qemu *qemu, void **vm, struct guest_facts *facts,
		    struct jaunt_error *error);

/* For a QEMU that no living process moves: repairs what a dead one left, and always returns -errno
 * with what is to be said of it. */
int guest_qemu_idle(const char *name, struct jaunt_error *error);

#endif
