/* SPDX-License-Identifier: Apache-2.0 */
/* What a report says about where it was made: host, kernel, build. */
#ifndef CLI_IDENTITY_H
#define CLI_IDENTITY_H

#include <jansson.h>

/* Sets "host", "kernel", "machine" {…} and "build" {"version", "revision", "compiler"} in `object`.
 */
void identity_add(json_t *object);

/* "1a2b3c4-dirty", or "unknown" when it was not built from a repository. */
const char *identity_revision(void);
const char *identity_compiler(void);

#endif
