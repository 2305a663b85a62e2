/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's library, and the list of libraries to load before others. -errno with `error`. */
#ifndef CLI_PRELOAD_H
#define CLI_PRELOAD_H

#include <stddef.h>

#include "jaunt.h"

/* The absolute path of the agent: `wanted`, or with NULL the one that belongs to this program, as
 * installed or as built. -ENOENT: reason "no-agent". */
int preload_find(char *path, size_t room, const char *wanted, struct jaunt_error *error);

/* LD_PRELOAD with the agent in front of what is there already (NULL: nothing). */
int preload_list(char *list, size_t room, const char *agent, const char *before,
		 struct jaunt_error *error);

#endif
