/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/outcome.h"

#include <errno.h>
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

enum jaunt_outcome outcome_of_run(const struct jaunt_error *error)
{
	/* The engine judges the address only as it connects. What a peer sends comes with other
	 * codes, or behind words of ours: whatever it says, it cannot look like this. */
	if (strcmp(error->reason, "bad-address") == 0 && error->code == EINVAL)
		return JAUNT_USAGE;
	if (strcmp(error->reason, "insecure") == 0 && error->code == EPERM &&
	    strncmp(error->text, "the peer is ", 12) == 0)
		return JAUNT_USAGE;
	return JAUNT_FAILED;
}
