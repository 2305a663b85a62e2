/* SPDX-License-Identifier: Apache-2.0 */
/* What the engine decided in the rounds of a migration, and why: as JSON between processes and in
 * reports, and as a table for people. */
#ifndef CLI_EXPLAIN_H
#define CLI_EXPLAIN_H

#include <jansson.h>
#include <stdio.h>

#include "jaunt.h"

/* An array, empty if nothing was decided; NULL without memory. `migration` may be NULL. */
json_t *explain_json(struct jaunt_migration *migration);
/* One decision of that array. */
json_t *explain_decision_json(const struct jaunt_decision *decision);

/* The table of such an array, which may come from another version and lack fields. */
void explain_print(FILE *out, const json_t *decisions);

#endif
