/* SPDX-License-Identifier: Apache-2.0 */
/*
 * struct jaunt_status as JSON and back: what the process that owns a VM tells the other commands,
 * and the body of their reports.
 */
#ifndef CLI_SNAPSHOT_H
#define CLI_SNAPSHOT_H

#include <jansson.h>

#include "jaunt.h"

/* A new object, or NULL without memory. */
json_t *snapshot_json(const struct jaunt_status *status);
json_t *snapshot_percentiles_json(const struct jaunt_percentiles *percentiles);

/* Fields that are missing or of another type become 0 or empty: the other process may be of another
 * version. */
void snapshot_parse(struct jaunt_status *status, const json_t *object);

/* Pages that are there, in per cent of all. */
double snapshot_percent(const struct jaunt_status *status);

/* Whether the point of no return was passed, as far as the phase tells. */
bool snapshot_committed(const struct jaunt_status *status);

#endif
