/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a QEMU cannot move at all, as facts "cannot move: WHAT": a line why, one of advice,
 * "may=yes" where the operator may take it upon himself, "only=rounds" where it stands in the way
 * only while memory is copied from a guest that runs.
 */
#ifndef VMM_QEMU_REFUSE_H
#define VMM_QEMU_REFUSE_H

#include "vmm/qemu/ask.h"

/* Of a device, by its name among the facts; and of everything else. */
void refuse_device(struct ask *asking, const char *name, const char *type);
void refuse_tell(struct ask *asking);

#endif
