/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The migration runs in the process that owns the VM; this one asks for it, shows what it is told,
 * and hands on a Ctrl-C. It holds nothing that the migration needs: when it is killed or its
 * terminal goes, the migration goes on. What it can say when the owner vanishes depends on the last
 * phase it heard of, which may be a tenth of a second old: only a phase after COMMIT is proof of
 * anything.
 *
 * A guest in a QEMU has no process of ours. Then its owner is a thread of this one (owner.h), which
 * is spoken to in the same way; and this process must stay as long as its pages are needed.
 */
#include "cli/command.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/client.h"
#include "cli/explain.h"
#include "cli/mismatch.h"
#include "cli/outcome.h"
#include "cli/owner.h"
#include "cli/peer.h"
#include "cli/progress.h"
#include "cli/quantity.h"
#include "cli/report.h"
#include "cli/runtime.h"
#include "cli/snapshot.h"
#include "cli/text.h"
#include "cli/tracefile.h"
#include "cli/vmname.h"

struct migrate_arguments {
	struct jaunt_options options;
	struct peer peer;
	const char *name;
	char *trace;
	const char *allowed[JAUNT_MAX_ALLOWED];
	bool timeout_action;
	bool json, explain;
};

/* What is known in this process. */
struct follower {
	struct client client;
	struct owner *owner; /* in this process, of a VM that has none of its own; else NULL */
	struct progress progress;
	struct jaunt_status status; /* as heard last */
	struct jaunt_error error;
	json_t *decisions, *differences;
	int signal_fd;
	bool push, dry_run;
	bool cancel_asked, told_committed;
};

static const struct argp_option migrate_options[] = {
	{"mode", COMMAND_KEY_MODE, "MODE", 0,
	 "stop-and-copy, pre-copy, post-copy, hybrid or auto (default: " JAUNT_MODE_DEFAULT ")", 0},
	{"downtime-limit", COMMAND_KEY_DOWNTIME_LIMIT, "TIME", 0,
	 "How long the VM may stand still, for modes that choose the moment (default: 300ms)", 0},
	{"total-limit", COMMAND_KEY_TOTAL_LIMIT, "TIME", 0,
	 "How long all of it may take (default: no limit)", 0},
	{"max-rounds", COMMAND_KEY_MAX_ROUNDS, "N", 0,
	 "Copy memory at most N times over, 1 to 10000", 0},
	{"timeout", COMMAND_KEY_TIMEOUT, "TIME", 0,
	 "How long memory may be copied before the VM is switched (default: no limit)", 0},
	{"timeout-action", COMMAND_KEY_TIMEOUT_ACTION, "switch|abort", 0,
	 "What then, or after --max-rounds: switch, with pages missing, or give up (default: "
	 "switch)",
	 0},
	{"no-post-copy", COMMAND_KEY_NO_POST_COPY, NULL, 0, "The VM never runs with pages missing",
	 0},
	{"throttle", COMMAND_KEY_THROTTLE, NULL, 0,
	 "Slow the VM down where it writes faster than can be copied", 0},
	{"total-weight", COMMAND_KEY_TOTAL_WEIGHT, "N", 0,
	 "Mode auto: what a second of total time counts beside a second that the guest waits, "
	 "above "
	 "0, up to 1000 (default: 0.01)",
	 0},
	{"tracker", COMMAND_KEY_TRACKER, "NAME", 0,
	 "How writes are tracked: driver, write-protect or soft-dirty (default: the best there is)",
	 0},
	{"push", COMMAND_KEY_PUSH, "on|off", 0,
	 "Stream what is missing in the background; off: only what the guest asks for, so it never "
	 "ends by itself (default: on)",
	 0},
	{"streams", COMMAND_KEY_STREAMS, "N", 0, "Streams that push, 1 to 64 (default: 1)", 0},
	{"bandwidth", COMMAND_KEY_BANDWIDTH, "RATE", 0,
	 "Limit of the streams, like 125MB/s or 1Gbit (default: none); pages that the guest waits "
	 "for are not limited",
	 0},
	{"verify", COMMAND_KEY_VERIFY, NULL, 0,
	 "Compare a digest of every page with the source before the guest sees it", 0},
	{"allow-difference", COMMAND_KEY_ALLOW_DIFFERENCE, "ITEM", 0,
	 "Move the VM although the one at the target differs in this ITEM, named as in the list of "
	 "differences; may be given again. Items of which no difference is safe stay refused",
	 0},
	{"dry-run", COMMAND_KEY_DRY_RUN, NULL, 0,
	 "Find out whether the target would take the VM; move nothing", 0},
	{"trace", COMMAND_KEY_TRACE, "FILE", 0,
	 "Record every fault, grant and decision in FILE, one JSON object a line", 0},
	{"explain", COMMAND_KEY_EXPLAIN, NULL, 0,
	 "At the end, what was decided in each round and from what, as a table", 0},
	{"peer-timeout", COMMAND_KEY_PEER_TIMEOUT, "TIME", 0,
	 "Silence after which the other side counts as lost (default: 10s)", 0},
	{"insecure", COMMAND_KEY_INSECURE, NULL, 0,
	 "Connect beyond loopback although nothing is encrypted yet: everybody on the path can "
	 "read "
	 "and change the guest's memory",
	 0},
	{"json", COMMAND_KEY_JSON, NULL, 0, "One JSON object as the last line of stdout", 0},
	{0},
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct migrate_arguments *arguments = state->input;
	struct jaunt_options *options = &arguments->options;
	struct jaunt_error error = {.code = 0};
	uint64_t value = 0;
	char *end;

	switch (key) {
	case COMMAND_KEY_MODE:
		options->mode = argument;
		break;
	case COMMAND_KEY_DOWNTIME_LIMIT:
		quantity_time_ms(argument, &options->downtime_limit_ms, &error);
		break;
	case COMMAND_KEY_TOTAL_LIMIT:
		quantity_time_ms(argument, &options->total_limit_ms, &error);
		break;
	case COMMAND_KEY_MAX_ROUNDS:
		quantity_count("rounds", argument, 1, 10000, &value, &error);
		options->max_rounds = (unsigned)value;
		break;
	case COMMAND_KEY_TIMEOUT:
		quantity_time_ms(argument, &options->timeout_ms, &error);
		break;
	case COMMAND_KEY_TIMEOUT_ACTION:
		if (strcmp(argument, "switch") != 0 && strcmp(argument, "abort") != 0)
			command_usage(state, "after the timeout it can switch or abort, not \"%s\"",
				      argument);
		options->timeout_action =
			strcmp(argument, "abort") == 0 ? JAUNT_TIMEOUT_ABORT : JAUNT_TIMEOUT_SWITCH;
		arguments->timeout_action = true;
		break;
	case COMMAND_KEY_NO_POST_COPY:
		options->no_post_copy = true;
		break;
	case COMMAND_KEY_THROTTLE:
		options->throttle = true;
		break;
	case COMMAND_KEY_TOTAL_WEIGHT:
		options->total_weight = strtod(argument, &end);
		if (end == argument || *end || !(options->total_weight > 0))
			command_usage(state, "a weight is a number above 0, not \"%s\"", argument);
		break;
	case COMMAND_KEY_TRACKER:
		options->tracker = argument;
		break;
	case COMMAND_KEY_PUSH:
		quantity_switch("--push", argument, &options->push, &error);
		break;
	case COMMAND_KEY_STREAMS:
		quantity_count("streams", argument, 1, 64, &value, &error);
		options->streams = (unsigned)value;
		break;
	case COMMAND_KEY_BANDWIDTH:
		quantity_rate(argument, &options->bandwidth_bytes_per_s, &error);
		break;
	case COMMAND_KEY_VERIFY:
		options->verify = true;
		break;
	case COMMAND_KEY_ALLOW_DIFFERENCE:
		if (options->allowed_count == JAUNT_MAX_ALLOWED)
			command_usage(state, "at most %d differences can be allowed",
				      JAUNT_MAX_ALLOWED);
		arguments->allowed[options->allowed_count++] = argument;
		options->allowed = arguments->allowed;
		break;
	case COMMAND_KEY_DRY_RUN:
		options->dry_run = true;
		break;
	case COMMAND_KEY_TRACE:
		tracefile_absolute(&arguments->trace, argument, &error);
		options->trace_path = arguments->trace;
		break;
	case COMMAND_KEY_EXPLAIN:
		arguments->explain = true;
		break;
	case COMMAND_KEY_PEER_TIMEOUT:
		quantity_time_ms(argument, &options->peer_timeout_ms, &error);
		break;
	case COMMAND_KEY_INSECURE:
		options->insecure = true;
		break;
	case COMMAND_KEY_JSON:
		arguments->json = true;
		break;
	case ARGP_KEY_ARG:
		if (state->arg_num == 0) {
			vmname_check(argument, &error);
			arguments->name = argument;
		} else if (state->arg_num == 1) {
			if (!peer_parse(&arguments->peer, argument, &error) &&
			    arguments->peer.port == 0)
				command_usage(state, "port 0 is for `jaunt receive' only");
			options->peer = argument;
		} else {
			command_usage(state, "a VM and a peer are enough; what is \"%s\"?",
				      argument);
		}
		break;
	case ARGP_KEY_END:
		if (!options->peer)
			command_usage(state, "it needs a VM and where to move it, like "
					     "`jaunt migrate web tcp:10.0.0.2'");
		if (arguments->timeout_action && !options->timeout_ms && !options->max_rounds)
			command_usage(state, "--timeout-action is about --timeout and "
					     "--max-rounds, which are not there");
		jaunt_options_check(options, &error);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	if (error.code)
		command_usage(state, "%s", error.text);
	return 0;
}

static json_t *request_of(const struct jaunt_options *options)
{
	json_t *request =
		json_pack("{s:s, s:o, s:s, s:b, s:I, s:I, s:b, s:b, s:b, s:I}", "command",
			  "migrate", "peer", text_json(options->peer), "mode",
			  options->mode ? options->mode : JAUNT_MODE_DEFAULT, "push", options->push,
			  "streams", (json_int_t)options->streams, "bandwidth",
			  (json_int_t)options->bandwidth_bytes_per_s, "verify", options->verify,
			  "dry_run", options->dry_run, "insecure", options->insecure,
			  "peer_timeout_ms", (json_int_t)options->peer_timeout_ms);
	json_object_update_new(
		request, json_pack("{s:I, s:I, s:I, s:I, s:b, s:b, s:b, s:f}", "downtime_limit_ms",
				   (json_int_t)options->downtime_limit_ms, "total_limit_ms",
				   (json_int_t)options->total_limit_ms, "max_rounds",
				   (json_int_t)options->max_rounds, "timeout_ms",
				   (json_int_t)options->timeout_ms, "timeout_aborts",
				   options->timeout_action == JAUNT_TIMEOUT_ABORT, "no_post_copy",
				   options->no_post_copy, "throttle", options->throttle,
				   "total_weight", options->total_weight));
	if (options->tracker)
		json_object_set_new(request, "tracker", text_json(options->tracker));
	if (options->allowed_count) {
		json_t *items = json_array();
		for (size_t i = 0; i < options->allowed_count; i++)
			json_array_append_new(items, text_json(options->allowed[i]));
		json_object_set_new(request, "allowed", items);
	}
	if (options->trace_path)
		json_object_set_new(request, "trace", json_string(options->trace_path));
	return request;
}

static unsigned terminal_columns(void)
{
	struct winsize size;
	return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || !size.ws_col ? 80 : size.ws_col;
}

static void say(struct follower *follower, const char *text)
{
	progress_finish(&follower->progress);
	command_complain("migrate", text);
}

/* True: leave, and let the migration go on without us. */
static bool take_signal(struct follower *follower)
{
	struct signalfd_siginfo info;
	char text[1400];

	if (read(follower->signal_fd, &info, sizeof(info)) != sizeof(info))
		return false;
	if (info.ssi_signo == SIGHUP || follower->told_committed)
		return !follower->owner;
	if (follower->cancel_asked)
		return false;
	struct jaunt_error error = {.code = 0};
	enum jaunt_outcome refused = client_request(
		&follower->client, json_pack("{s:s}", "command", "cancel"), NULL, &error);
	if (!refused) {
		follower->cancel_asked = true;
		say(follower, "cancelling");
		return false;
	}
	if (refused != JAUNT_INCOMPLETE)
		return false; /* its end is on the way to us */
	follower->told_committed = true;
	snprintf(text, sizeof(text),
		 follower->owner
			 ? "too late to cancel: %.900s. This process serves the pages that "
			   "are still missing, and ends when there are none"
			 : "too late to cancel: %.900s. The migration goes on in the VM's "
			   "own process, with or without this command; press Ctrl-C again to "
			   "leave it alone",
		 error.text);
	say(follower, text);
	return false;
}

static enum jaunt_outcome owner_gone(struct follower *follower)
{
	struct jaunt_status *status = &follower->status;
	bool committed = snapshot_committed(status);

	snprintf(status->reason, sizeof(status->reason), "owner-gone");
	status->vm_is_at = committed ? JAUNT_AT_BLOCKED : JAUNT_AT_UNKNOWN;
	if (committed)
		snprintf(
			status->error, sizeof(status->error),
			"the process that served the source's memory is gone with the %llu pages "
			"that were still missing; the guest blocks at the target when it needs one",
			(unsigned long long)status->pages.missing);
	else
		snprintf(status->error, sizeof(status->error),
			 "the process that owned the VM died; the VM died with it, unless it had "
			 "just been handed over: look at the target with `jaunt status` before you "
			 "start it anywhere");
	return committed ? JAUNT_INCOMPLETE : JAUNT_UNKNOWN;
}

static enum jaunt_outcome left_alone(struct follower *follower)
{
	struct jaunt_status *status = &follower->status;

	snprintf(status->reason, sizeof(status->reason), "not-followed");
	snprintf(status->error, sizeof(status->error),
		 "the migration goes on without this command; see `jaunt status %s`",
		 follower->client.name);
	/* It may be further than what was heard last. */
	if (follower->told_committed || snapshot_committed(status))
		return JAUNT_INCOMPLETE;
	status->vm_is_at = JAUNT_AT_UNKNOWN;
	return JAUNT_UNKNOWN;
}

static enum jaunt_outcome follow(struct follower *follower)
{
	for (;;) {
		struct pollfd signalled = {.fd = follower->signal_fd, .events = POLLIN};
		json_t *event = NULL;
		int got = client_event(&follower->client, -1, follower->signal_fd, &event);

		if (got < 0)
			return owner_gone(follower);
		if (got == 0) {
			if (poll(&signalled, 1, 0) > 0 && take_signal(follower))
				return left_alone(follower);
			continue;
		}
		const json_t *migration = json_object_get(event, "migration");
		enum jaunt_outcome outcome;
		bool last = client_ended(event, &outcome);
		if (json_object_get(event, "event")) {
			snapshot_parse(&follower->status, migration);
			follower->push = json_is_true(json_object_get(migration, "push"));
			progress_update(&follower->progress, &follower->status, follower->push,
					clock_ns());
		}
		if (last) {
			follower->decisions = json_incref(json_object_get(event, "decisions"));
			follower->differences = json_incref(json_object_get(event, "differences"));
		}
		json_decref(event);
		if (last)
			return outcome;
	}
}

static int catch_signals(struct jaunt_error *error)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	int fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
	return fd < 0 ? error_set(error, errno, "no-files", "cannot catch signals: %s",
				  strerror(errno))
		      : fd;
}

/* Everything until the migration runs or is refused. */
static enum jaunt_outcome begin(struct follower *follower,
				const struct migrate_arguments *arguments)
{
	struct jaunt_error *error = &follower->error;

	follower->signal_fd = catch_signals(error);
	if (follower->signal_fd < 0)
		return JAUNT_FAILED;
	if (vmname_monitor(arguments->name)) {
		int result = owner_start(&follower->owner, arguments->name, error);
		if (result && result != -EEXIST)
			return outcome_of_error(error);
		error_clear(error);
	}
	if (client_open(&follower->client, arguments->name, error))
		return outcome_of_error(error);
	return client_request(&follower->client, request_of(&arguments->options), NULL, error);
}

int command_migrate(int argc, char **argv)
{
	static const struct argp argp = {
		migrate_options,
		parse,
		"VM PEER",
		"Moves the running VM to the `jaunt receive' that waits at PEER (tcp:HOST[:PORT] "
		"or rdma:HOST[:PORT], "
		"IPv6 "
		"in brackets, port 7420 if none is given)."
		"\vCtrl-C cancels while the VM is still at the source. Once it has been handed "
		"over "
		"there is no way back: both hosts are then needed until every page has arrived.\n\n"
		"Examples:\n"
		"  jaunt migrate web tcp:10.0.0.2 --insecure\n"
		"  jaunt migrate web tcp:[::1]:7421 --verify --streams 4 --bandwidth 1Gbit\n"
		"  jaunt migrate web tcp:127.0.0.1 --dry-run\n\n"
		"Exit codes: 0 done; 1 failed, the VM runs at the source; 2 usage; 3 cancelled; 4 "
		"committed but incomplete, do not start it elsewhere; 5 ownership unknown, fence "
		"first.",
		NULL,
		NULL,
		NULL};
	struct migrate_arguments arguments = {.name = NULL};
	struct follower follower = {.client = {.lines = {.fd = -1}}};

	jaunt_options_init(&arguments.options);
	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	follower.push = arguments.options.push;
	progress_init(&follower.progress, stderr, isatty(STDERR_FILENO), terminal_columns());
	enum jaunt_outcome outcome = begin(&follower, &arguments);
	bool began = outcome == JAUNT_DONE;
	if (began) {
		outcome = follow(&follower);
		progress_finish(&follower.progress);
	} else {
		/* Refused before anything happened: nothing has moved. */
		follower.status.phase = JAUNT_PHASE_FAILED;
		follower.status.vm_is_at = JAUNT_AT_SOURCE;
		snprintf(follower.status.reason, sizeof(follower.status.reason), "%s",
			 follower.error.reason);
		snprintf(follower.status.error, sizeof(follower.status.error), "%s",
			 follower.error.text);
		text_clean(follower.status.peer, sizeof(follower.status.peer),
			   arguments.options.peer);
		snprintf(follower.status.mode, sizeof(follower.status.mode), "%s",
			 arguments.options.mode ? arguments.options.mode : JAUNT_MODE_DEFAULT);
		if (strcmp(follower.error.reason, "unknown-vm") == 0)
			follower.status.vm_is_at = JAUNT_AT_UNKNOWN;
	}
	if (outcome != JAUNT_DONE && json_array_size(follower.differences)) {
		command_complain("migrate", "the target refuses: the VM does not match the one "
					    "that waits there:");
		mismatch_print(stderr, follower.differences);
	} else if (outcome != JAUNT_DONE && follower.status.error[0]) {
		command_complain("migrate", follower.status.error);
	}
	if (arguments.explain && began)
		explain_print(stdout, follower.decisions);
	if (arguments.json) {
		json_t *object = report_json("jaunt.migrate/1", &follower.status, outcome);
		if (arguments.explain)
			json_object_set(object, "decisions", follower.decisions);
		json_object_set(object, "differences", follower.differences);
		json_object_set_new(object, "name", text_json(arguments.name));
		json_object_set_new(object, "dry_run", json_boolean(arguments.options.dry_run));
		text_print_json(object);
	} else if (began) {
		report_print(stdout, arguments.name, &follower.status, outcome,
			     arguments.options.dry_run);
	}
	client_close(&follower.client);
	owner_end(follower.owner);
	json_decref(follower.decisions);
	json_decref(follower.differences);
	free(arguments.trace);
	return (int)outcome;
}
