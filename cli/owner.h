/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner of a VM that has a process of its own: nobody runs for it all the time, so whoever
 * moves it owns it meanwhile, on a thread of its own in this process. To every other command it is
 * an owner like any.
 */
#ifndef CLI_OWNER_H
#define CLI_OWNER_H

#include <stdbool.h>

#include "jaunt.h"

struct owner;

/* Takes hold of the VM (qemu:SOCKET) and answers to its name. -EEXIST: somebody does already. The
 * name stays the caller's. */
int owner_start(struct owner **out, const char *name, struct jaunt_error *error);
/* Waits until no migration is under way, and lets go of the VM. NULL is fine. */
void owner_end(struct owner *owner);

#endif
