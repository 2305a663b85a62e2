/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a QEMU can take part in a migration, and what to change if not: for `jaunt doctor`. */
#ifndef VMM_QEMU_EXAMINE_H
#define VMM_QEMU_EXAMINE_H

#include <stddef.h>

#include "jaunt.h"

#define EXAMINE_MAX 40

/* Looks at the QEMU behind a monitor, changes nothing of it, and fills at most EXAMINE_MAX
 * findings; returns how many. */
size_t examine_qemu(const char *monitor, struct jaunt_check checks[EXAMINE_MAX]);

#endif
