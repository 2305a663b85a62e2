/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requests that other commands may make of the process that owns a VM:
 *
 *     {"command":"status"}
 *     {"command":"migrate","peer":…,"mode":…,"push":…,"streams":…,"bandwidth":…,"verify":…,
 *      "dry_run":…,"insecure":…,"trace":…,"peer_timeout_ms":…,"allowed":[ITEM…]}
 *     {"command":"cancel"} {"command":"abandon"} {"command":"resume-fenced"}
 *     {"command":"set","push":true,"bandwidth":…,"downtime_limit_ms":…}  one or more of them
 *     {"command":"switch"}
 *
 * Each is answered by {"ok":true,…} or {"ok":false,"code":EXIT,"reason":…,"error":…}. After
 * migrate, cancel, abandon and resume-fenced the connection gets {"event":"status",…} and in the
 * end
 * {"event":"end","outcome":EXIT,…}.
 */
#include "cli/host.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "cli/outcome.h"
#include "cli/snapshot.h"
#include "cli/text.h"
#include "cli/tracefile.h"

static void refuse(struct server_client *client, enum jaunt_outcome code,
		   const struct jaunt_error *error)
{
	server_reply(client, json_pack("{s:b, s:i, s:o, s:o}", "ok", 0, "code", (int)code, "reason",
				       text_json(error->reason), "error", text_json(error->text)));
}

static void accept(struct server_client *client)
{
	server_reply(client, json_pack("{s:b}", "ok", 1));
}

static uint64_t count_of(const json_t *request, const char *key, uint64_t otherwise)
{
	const json_t *value = json_object_get(request, key);
	return json_is_integer(value) && json_integer_value(value) >= 0
		       ? (uint64_t)json_integer_value(value)
		       : otherwise;
}

static bool switch_of(const json_t *request, const char *key, bool otherwise)
{
	const json_t *value = json_object_get(request, key);
	return json_is_boolean(value) ? json_boolean_value(value) : otherwise;
}

static uint32_t limited(const json_t *request, const char *key)
{
	uint64_t value = count_of(request, key, 0);
	return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

/* The same limits as on the command line: a request may come from anything of the same user. */
static int take_options(const json_t *request, struct jaunt_options *options, const char **allowed,
			struct jaunt_error *error)
{
	const json_t *items = json_object_get(request, "allowed"), *item;
	size_t i;

	uint64_t streams = count_of(request, "streams", 0);
	uint64_t timeout = count_of(request, "peer_timeout_ms", 0);

	jaunt_options_init(options);
	options->peer = json_string_value(json_object_get(request, "peer"));
	options->mode = json_string_value(json_object_get(request, "mode"));
	options->trace_path = json_string_value(json_object_get(request, "trace"));
	options->push = switch_of(request, "push", options->push);
	options->verify = switch_of(request, "verify", false);
	options->dry_run = switch_of(request, "dry_run", false);
	options->insecure = switch_of(request, "insecure", false);
	options->bandwidth_bytes_per_s = count_of(request, "bandwidth", 0);
	options->downtime_limit_ms = limited(request, "downtime_limit_ms");
	options->total_limit_ms = limited(request, "total_limit_ms");
	options->timeout_ms = limited(request, "timeout_ms");
	options->max_rounds = limited(request, "max_rounds");
	options->timeout_action = switch_of(request, "timeout_aborts", false)
					  ? JAUNT_TIMEOUT_ABORT
					  : JAUNT_TIMEOUT_SWITCH;
	options->no_post_copy = switch_of(request, "no_post_copy", false);
	options->throttle = switch_of(request, "throttle", false);
	if (json_is_number(json_object_get(request, "total_weight")))
		options->total_weight = json_number_value(json_object_get(request, "total_weight"));
	options->tracker = json_string_value(json_object_get(request, "tracker"));
	if (streams)
		options->streams = streams > 64 ? 65 : (unsigned)streams;
	if (timeout)
		options->peer_timeout_ms = timeout > 3600000 ? 3600000 : (uint32_t)timeout;
	json_array_foreach ((json_t *)items, i, item) {
		if (json_is_string(item) && options->allowed_count < JAUNT_MAX_ALLOWED)
			allowed[options->allowed_count++] = json_string_value(item);
	}
	options->allowed = allowed;
	if (!options->peer)
		return error_set(error, EINVAL, "bad-request", "migrate: no peer was named");
	if (options->streams > 64)
		return error_set(error, EINVAL, "bad-streams",
				 "the number of streams is from 1 to 64");
	return jaunt_options_check(options, error);
}

static void migrate(struct host *host, struct server_client *client, const json_t *request)
{
	struct jaunt_error error = {.code = 0};
	const char *allowed[JAUNT_MAX_ALLOWED];
	struct jaunt_options options;
	struct jaunt_status status;

	if (host->job) {
		job_status(host->job, &status);
		if (job_outgoing(host->job))
			error_set(&error, EBUSY, "busy",
				  "%s is already being moved to %s; wait for the end of that, or "
				  "`jaunt cancel %s`",
				  host_name(host), job_peer(host->job), host_name(host));
		else
			error_set(&error, EBUSY, "busy",
				  "%s has not arrived here completely yet (%llu pages missing); "
				  "move it on when it has",
				  host_name(host), (unsigned long long)status.pages.missing);
	} else if (!host->vm_here || host->stop_wanted || host->finished) {
		error_set(&error, EBUSY, "busy", "%s is being stopped", host_name(host));
	}
	if (error.code) {
		refuse(client, JAUNT_FAILED, &error);
		return;
	}
	if (take_options(request, &options, allowed, &error)) {
		refuse(client, JAUNT_USAGE, &error);
		return;
	}
	if (options.trace_path && tracefile_check(options.trace_path, &error)) {
		refuse(client, JAUNT_FAILED, &error);
		return;
	}
	host_settle_arrival(host);
	host->shown = JAUNT_PHASE_IDLE;
	if (job_start_source(&host->job, host->kind->ops, host->vm, &options, host->wake_fd,
			     &error)) {
		refuse(client, outcome_of_error(&error), &error);
		return;
	}
	accept(client);
	server_follow(client);
}

/* What only makes sense while a migration is under way. */
static void act(struct host *host, struct server_client *client, const char *what,
		int (*action)(struct job *, struct jaunt_error *))
{
	struct jaunt_error error = {.code = 0};

	if (!host->job) {
		error_set(&error, ESRCH, "no-migration",
			  "%s is not being moved: there is nothing to %s", host_name(host), what);
		refuse(client, JAUNT_FAILED, &error);
		return;
	}
	if (action(host->job, &error)) {
		refuse(client, error.code == EBUSY ? JAUNT_INCOMPLETE : JAUNT_FAILED, &error);
		return;
	}
	accept(client);
	server_follow(client);
}

static void set(struct host *host, struct server_client *client, const json_t *request)
{
	struct jaunt_error error = {.code = 0};
	const json_t *push = json_object_get(request, "push");
	const json_t *bandwidth = json_object_get(request, "bandwidth");
	const json_t *limit = json_object_get(request, "downtime_limit_ms");

	if (!json_is_boolean(push) && !json_is_integer(bandwidth) && !json_is_integer(limit))
		error_set(&error, EINVAL, "bad-request",
			  "set: push, bandwidth and downtime-limit are known");
	else if (!host->job)
		error_set(&error, ESRCH, "no-migration",
			  "%s is not being moved: there is nothing to set", host_name(host));
	else if (json_is_integer(limit) &&
		 !(json_integer_value(limit) >= 1 && json_integer_value(limit) <= 3600000))
		error_set(&error, EINVAL, "bad-option",
			  "a limit of the downtime is 1 ms to an hour");
	else /* all of it, or nothing */
		job_may_set(host->job, json_is_integer(bandwidth) || json_is_integer(limit),
			    &error);
	if (!error.code && json_is_integer(bandwidth))
		job_set_bandwidth(host->job, count_of(request, "bandwidth", 0), &error);
	if (!error.code && json_is_integer(limit))
		job_set_downtime_limit(host->job, limited(request, "downtime_limit_ms"), &error);
	if (!error.code && json_is_boolean(push))
		job_set_push(host->job, json_boolean_value(push), &error);
	if (error.code)
		refuse(client, outcome_of_error(&error), &error);
	else
		accept(client);
}

static void switch_now(struct host *host, struct server_client *client)
{
	struct jaunt_error error = {.code = 0};

	if (!host->job)
		error_set(&error, ESRCH, "no-migration",
			  "%s is not being moved: there is nothing to switch", host_name(host));
	else
		job_switch(host->job, &error);
	if (error.code)
		refuse(client, outcome_of_error(&error), &error);
	else
		accept(client);
}

void host_request(void *user, struct server_client *client, json_t *request)
{
	struct host *host = user;
	const char *command = json_string_value(json_object_get(request, "command"));
	struct jaunt_error error = {.code = 0};

	if (!command)
		command = "";
	if (strcmp(command, "status") == 0) {
		server_reply(client, json_pack("{s:b, s:o}", "ok", 1, "vm", host_describe(host)));
	} else if (strcmp(command, "migrate") == 0) {
		migrate(host, client, request);
	} else if (strcmp(command, "cancel") == 0) {
		act(host, client, "cancel", job_cancel);
	} else if (strcmp(command, "abandon") == 0) {
		act(host, client, "abandon", job_abandon);
	} else if (strcmp(command, "resume-fenced") == 0) {
		act(host, client, "resume", job_resume_fenced);
	} else if (strcmp(command, "set") == 0) {
		set(host, client, request);
	} else if (strcmp(command, "switch") == 0) {
		switch_now(host, client);
	} else {
		error_set(&error, EINVAL, "bad-request",
			  "the process that owns %s does not know this command; is it of an older "
			  "version?",
			  host_name(host));
		refuse(client, JAUNT_USAGE, &error);
	}
}
