/* SPDX-License-Identifier: Apache-2.0 */
/* What became of a question to the policy: told to the trace with all that went in, and, where it
 * says something new, kept for whoever asks the migration. Called by the source's thread. */
#ifndef ENGINE_SOURCE_DECISION_H
#define ENGINE_SOURCE_DECISION_H

#include <stddef.h>

#include "engine/migration.h"
#include "engine/source/policy.h"

/* The decision before, to tell whether one says something new; zeroed at first. */
struct decisions {
	bool any;
	enum policy_action action;
	enum policy_way way;
	unsigned throttle;
};

/* Asks the policy, and tells. */
void decisions_make(struct decisions *decisions, struct jaunt_migration *migration,
		    const struct policy_input *input, struct policy_decision *decision);

/* Input and decision as the members of a JSON object, at most TRACE_MEMBERS_MAX bytes with the
 * final 0. Returns the length, or 0 if there was no room. */
size_t decision_members(const struct policy_input *input, const struct policy_decision *decision,
			char *text, size_t bytes);
void decision_publish(const struct policy_input *input, const struct policy_decision *decision,
		      struct jaunt_decision *out);

#endif
