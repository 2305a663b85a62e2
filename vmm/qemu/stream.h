/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of QEMU's devices: its own migration stream, without guest RAM, through a descriptor
 * that is handed to QEMU over its monitor. No path, no port, no permission, and nothing that a
 * sandbox forbids.
 */
#ifndef VMM_QEMU_STREAM_H
#define VMM_QEMU_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "jaunt.h"

#define STREAM_MAX (64u << 20) /* bytes */

struct qemu;

/* Hands QEMU its end of a channel. Ahead of use: it is one question to QEMU less when the guest
 * stands still. */
int stream_offer(struct qemu *vm, struct jaunt_error *error);
void stream_withdraw(struct qemu *vm);

/* Has QEMU begin to write its state while the guest runs: memory of its own that is not guest RAM.
 * When it has written that it stops the guest by itself. */
int stream_begin(struct qemu *vm, struct jaunt_error *error);
/* What it has written, as jaunt_vm_ops.save_ahead() says; 2 when QEMU has stopped the guest. 0,
 * too, when the guest is to be stopped although QEMU has not done so, since it writes that memory
 * as fast as QEMU does. */
int stream_ahead(struct qemu *vm, void *buffer, size_t room, size_t *bytes,
		 struct jaunt_error *error);
/* By its own words it has stopped the guest, and waits to write the rest. */
bool stream_waits(struct qemu *vm);
/* Whether QEMU has written all of its last one, read or not. */
bool stream_is_written(struct qemu *vm);
/* Has it give up what was begun, and waits until it has: if it had stopped the guest by itself,
 * that runs again. */
int stream_cancel(struct qemu *vm, struct jaunt_error *error);

/* Has QEMU write its state, or the rest of it: malloc()ed bytes that become the caller's, also if
 * it fails: what has come of it, or NULL. The guest is stopped. */
int stream_save(struct qemu *vm, void **state, size_t *bytes, struct jaunt_error *error);
/* Has QEMU read what was written while the guest ran. From here on it is of no other use
 * (vm->spent). */
int stream_load_ahead(struct qemu *vm, const void *state, size_t bytes, struct jaunt_error *error);
/* Has QEMU read all of it, or the rest, to the end. vm->spent, too. */
int stream_load(struct qemu *vm, const void *state, size_t bytes, struct jaunt_error *error);

#endif
