/* SPDX-License-Identifier: Apache-2.0 */
/* Exit codes for what went wrong before a migration had an outcome of its own. */
#ifndef CLI_OUTCOME_H
#define CLI_OUTCOME_H

#include "jaunt.h"

/* JAUNT_USAGE if the command line is at fault, and trying the same again would not help; else
 * JAUNT_FAILED. */
enum jaunt_outcome outcome_of_error(const struct jaunt_error *error);

#endif
