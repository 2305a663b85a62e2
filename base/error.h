/* SPDX-License-Identifier: Apache-2.0 */
/* Filling a struct jaunt_error at the edge of a module, and adding context on its way up. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include "jaunt.h"

/* Fills `error` (which may be NULL) and returns -code. `code` is a positive errno; `reason` a
 * stable word. The text says what was being done and what the user can do about it. */
int error_set(struct jaunt_error *error, int code, const char *reason, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Puts "context: " in front of the text. Returns -error->code. */
int error_context(struct jaunt_error *error, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

void error_clear(struct jaunt_error *error);

#endif
