/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdio.h>

#include "cli/act.h"

static error_t parse(int key, char *argument, struct argp_state *state)
{
	const char **name = state->input;

	if (key == ARGP_KEY_ARG && !*name)
		*name = argument;
	else if (key == ARGP_KEY_ARG)
		command_usage(state, "one VM at a time; what is \"%s\"?", argument);
	else if (key == ARGP_KEY_END && !*name)
		command_usage(state, "it needs the name of a VM; `jaunt status' lists them");
	else if (key != ARGP_KEY_END)
		return ARGP_ERR_UNKNOWN;
	return 0;
}

int command_switch(int argc, char **argv)
{
	static const struct argp argp = {NULL,
					 parse,
					 "VM",
					 "Ends the copying of a VM's memory now: the VM goes on at "
					 "the target, and what was not "
					 "copied, or was written since, follows."
					 "\vExample:\n  jaunt switch web",
					 NULL,
					 NULL,
					 NULL};
	const char *name = NULL;
	enum jaunt_outcome outcome;
	struct jaunt_status status;

	argp_parse(&argp, argc, argv, 0, NULL, &name);
	enum jaunt_outcome result = act_ask("switch", name, "switch", false, &outcome, &status);
	if (result == JAUNT_DONE)
		printf("%s: is being switched\n", name);
	return (int)result;
}
