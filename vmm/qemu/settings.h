/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's settings for its own migration: set for the device state alone, and put back. */
#ifndef VMM_QEMU_SETTINGS_H
#define VMM_QEMU_SETTINGS_H

#include <stdbool.h>

#include "vmm/qemu/qmp.h"

struct settings {
	bool ahead;                        /* as it was asked for */
	json_t *capabilities, *parameters; /* as they were; NULL: not changed */
};

/* What a QEMU must have of it, for display, and the first that it lacks by its answer to
 * query-migrate-capabilities; NULL: none. */
#define SETTINGS_WANTED "x-ignore-shared, late-block-activate, events"
const char *settings_missing(const json_t *capabilities);

/* Both sides: guest RAM is left out of the stream, disks are activated only when the guest runs,
 * and there are events; whatever else somebody had turned on is off. `ahead`: the stream begins
 * while the guest runs, and QEMU waits when it has stopped it. */
int settings_make(struct settings *settings, struct qmp *qmp, bool ahead,
		  struct jaunt_error *error);
/* As they were before; errors do not matter to anybody. */
void settings_restore(struct settings *settings, struct qmp *qmp);
void settings_forget(struct settings *settings);
/* For another process that is to put them back: a text, and them from it. False: no room; it is no
 * such text. */
bool settings_write(const struct settings *settings, char *text, size_t room);
bool settings_read(struct settings *settings, const char *text);
/* What a process that died has left, as far as the next migration of QEMU's own would stumble over
 * it; how it was before nobody knows. */
void settings_clear(struct qmp *qmp);

#endif
