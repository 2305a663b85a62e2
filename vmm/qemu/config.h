/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a QEMU is made of, as facts: machine, processors, memory, devices, disks, and what of it
 * cannot move. Collected in the same way from a guest that runs and from a QEMU that waits with
 * -incoming defer; compared by vmm/qemu/compare. Nothing is changed in QEMU.
 */
#ifndef VMM_QEMU_CONFIG_H
#define VMM_QEMU_CONFIG_H

#include "vmm/qemu/facts.h"
#include "vmm/qemu/qmp.h"

/* Dozens to hundreds of questions, each short; `timeout_ms` is for each. Errors are those of qmp.h,
 * and reason "bad-description" when there are more facts than fit. `facts` starts empty, and is to
 * be closed whatever is returned. */
int config_collect(struct facts *facts, struct qmp *qmp, unsigned timeout_ms,
		   struct jaunt_error *error);

#endif
