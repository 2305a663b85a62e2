/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a VM is named on a command line: a name of the runtime directory, or qemu:SOCKET, a QEMU by
 * the socket of its monitor. Such a one has a name of its own in the runtime directory, made from
 * the place of the socket.
 */
#ifndef CLI_VMNAME_H
#define CLI_VMNAME_H

#include <stdbool.h>

#include "cli/runtime.h"
#include "jaunt.h"

#define VMNAME_QEMU "qemu:"

/* The socket of a qemu:SOCKET; NULL: it is not one. */
const char *vmname_monitor(const char *text);

/* The name in the runtime directory of either kind; -EINVAL, reason "bad-name". */
int vmname_runtime(char name[RUNTIME_NAME_MAX + 1], const char *text, struct jaunt_error *error);
/* Whether it can be one. */
int vmname_check(const char *text, struct jaunt_error *error);

#endif
