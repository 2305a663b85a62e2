/* SPDX-License-Identifier: Apache-2.0 */
/* What cancel, resume and set have in common: ask the owner of a VM for something. */
#ifndef CLI_ACT_H
#define CLI_ACT_H

#include <stdbool.h>

#include "jaunt.h"

/* Sends {"command": request}; complains as `command` if it is refused. With `follow`, waits for the
 * end of the migration: *outcome and *status are then those of it. Returns the exit code of the
 * request itself. */
enum jaunt_outcome act_ask(const char *command, const char *name, const char *request, bool follow,
			   enum jaunt_outcome *outcome, struct jaunt_status *status);

#endif
