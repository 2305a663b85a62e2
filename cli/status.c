/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/client.h"
#include "cli/identity.h"
#include "cli/outcome.h"
#include "cli/progress.h"
#include "cli/runtime.h"
#include "cli/snapshot.h"
#include "cli/text.h"
#include "cli/vmname.h"

struct status_arguments {
	const char *name;
	bool json;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct status_arguments *arguments = state->input;

	if (key == COMMAND_KEY_JSON)
		arguments->json = true;
	else if (key == ARGP_KEY_ARG && !arguments->name)
		arguments->name = argument;
	else if (key == ARGP_KEY_ARG)
		command_usage(state, "one VM, or none for all; what is \"%s\"?", argument);
	else
		return ARGP_ERR_UNKNOWN;
	return 0;
}

/* A new reference to what the owner of `name` says; NULL with `error` filled. */
static json_t *ask(const char *name, int *result, struct jaunt_error *error)
{
	struct client client;
	json_t *reply = NULL, *vm = NULL;

	*result = client_open(&client, name, error);
	if (*result)
		return NULL;
	if (client_request(&client, json_pack("{s:s}", "command", "status"), &reply, error))
		*result = strcmp(error->reason, "owner-gone") == 0 ? -ENOENT : -EIO;
	else
		vm = json_incref(json_object_get(reply, "vm"));
	json_decref(reply);
	client_close(&client);
	return vm;
}

static const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));
	return text ? text : "";
}

static void describe_migration(char *text, size_t room, const json_t *vm)
{
	const json_t *migration = json_object_get(vm, "migration");
	const char *direction = text_of(migration, "direction");
	struct jaunt_status status;
	char eta[40];

	snprintf(text, room, "-");
	if (!json_is_object(migration))
		return;
	snapshot_parse(&status, migration);
	const char *way = strcmp(direction, "outgoing") == 0 ? "to" : "through";
	progress_eta(eta, sizeof(eta), status.eta_ms);
	const char *comma = eta[0] ? ", " : "";
	unsigned long long missing = (unsigned long long)status.pages.missing;
	bool no_push = json_is_false(json_object_get(migration, "push"));
	switch (status.phase) {
	case JAUNT_PHASE_WAITING:
		snprintf(text, room, "waiting on %s", status.peer);
		break;
	case JAUNT_PHASE_PRECOPY:
		snprintf(text, room,
			 "%s %s, %s, round %llu, %.0f MB remaining, written %.0f MB/s, sent %.0f "
			 "MB/s, downtime now %.1f ms%s%s",
			 way, status.peer, status.mode, (unsigned long long)status.round,
			 (double)status.remaining_bytes / 1e6, status.dirty_bytes_per_s / 1e6,
			 status.bandwidth_bytes_per_s / 1e6, status.predicted_downtime_ms, comma,
			 eta);
		break;
	case JAUNT_PHASE_POSTCOPY:
		snprintf(text, room, "%s %s, %s, %.0f %%, %llu pages missing%s%s", way, status.peer,
			 status.mode[0] ? status.mode : "post-copy", snapshot_percent(&status),
			 missing, no_push ? ", push off" : comma, no_push ? "" : eta);
		break;
	case JAUNT_PHASE_BLOCKED:
		snprintf(text, room, "%s %s, blocked, %llu pages missing: %s", way, status.peer,
			 missing, status.reason[0] ? status.reason : "unknown");
		break;
	default:
		snprintf(text, room, "%s %s, %s%s%s", way, status.peer,
			 jaunt_phase_name(status.phase), status.reason[0] ? ": " : "",
			 status.reason);
		break;
	}
}

static void print_row(const json_t *vm)
{
	char memory[TEXT_ROOM] = "-", vcpus[16] = "-", operations[24] = "-", errors[24] = "-";
	char name[80], state[24], workload[80], migration[700];
	const json_t *guest = json_object_get(vm, "guest");

	text_clean(name, sizeof(name), text_of(vm, "name"));
	text_clean(state, sizeof(state), text_of(vm, "state"));
	text_clean(workload, sizeof(workload), text_of(vm, "workload"));
	uint64_t bytes = (uint64_t)json_integer_value(json_object_get(vm, "memory_bytes"));

	if (bytes) {
		text_bytes(memory, sizeof(memory), bytes);
		snprintf(vcpus, sizeof(vcpus), "%lld",
			 (long long)json_integer_value(json_object_get(vm, "vcpus")));
	}
	if (json_is_object(guest)) {
		snprintf(operations, sizeof(operations), "%lld",
			 (long long)json_integer_value(json_object_get(guest, "operations")));
		snprintf(errors, sizeof(errors), "%lld",
			 (long long)json_integer_value(json_object_get(guest, "memory_errors")));
	}
	describe_migration(migration, sizeof(migration), vm);
	printf("%-16s %-9s %10s %5s %12s %6s  %-24s %s\n", name, state, memory, vcpus, operations,
	       errors, workload[0] ? workload : "-", migration);
}

/* What the operator of a VM in trouble can do. */
static void print_advice(const json_t *vm)
{
	const json_t *migration = json_object_get(vm, "migration");
	char name[80], text[1024], row[700];
	struct jaunt_status status;

	if (!json_is_object(migration))
		return;
	snapshot_parse(&status, migration);
	if (status.phase != JAUNT_PHASE_BLOCKED && status.phase != JAUNT_PHASE_IN_DOUBT)
		return;
	text_clean(name, sizeof(name), text_of(vm, "name"));
	text_clean(text, sizeof(text), status.error);
	describe_migration(row, sizeof(row), vm);
	printf("\n%s: %s, %llu pages missing: %s%s%s\n", name,
	       status.phase == JAUNT_PHASE_BLOCKED ? "blocked" : "in doubt",
	       (unsigned long long)status.pages.missing,
	       status.reason[0] ? status.reason : "unknown", text[0] ? ": " : "", text);
	printf("  Nothing is lost as long as both processes live: keep them, and repair what is\n"
	       "  between them. If the other host is gone for good, fence it (power it off, cut "
	       "its\n"
	       "  disks and network) and say `jaunt resume %s --peer-fenced`; to give the VM up,\n"
	       "  `jaunt cancel %s --abandon`.\n",
	       name, name);
	if (vmname_monitor(name) && strcmp(text_of(migration, "direction"), "outgoing") == 0)
		printf("  If only Jaunt's process died there, `jaunt resume qemu:SOCKET` there "
		       "goes "
		       "on.\n");
}

/* What of the fabric is in use, where there is one. */
static void print_device(const json_t *vm)
{
	char name[80], device[200], a[TEXT_ROOM], b[TEXT_ROOM], c[TEXT_ROOM], d[TEXT_ROOM];
	struct jaunt_status status;

	snapshot_parse(&status, json_object_get(vm, "migration"));
	if (!status.device[0])
		return;
	text_clean(name, sizeof(name), text_of(vm, "name"));
	text_clean(device, sizeof(device), status.device);
	printf("\n%s: %s\n", name, device);
	if (status.register_estimate_ms > 0)
		printf("  %s of %s registered with it in %s; estimated: %s\n",
		       text_bytes(a, sizeof(a), status.registered_bytes),
		       text_bytes(d, sizeof(d), status.registered_wanted_bytes),
		       text_microseconds(b, sizeof(b), status.register_ms * 1000),
		       text_microseconds(c, sizeof(c), status.register_estimate_ms * 1000));
	if (status.register_error[0])
		printf("  not all is registered: %s\n", status.register_error);
}

int command_status(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"json", COMMAND_KEY_JSON, NULL, 0, "One JSON object on stdout", 0}, {0}};
	static const struct argp argp = {options,
					 parse,
					 "[VM]",
					 "Shows the VMs of this host, what they do, and migrations "
					 "under way on either side.",
					 NULL,
					 NULL,
					 NULL};
	struct status_arguments arguments = {.name = NULL};
	struct jaunt_error error = {.code = 0};
	char **names = NULL;
	size_t count = 0;
	int result = 0;

	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	json_t *list = json_array();
	if (arguments.name) {
		json_t *vm = ask(arguments.name, &result, &error);
		if (vm)
			json_array_append_new(list, vm);
	} else {
		result = runtime_list(&names, &count, &error);
	}
	for (size_t i = 0; i < count; i++) {
		struct jaunt_error ignored;
		int gone;
		json_t *vm = ask(names[i], &gone, &ignored);
		if (vm)
			json_array_append_new(list, vm);
		else if (gone != -ENOENT)
			json_array_append_new(list, json_pack("{s:s, s:s}", "name", names[i],
							      "state", "no-answer"));
	}
	runtime_list_free(names, count);
	if (result)
		command_complain("status", error.text);
	if (arguments.json) {
		json_t *object = json_pack("{s:s, s:O}", "schema", "jaunt.status/1", "vms", list);
		if (result) {
			json_object_set_new(object, "reason", text_json(error.reason));
			json_object_set_new(object, "error", text_json(error.text));
		}
		identity_add(object);
		text_print_json(object);
	} else if (json_array_size(list)) {
		printf("%-16s %-9s %10s %5s %12s %6s  %-24s %s\n", "NAME", "STATE", "MEMORY",
		       "VCPUS", "OPERATIONS", "ERRORS", "WORKLOAD", "MIGRATION");
		for (size_t i = 0; i < json_array_size(list); i++)
			print_row(json_array_get(list, i));
		for (size_t i = 0; i < json_array_size(list); i++)
			print_device(json_array_get(list, i));
		for (size_t i = 0; i < json_array_size(list); i++)
			print_advice(json_array_get(list, i));
	} else if (!result) {
		printf("No VMs on this host. `jaunt vm run NAME` starts one, `jaunt receive "
		       "tcp:HOST` waits for one; `jaunt --help` says more.\n");
	}
	json_decref(list);
	if (!result)
		return JAUNT_DONE;
	return (int)outcome_of_error(&error);
}
