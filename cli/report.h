/* SPDX-License-Identifier: Apache-2.0 */
/* What is left to say at the end of a migration: for programs and for people. */
#ifndef CLI_REPORT_H
#define CLI_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "jaunt.h"

/* "completed", "failed", "cancelled", "incomplete", "unknown". */
const char *report_result(enum jaunt_outcome outcome);

/* The object of `migrate --json` and the body of that of `receive --json`; a new reference. */
json_t *report_json(const char *schema, const struct jaunt_status *status,
		    enum jaunt_outcome outcome);

/* A few lines for people, but not the error. `dry_run`: nothing was to be moved. */
void report_print(FILE *out, const char *name, const struct jaunt_status *status,
		  enum jaunt_outcome outcome, bool dry_run);

/* The same at the target, for a VM that came. */
void report_print_arrival(FILE *out, const char *name, const struct jaunt_status *status);

#endif
