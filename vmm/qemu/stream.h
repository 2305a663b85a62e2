/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of QEMU's devices: its own migration stream, without guest RAM, through a descriptor
 * that is handed to QEMU over its monitor. No path, no port, no permission, and nothing that a
 * sandbox forbids.
 */
#ifndef VMM_QEMU_STREAM_H
#define VMM_QEMU_STREAM_H

#include <stddef.h>

#include "jaunt.h"

#define STREAM_MAX (64u << 20) /* bytes */

struct qemu;

/* Hands QEMU its end of a channel. Ahead of use: it is one question to QEMU less when the guest
 * stands still. */
int stream_offer(struct qemu *vm, struct jaunt_error *error);
void stream_withdraw(struct qemu *vm);

/* Has QEMU write its state: malloc()ed bytes that become the caller's. The guest is stopped. */
int stream_save(struct qemu *vm, void **state, size_t *bytes, struct jaunt_error *error);
/* Has QEMU read them. From here on it is of no other use (vm->spent). */
int stream_load(struct qemu *vm, const void *state, size_t bytes, struct jaunt_error *error);

#endif
