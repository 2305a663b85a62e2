/* SPDX-License-Identifier: Apache-2.0 */
/* What QEMU's guest does, in QEMU's word: "running", "paused", "inmigrate", "postmigrate", … */
#ifndef VMM_QEMU_RUNSTATE_H
#define VMM_QEMU_RUNSTATE_H

#include "vmm/qemu/qmp.h"

#define RUNSTATE_MAX 32

/* Errors are those of qmp_execute(), with "unknown" in place of the word. */
int runstate_ask(struct qmp *qmp, unsigned timeout_ms, char word[RUNSTATE_MAX],
		 struct jaunt_error *error);

/* What the guest did when its state began to be saved behind its last memory, as the state says.
 * False: it does not say. */
bool runstate_saved(const void *state, size_t bytes, char word[RUNSTATE_MAX]);

#endif
