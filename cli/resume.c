/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two things that an operator may want of a VM whose migration was broken off: to run it here since
 * the other host is fenced, which its owner is asked for; and, of a guest in QEMU whose owner at
 * the target died, to be its owner and go on.
 */
#include "cli/command.h"

#include <stdio.h>
#include <stdlib.h>

#include "cli/act.h"
#include "cli/guest_qemu.h"
#include "cli/host.h"
#include "cli/notify.h"
#include "cli/outcome.h"
#include "cli/quantity.h"
#include "cli/received.h"
#include "cli/tracefile.h"
#include "cli/vmname.h"

struct resume_arguments {
	const char *name;
	struct jaunt_options options;
	struct guest_qemu qemu;
	char *trace;
	bool fenced, json, going_on; /* something was said that only makes sense where it goes on */
};

static void check(const struct resume_arguments *arguments, struct argp_state *state)
{
	if (!arguments->name)
		command_usage(state, "it needs the name of a VM; `jaunt status' lists them");
	if (arguments->fenced && arguments->going_on)
		command_usage(state, "with --peer-fenced the process that has the VM is asked; "
				     "--json, --peer-timeout and --trace are for going on with a "
				     "guest of QEMU whose process died");
	if (!arguments->fenced && !vmname_monitor(arguments->name))
		command_usage(state,
			      "if the other host runs the VM too, its disks and connections are "
			      "destroyed. Make sure that the other host is off or cut from both, "
			      "then say so with --peer-fenced. (To go on after the death of "
			      "Jaunt's process at the target takes a guest of QEMU, "
			      "qemu:SOCKET: the built-in VM dies with its process)");
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct resume_arguments *arguments = state->input;
	struct jaunt_error error = {.code = 0};

	switch (key) {
	case COMMAND_KEY_PEER_FENCED:
		arguments->fenced = true;
		break;
	case COMMAND_KEY_JSON:
		arguments->json = arguments->going_on = true;
		break;
	case COMMAND_KEY_PEER_TIMEOUT:
		quantity_time_ms(argument, &arguments->options.peer_timeout_ms, &error);
		arguments->going_on = true;
		break;
	case COMMAND_KEY_TRACE:
		tracefile_absolute(&arguments->trace, argument, &error);
		arguments->options.trace_path = arguments->trace;
		arguments->going_on = true;
		break;
	case ARGP_KEY_ARG:
		if (arguments->name)
			command_usage(state, "one VM at a time; what is \"%s\"?", argument);
		arguments->name = argument;
		break;
	case ARGP_KEY_END:
		check(arguments, state);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	if (error.code)
		command_usage(state, "%s", error.text);
	return 0;
}

static int run_fenced(const struct resume_arguments *arguments)
{
	enum jaunt_outcome outcome;
	struct jaunt_status status;
	enum jaunt_outcome result =
		act_ask("resume", arguments->name, "resume-fenced", false, &outcome, &status);

	if (result == JAUNT_DONE)
		printf("%s: resumed here; see `jaunt status %s`\n", arguments->name,
		       arguments->name);
	return (int)result;
}

static int start(struct host *host, struct resume_arguments *arguments, struct jaunt_error *error)
{
	char name[RUNTIME_NAME_MAX + 1], state[400];
	struct jaunt_status status;
	int result = host_open(host, "resume", true, error);

	host->label = arguments->name;
	if (!result && arguments->trace)
		result = tracefile_check(arguments->trace, error);
	if (!result)
		result = vmname_runtime(name, arguments->name, error);
	if (!result)
		result = guest_qemu_place(&arguments->qemu, arguments->name, error);
	/* The first of the two locks: nobody who lives has this VM. */
	if (!result)
		result = host_claim(host, name, error);
	if (!result)
		result = host_take_up(host, name, &arguments->qemu, &arguments->options, error);
	if (result)
		return result;
	job_status(host->job, &status);
	host_say(host, "ready: listening on %s as %s, %llu pages are missing", status.peer,
		 host_name(host), (unsigned long long)status.pages.missing);
	snprintf(state, sizeof(state), "READY=1\nSTATUS=listening on %s\n", status.peer);
	notify_send(state);
	return 0;
}

static int go_on(struct resume_arguments *arguments)
{
	struct jaunt_error error = {.code = 0};
	enum jaunt_outcome outcome;
	struct host host;

	if (start(&host, arguments, &error)) {
		command_complain("resume", error.text);
		outcome = outcome_of_error(&error);
	} else {
		outcome = host_run(&host);
	}
	if (arguments->json)
		received_print_json(&host, &error, JAUNT_AT_UNKNOWN, outcome);
	else
		received_print(&host);
	host_close(&host);
	return (int)outcome;
}

int command_resume(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"peer-fenced", COMMAND_KEY_PEER_FENCED, NULL, 0,
		 "I warrant that the other host does not run the VM and never will", 0},
		{"peer-timeout", COMMAND_KEY_PEER_TIMEOUT, "TIME", 0,
		 "Going on: silence after which the source counts as lost (default: as it was)", 0},
		{"trace", COMMAND_KEY_TRACE, "FILE", 0,
		 "Going on: record every fault, grant and decision in FILE, one JSON object a line",
		 0},
		{"json", COMMAND_KEY_JSON, NULL, 0,
		 "Going on: at the end, one JSON object as the last line of stdout, as of `jaunt "
		 "receive'",
		 0},
		{0}};
	static const struct argp argp = {
		options,
		parse,
		"VM --peer-fenced\nqemu:SOCKET",
		"With --peer-fenced: runs a VM here whose other host has been fenced, at the "
		"source "
		"from the state in which it was handed over, at the target if all of its memory "
		"has arrived.\n"
		"Without, at the target: goes on with a guest of QEMU whose `jaunt receive` died "
		"when the guest was loaded, as if that process had lived, until every page is here."
		"\vThe source goes back to the moment of the switch: what the guest did at the "
		"target "
		"since then is lost. A target that waits for pages which only the source has "
		"cannot run the VM without it: repair the link, or fence the target and resume at "
		"the source. Examples:\n"
		"  jaunt resume web --peer-fenced\n"
		"  jaunt resume qemu:/run/web.qmp",
		NULL,
		NULL,
		NULL};
	struct resume_arguments arguments = {.name = NULL};

	jaunt_options_init(&arguments.options);
	/* As the process before had them. */
	arguments.options.peer = "";
	arguments.options.peer_timeout_ms = 0;
	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	int code = arguments.fenced ? run_fenced(&arguments) : go_on(&arguments);
	free(arguments.trace);
	return code;
}
