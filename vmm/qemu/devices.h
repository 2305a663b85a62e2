/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of a QEMU as facts: what they are, where they are plugged, how they are set. */
#ifndef VMM_QEMU_DEVICES_H
#define VMM_QEMU_DEVICES_H

#include "vmm/qemu/ask.h"

/* "device ID" for each that was asked for, "board devices", "pci BUS:SLOT.FUNCTION". Calls `visit`
 * for each that was asked for, by the name that stands in its fact. */
void devices_tell(struct ask *asking,
		  void (*visit)(struct ask *asking, const char *name, const char *type));

/* The name of a device in its facts, by its path or its id. */
void devices_name(struct ask *asking, const char *path, char *name, size_t room);

/* Whether a property of this type is a number, a text, a truth or one word of a few. */
bool devices_is_plain(const char *type);

#endif
