/* SPDX-License-Identifier: Apache-2.0 */
/* Exit codes for what went wrong before a migration had an outcome of its own. */
#ifndef CLI_OUTCOME_H
#define CLI_OUTCOME_H

#include "jaunt.h"

/* JAUNT_USAGE if the command line is at fault, and trying the same again would not help; else
 * JAUNT_FAILED. */
enum jaunt_outcome outcome_of_error(const struct jaunt_error *error);

/* The same for a migration that was under way and has failed: its reason may be a word of the other
 * side's, which says nothing about this command line. */
enum jaunt_outcome outcome_of_run(const struct jaunt_error *error);

#endif
