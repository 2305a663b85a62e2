/* SPDX-License-Identifier: Apache-2.0 */
/* In which items a VM and the one that waits for it differ, for programs and for people. */
#ifndef CLI_MISMATCH_H
#define CLI_MISMATCH_H

#include <jansson.h>
#include <stdio.h>

#include "jaunt.h"

/* An array, empty if nothing differs; NULL without memory. `migration` may be NULL. */
json_t *mismatch_json(struct jaunt_migration *migration);

/* Such an array side by side; it may come from another version and lack fields. */
void mismatch_print(FILE *out, const json_t *differences);

#endif
