/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdio.h>

#include "cli/act.h"

struct resume_arguments {
	const char *name;
	bool fenced;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct resume_arguments *arguments = state->input;

	if (key == COMMAND_KEY_PEER_FENCED)
		arguments->fenced = true;
	else if (key == ARGP_KEY_ARG && !arguments->name)
		arguments->name = argument;
	else if (key == ARGP_KEY_ARG)
		command_usage(state, "one VM at a time; what is \"%s\"?", argument);
	else if (key == ARGP_KEY_END && !arguments->name)
		command_usage(state, "it needs the name of a VM; `jaunt status' lists them");
	else if (key == ARGP_KEY_END && !arguments->fenced)
		command_usage(state,
			      "if the other host runs the VM too, its disks and connections are "
			      "destroyed. Make sure that the other host is off or cut from both, "
			      "then say so with --peer-fenced");
	else if (key != ARGP_KEY_END)
		return ARGP_ERR_UNKNOWN;
	return 0;
}

int command_resume(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"peer-fenced", COMMAND_KEY_PEER_FENCED, NULL, 0,
		 "I warrant that the other host does not run the VM and never will", 0},
		{0}};
	static const struct argp argp = {
		options,
		parse,
		"VM --peer-fenced",
		"Runs a VM here whose other host has been fenced: at the source, from the state in "
		"which it was handed over; at the target, if all of its memory has arrived."
		"\vThe source goes back to the moment of the switch: what the guest did at the "
		"target "
		"since then is lost. A target that waits for pages which only the source has "
		"cannot run the VM without it: repair the link, or fence the target and resume at "
		"the source. Example:\n"
		"  jaunt resume web --peer-fenced",
		NULL,
		NULL,
		NULL};
	struct resume_arguments arguments = {.name = NULL};
	enum jaunt_outcome outcome;
	struct jaunt_status status;

	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	enum jaunt_outcome result =
		act_ask("resume", arguments.name, "resume-fenced", false, &outcome, &status);
	if (result == JAUNT_DONE)
		printf("%s: resumed here; see `jaunt status %s`\n", arguments.name, arguments.name);
	return (int)result;
}
