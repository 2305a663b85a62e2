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
 * False: it does not say, or says two things. */
bool runstate_saved(const void *state, size_t bytes, char word[RUNSTATE_MAX]);
/* Whether the state of a machine of that type says it. */
bool runstate_is_saved(const char *machine);

#endif
