/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/guest_qemu.h"
#include "cli/host.h"
#include "cli/notify.h"
#include "cli/outcome.h"
#include "cli/peer.h"
#include "cli/quantity.h"
#include "cli/received.h"
#include "cli/tracefile.h"
#include "cli/vmname.h"

struct receive_arguments {
	struct jaunt_options options;
	struct peer peer;
	const char *as, *throughput;
	struct guest_qemu qemu;
	char *trace;
	bool thread_backed, json, is_qemu;
};

static const struct argp_option receive_options[] = {
	{"as", COMMAND_KEY_AS, "NAME|qemu:SOCKET", 0,
	 "The VM's name on this host (default: its name at the source); or the QEMU, started with "
	 "-incoming defer, that takes its guest in, by the socket of its monitor",
	 0},
	{"fault-threads", COMMAND_KEY_FAULT_THREADS, "N", 0,
	 "Threads that answer the guest's faults, 1 to 16 (default: 1)", 0},
	{"peer-timeout", COMMAND_KEY_PEER_TIMEOUT, "TIME", 0,
	 "Silence after which the other side counts as lost (default: 10s)", 0},
	{"trace", COMMAND_KEY_TRACE, "FILE", 0,
	 "Record every fault, grant and decision in FILE, one JSON object a line", 0},
	{"insecure", COMMAND_KEY_INSECURE, NULL, 0,
	 "Listen beyond loopback although nothing is encrypted yet: everybody on the path can read "
	 "and change the guest's memory",
	 0},
	{"thread-backed", COMMAND_KEY_THREAD_BACKED, NULL, 0,
	 "Accept a VM whose vCPUs are threads, without KVM", 0},
	{"throughput", COMMAND_KEY_THROUGHPUT, "FILE", 0,
	 "At the end, write the guest's operations by the millisecond to FILE, from up to a minute "
	 "before it came",
	 0},
	{"json", COMMAND_KEY_JSON, NULL, 0,
	 "At the end, one JSON object as the last line of stdout", 0},
	{0},
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct receive_arguments *arguments = state->input;
	struct jaunt_error error = {.code = 0};
	uint64_t value = 0;

	switch (key) {
	case COMMAND_KEY_AS:
		vmname_check(argument, &error);
		arguments->as = argument;
		arguments->is_qemu = vmname_monitor(argument) != NULL;
		break;
	case COMMAND_KEY_FAULT_THREADS:
		quantity_count("fault threads", argument, 1, 16, &value, &error);
		arguments->options.fault_threads = (unsigned)value;
		break;
	case COMMAND_KEY_PEER_TIMEOUT:
		quantity_time_ms(argument, &arguments->options.peer_timeout_ms, &error);
		break;
	case COMMAND_KEY_TRACE:
		tracefile_absolute(&arguments->trace, argument, &error);
		arguments->options.trace_path = arguments->trace;
		break;
	case COMMAND_KEY_INSECURE:
		arguments->options.insecure = true;
		break;
	case COMMAND_KEY_THROUGHPUT:
		arguments->throughput = argument;
		break;
	case COMMAND_KEY_THREAD_BACKED:
		arguments->thread_backed = true;
		break;
	case COMMAND_KEY_JSON:
		arguments->json = true;
		break;
	case ARGP_KEY_ARG:
		if (arguments->options.peer)
			command_usage(state, "one address is enough; what is \"%s\"?", argument);
		peer_parse(&arguments->peer, argument, &error);
		arguments->options.peer = argument;
		break;
	case ARGP_KEY_END:
		if (!arguments->options.peer)
			command_usage(state, "it needs an address to listen on, like "
					     "`jaunt receive tcp:127.0.0.1'");
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	if (error.code)
		command_usage(state, "%s", error.text);
	return 0;
}

/* The name until the VM's own is known: something that `jaunt cancel` can be told. */
static int claim_waiting_name(struct host *host, const struct receive_arguments *arguments,
			      unsigned port, struct jaunt_error *error)
{
	char name[RUNTIME_NAME_MAX + 1];

	if (arguments->as)
		return 0;
	snprintf(name, sizeof(name), "receive-%u", port);
	int result = host_claim(host, name, error);
	/* The same port on another address: any name will do. */
	if (result == -EEXIST) {
		snprintf(name, sizeof(name), "receive-%u-%ld", port, (long)getpid());
		result = host_claim(host, name, error);
	}
	return result;
}

/* The name that it was told to take, of a QEMU too. */
static int claim_given_name(struct host *host, struct receive_arguments *arguments,
			    struct jaunt_error *error)
{
	char name[RUNTIME_NAME_MAX + 1];
	int result = vmname_runtime(name, arguments->as, error);

	if (result == 0 && arguments->is_qemu) {
		host->label = arguments->as;
		result = guest_qemu_place(&arguments->qemu, arguments->as, error);
		if (result == 0)
			qemu_prepare(&arguments->qemu.place);
	}
	return result ? result : host_claim(host, name, error);
}

static int start(struct host *host, struct receive_arguments *arguments, struct jaunt_error *error)
{
	char listening[320], state[400];
	int result = host_open(host, "receive", true, error);

	host->throughput_path = arguments->throughput;
	if (!result && arguments->trace)
		result = tracefile_check(arguments->trace, error);
	if (!result && arguments->as)
		result = claim_given_name(host, arguments, error);
	if (!result)
		result = host_receive(host, arguments->as,
				      arguments->is_qemu ? &arguments->qemu : NULL,
				      arguments->thread_backed, &arguments->options, error);
	if (result)
		return result;
	unsigned port = jaunt_target_port(job_migration(host->job));
	result = claim_waiting_name(host, arguments, port, error);
	if (result)
		return result;
	snprintf(host->waiting_name, sizeof(host->waiting_name), "%s", host->claim.name);
	peer_format(&arguments->peer, port, listening, sizeof(listening));
	host_say(host, "ready: listening on %s as %s", listening, host_name(host));
	snprintf(state, sizeof(state), "READY=1\nSTATUS=listening on %s\n", listening);
	notify_send(state);
	return 0;
}

int command_receive(int argc, char **argv)
{
	static const struct argp argp = {
		receive_options,
		parse,
		"PEER",
		"Listens on PEER (tcp:HOST[:PORT] or rdma:HOST[:PORT], IPv6 in brackets, port 7420 "
		"if none is given), "
		"takes one VM and runs it in the foreground. Says \"ready: listening on …\" on "
		"stderr, "
		"and READY=1 to a service manager, when a source may connect."
		"\vA signal (SIGINT, SIGTERM) ends the waiting, or stops the VM once all of it is "
		"here; in between it is refused, because the VM would be lost.\n\n"
		"Examples:\n"
		"  jaunt receive tcp:127.0.0.1 --as web2\n"
		"  jaunt receive tcp:[::1]:7421 --json\n"
		"  jaunt receive tcp:0.0.0.0 --insecure",
		NULL,
		NULL,
		NULL};
	struct receive_arguments arguments = {.as = NULL};
	struct jaunt_error error = {.code = 0};
	enum jaunt_outcome outcome;
	struct host host;

	jaunt_options_init(&arguments.options);
	arguments.options.note_demanded = true;
	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	if (start(&host, &arguments, &error)) {
		command_complain("receive", error.text);
		outcome = outcome_of_error(&error);
	} else {
		outcome = host_run(&host);
	}
	if (arguments.json)
		received_print_json(&host, &error, JAUNT_AT_SOURCE, outcome);
	else
		received_print(&host);
	host_close(&host);
	qemu_forget(&arguments.qemu.place);
	free(arguments.trace);
	return (int)outcome;
}
