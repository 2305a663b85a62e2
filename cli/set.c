/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli/client.h"
#include "cli/outcome.h"
#include "cli/quantity.h"

#define SETTINGS_MAX 3

struct set_arguments {
	const char *name;
	const char *texts[SETTINGS_MAX]; /* as given, for the answer */
	unsigned count;
	bool push, push_given, bandwidth_given;
	uint64_t bandwidth;
	uint32_t downtime_limit_ms; /* 0: not given */
};

static void take_setting(struct set_arguments *arguments, const char *text,
			 struct argp_state *state)
{
	struct jaunt_error error = {.code = 0};
	bool again = false;

	if (strncmp(text, "push=", 5) == 0) {
		again = arguments->push_given;
		arguments->push_given = true;
		quantity_switch("push", text + 5, &arguments->push, &error);
	} else if (strcmp(text, "bandwidth=none") == 0) {
		again = arguments->bandwidth_given;
		arguments->bandwidth_given = true;
	} else if (strncmp(text, "bandwidth=", 10) == 0) {
		again = arguments->bandwidth_given;
		arguments->bandwidth_given = true;
		quantity_rate(text + 10, &arguments->bandwidth, &error);
	} else if (strncmp(text, "downtime-limit=", 15) == 0) {
		again = arguments->downtime_limit_ms != 0;
		quantity_time_ms(text + 15, &arguments->downtime_limit_ms, &error);
	} else {
		command_usage(state,
			      "push=on|off, bandwidth=RATE|none and downtime-limit=TIME are known, "
			      "not \"%s\"",
			      text);
	}
	if (error.code)
		command_usage(state, "%s", error.text);
	if (again)
		command_usage(state, "\"%s\" is said twice", text);
	arguments->texts[arguments->count++] = text;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct set_arguments *arguments = state->input;

	if (key == ARGP_KEY_END && !arguments->count)
		command_usage(state, "it needs a VM and what to set, like push=off");
	if (key == ARGP_KEY_END)
		return 0;
	if (key != ARGP_KEY_ARG)
		return ARGP_ERR_UNKNOWN;
	if (state->arg_num == 0)
		arguments->name = argument;
	else
		take_setting(arguments, argument, state);
	return 0;
}

static json_t *request_of(const struct set_arguments *arguments)
{
	json_t *request = json_pack("{s:s}", "command", "set");

	if (arguments->push_given)
		json_object_set_new(request, "push", json_boolean(arguments->push));
	if (arguments->bandwidth_given)
		json_object_set_new(request, "bandwidth",
				    json_integer((json_int_t)arguments->bandwidth));
	if (arguments->downtime_limit_ms)
		json_object_set_new(request, "downtime_limit_ms",
				    json_integer(arguments->downtime_limit_ms));
	return request;
}

int command_set(int argc, char **argv)
{
	static const struct argp argp = {
		NULL,
		parse,
		"VM SETTING…",
		"Changes a migration under way. push=on|off on either side, after the switch too; "
		"bandwidth=RATE|none of the streams, and downtime-limit=TIME, at the source."
		"\vExamples:\n"
		"  jaunt set web push=off\n"
		"  jaunt set web bandwidth=1Gbit downtime-limit=50ms",
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
	enum jaunt_outcome result = client_request(&client, request_of(&arguments), NULL, &error);
	client_close(&client);
	if (result)
		command_complain("set", error.text);
	for (unsigned i = 0; !result && i < arguments.count; i++) {
		const char *equals = strchr(arguments.texts[i], '=');
		printf("%s: %.*s is %s\n", arguments.name, (int)(equals - arguments.texts[i]),
		       arguments.texts[i], equals + 1);
	}
	return (int)result;
}
