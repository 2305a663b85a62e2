/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a trace can be written, found out before anything moves. */
#ifndef CLI_TRACEFILE_H
#define CLI_TRACEFILE_H

#include "jaunt.h"

/* Makes the file if it is not there and tries to reserve room for the beginning of a trace; what it
 * made is removed again on failure. */
int tracefile_check(const char *path, struct jaunt_error *error);

/* An absolute path for another process: malloc()ed. */
int tracefile_absolute(char **out, const char *path, struct jaunt_error *error);

#endif
