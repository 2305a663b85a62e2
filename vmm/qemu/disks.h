/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disks of a QEMU as facts, each file of their backing chains with what tells it from others:
 * "disk NAME: image", "disk NAME: backing N", and "medium NAME" and "flash NAME" in the same way.
 */
#ifndef VMM_QEMU_DISKS_H
#define VMM_QEMU_DISKS_H

#include "vmm/qemu/ask.h"

void disks_tell(struct ask *asking);

#endif
