/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdio.h>
#include <sys/utsname.h>

#include "cli/identity.h"
#include "cli/text.h"

static error_t parse(int key, char *argument, struct argp_state *state)
{
	bool *json = state->input;

	if (key == COMMAND_KEY_JSON)
		*json = true;
	else if (key == ARGP_KEY_ARG)
		command_usage(state, "it takes no arguments, but was given \"%s\"", argument);
	else
		return ARGP_ERR_UNKNOWN;
	return 0;
}

int command_version(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"json", COMMAND_KEY_JSON, NULL, 0, "One JSON object on stdout", 0}, {0}};
	static const struct argp argp = {
		options, parse, "",  "Prints the version of jaunt, and how it was built.",
		NULL,    NULL,  NULL};
	struct utsname names = {.nodename = ""};
	bool json = false;

	argp_parse(&argp, argc, argv, 0, NULL, &json);
	if (json) {
		json_t *object = json_pack("{s:s, s:s}", "schema", "jaunt.version/1", "version",
					   jaunt_version());
		identity_add(object);
		text_print_json(object);
		return JAUNT_DONE;
	}
	uname(&names);
	printf("jaunt %s (%s, %s) on Linux %s %s\n", jaunt_version(), identity_revision(),
	       identity_compiler(), names.release, names.machine);
	return JAUNT_DONE;
}
