/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/client.h"
#include "cli/outcome.h"
#include "cli/quantity.h"

struct set_arguments {
	const char *name;
	bool push, given;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct set_arguments *arguments = state->input;
	struct jaunt_error error;

	if (key == ARGP_KEY_END && !arguments->given)
		command_usage(state, "it needs a VM and push=on or push=off");
	if (key == ARGP_KEY_END)
		return 0;
	if (key != ARGP_KEY_ARG)
		return ARGP_ERR_UNKNOWN;
	if (state->arg_num == 0) {
		arguments->name = argument;
		return 0;
	}
	if (state->arg_num > 1 || strncmp(argument, "push=", 5) != 0)
		command_usage(state, "only push=on and push=off are known, not \"%s\"", argument);
	if (quantity_switch("push", argument + 5, &arguments->push, &error))
		command_usage(state, "%s", error.text);
	arguments->given = true;
	return 0;
}

int command_set(int argc, char **argv)
{
	static const struct argp argp = {
		NULL,
		parse,
		"VM push=on|off",
		"Changes a migration under way, on either side and after the switch too."
		"\vExample:\n  jaunt set web push=off",
		NULL,
		NULL,
		NULL};
	struct set_arguments arguments = {.name = NULL};
	struct jaunt_error error = {.code = 0};
	struct client client;

	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	int opened = client_open(&client, arguments.name, &error);
	if (opened) {
		command_complain("set", error.text);
		return outcome_of_error(&error);
	}
	enum jaunt_outcome result = client_request(
		&client, json_pack("{s:s, s:b}", "command", "set", "push", arguments.push), NULL,
		&error);
	client_close(&client);
	if (result)
		command_complain("set", error.text);
	else
		printf("%s: push is %s\n", arguments.name, arguments.push ? "on" : "off");
	return (int)result;
}
