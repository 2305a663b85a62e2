/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/outcome.h"

#include <string.h>

enum jaunt_outcome outcome_of_error(const struct jaunt_error *error)
{
	/* By reason, not by errno: EINVAL and ENOENT come from the system for other causes, too. */
	static const char *const usage[] = {
		"bad-address", "bad-name", "bad-number",  "bad-option",   "bad-rate",
		"bad-request", "bad-size", "bad-streams", "bad-switch",   "bad-time",
		"bad-trace",   "insecure", "unknown-vm",  "bad-workload",
	};

	for (size_t i = 0; i < sizeof(usage) / sizeof(usage[0]); i++)
		if (strcmp(error->reason, usage[i]) == 0)
			return JAUNT_USAGE;
	return JAUNT_FAILED;
}
