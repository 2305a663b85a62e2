/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdio.h>
#include <string.h>

#include "cli/act.h"

struct cancel_arguments {
	const char *name;
	bool abandon;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct cancel_arguments *arguments = state->input;

	if (key == COMMAND_KEY_ABANDON)
		arguments->abandon = true;
	else if (key == ARGP_KEY_ARG && !arguments->name)
		arguments->name = argument;
	else if (key == ARGP_KEY_ARG)
		command_usage(state, "one VM at a time; what is \"%s\"?", argument);
	else if (key == ARGP_KEY_END && !arguments->name)
		command_usage(state, "it needs the name of a VM; `jaunt status' lists them");
	else if (key != ARGP_KEY_END)
		return ARGP_ERR_UNKNOWN;
	return 0;
}

static int abandoned(const char *name, enum jaunt_outcome outcome,
		     const struct jaunt_status *status)
{
	if (status->vm_is_at == JAUNT_AT_SOURCE)
		printf("%s: given up before it was committed; it runs at the source\n", name);
	else if (outcome == JAUNT_DONE)
		printf("%s: it had just come to its end, complete\n", name);
	else
		printf("%s: given up, %llu pages short; what only this host held is lost. Do not "
		       "start it from what is left at the other\n",
		       name, (unsigned long long)status->pages.missing);
	return JAUNT_DONE;
}

int command_cancel(int argc, char **argv)
{
	static const struct argp_option options[] = {{"abandon", COMMAND_KEY_ABANDON, NULL, 0,
						      "Give up a migration that is committed, too: "
						      "what only this host holds is LOST, and "
						      "with it, as a rule, the VM",
						      0},
						     {0}};
	static const struct argp argp = {options,
					 parse,
					 "VM",
					 "Cancels the migration of a VM while it is still at the "
					 "source, where it goes on as if "
					 "nothing had happened; or ends a waiting receive."
					 "\vExamples:\n"
					 "  jaunt cancel web\n"
					 "  jaunt cancel receive-7420",
					 NULL,
					 NULL,
					 NULL};
	struct cancel_arguments arguments = {.name = NULL};
	enum jaunt_outcome outcome;
	struct jaunt_status status;

	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	enum jaunt_outcome result =
		act_ask("cancel", arguments.name, arguments.abandon ? "abandon" : "cancel", true,
			&outcome, &status);
	if (result != JAUNT_DONE)
		return (int)result;
	if (arguments.abandon)
		return abandoned(arguments.name, outcome, &status);
	if (outcome == JAUNT_CANCELLED || outcome == JAUNT_FAILED) {
		printf("%s: cancelled\n", arguments.name);
		return JAUNT_DONE;
	}
	/* It was quicker than we were. */
	if (outcome == JAUNT_DONE)
		printf("%s: too late, it has moved completely\n", arguments.name);
	return outcome == JAUNT_DONE ? JAUNT_FAILED : (int)outcome;
}
