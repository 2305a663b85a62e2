/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/client.h"
#include "cli/guest.h"
#include "base/error.h"
#include "cli/identity.h"
#include "cli/mismatch.h"
#include "cli/owner.h"
#include "cli/peer.h"
#include "cli/runtime.h"
#include "cli/text.h"
#include "cli/vmname.h"
#include "vmm/qemu/examine.h"

#define DOCTOR_CHECKS     (48 + EXAMINE_MAX)
#define DOCTOR_CONNECT_MS 5000

struct doctor_arguments {
	const char *name;
	struct peer peer;
	const char *peer_text;
	bool with_peer, json, insecure;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct doctor_arguments *arguments = state->input;
	struct jaunt_error error = {.code = 0};

	if (key == COMMAND_KEY_JSON) {
		arguments->json = true;
	} else if (key == COMMAND_KEY_INSECURE) {
		arguments->insecure = true;
	} else if (key == ARGP_KEY_ARG) {
		/* A name has no colon but that of qemu:SOCKET, an address has one. */
		if (strchr(argument, ':') && !vmname_monitor(argument)) {
			if (arguments->with_peer)
				command_usage(state, "one peer is enough; what is \"%s\"?",
					      argument);
			arguments->with_peer = true;
			arguments->peer_text = argument;
			peer_parse(&arguments->peer, argument, &error);
		} else {
			if (arguments->name)
				command_usage(state, "one VM is enough; what is \"%s\"?", argument);
			vmname_check(argument, &error);
			arguments->name = argument;
		}
	} else {
		return ARGP_ERR_UNKNOWN;
	}
	if (error.code)
		command_usage(state, "%s", error.text);
	return 0;
}

struct findings {
	struct jaunt_check checks[DOCTOR_CHECKS];
	size_t count;
};

static void add(struct findings *findings, const char *name, bool required, int result,
		const char *found, const struct jaunt_error *error)
{
	if (findings->count == DOCTOR_CHECKS)
		return;
	struct jaunt_check *check = &findings->checks[findings->count++];
	*check = (struct jaunt_check){.name = name, .ok = !result, .required = required};
	/* The text of an error says what is wrong and, after it, what to do. */
	const char *advice = result ? strchr(error->text, ';') : NULL;
	size_t length = advice ? (size_t)(advice - error->text) : strlen(error->text);
	if (result) {
		snprintf(check->found, sizeof(check->found), "%.*s", (int)length, error->text);
		snprintf(check->advice, sizeof(check->advice), "%.500s",
			 advice ? advice + 1 + strspn(advice + 1, " ") : error->text);
	} else {
		snprintf(check->found, sizeof(check->found), "%s", found);
	}
}

static void check_runtime(struct findings *findings)
{
	struct jaunt_error error = {.code = 0};
	char path[200] = "";
	int fd = runtime_open(&error);

	runtime_path(path, sizeof(path), NULL);
	add(findings, "runtime-directory", true, fd < 0 ? fd : 0, path, &error);
	if (fd >= 0)
		close(fd);
}

static void check_vm(struct findings *findings, const char *name)
{
	struct jaunt_error error = {.code = 0};
	struct client client;
	json_t *reply = NULL;
	char found[200] = "", memory[TEXT_ROOM];
	int result = client_open(&client, name, &error);

	if (!result) {
		if (client_request(&client, json_pack("{s:s}", "command", "status"), &reply,
				   &error))
			result = -EIO;
		client_close(&client);
	}
	const json_t *vm = json_object_get(reply, "vm");
	const char *state = json_string_value(json_object_get(vm, "state"));
	json_int_t bytes = json_integer_value(json_object_get(vm, "memory_bytes"));
	snprintf(found, sizeof(found), "%s: %.30s, %s", name, state ? state : "",
		 text_bytes(memory, sizeof(memory), (uint64_t)bytes));
	add(findings, "vm", true, result, found, &error);
	if (!result) {
		bool free_to_go = json_is_null(json_object_get(vm, "migration")) && bytes > 0;
		if (!free_to_go)
			snprintf(error.text, sizeof(error.text),
				 "%s is in a migration or not here yet; wait for its end, see "
				 "`jaunt "
				 "status %s`",
				 name, name);
		add(findings, "vm-can-move", true, free_to_go ? 0 : -EBUSY,
		    "no migration under way", &error);
	}
	json_decref(reply);
}

static void check_peer(struct findings *findings, const struct peer *peer)
{
	struct jaunt_error error = {.code = 0};
	char found[200] = "";
	int result = peer_probe(peer, DOCTOR_CONNECT_MS, found, sizeof(found), &error);

	add(findings, "peer", true, result, found, &error);
}

/* --- A QEMU ------------------------------------------------------------------------------------
 */

static void check_qemu(struct findings *findings, const char *name)
{
	struct jaunt_check checks[EXAMINE_MAX];
	size_t count = examine_qemu(vmname_monitor(name), checks);

	for (size_t i = 0; i < count && findings->count < DOCTOR_CHECKS; i++)
		findings->checks[findings->count++] = checks[i];
}

/* Until its end; *differences is a new reference then, if there are any. */
static int follow(struct client *client, json_t **differences, struct jaunt_error *error)
{
	struct jaunt_status status = {.error = ""};
	json_t *last = NULL;
	enum jaunt_outcome outcome = client_follow(client, &status, &last, error);

	if (!last)
		return error_set(error, ECONNRESET, "owner-gone", "the dry run ended early");
	*differences = json_incref(json_object_get(last, "differences"));
	json_decref(last);
	return outcome == JAUNT_DONE ? 0
				     : error_set(error, EINVAL, status.reason, "%s", status.error);
}

/* What `jaunt migrate --dry-run` would find. */
static void check_pair(struct findings *findings, const struct doctor_arguments *arguments,
		       json_t **differences)
{
	struct jaunt_error error = {.code = 0};
	struct client client = {.lines = {.fd = -1}};
	struct owner *owner = NULL;
	int result = owner_start(&owner, arguments->name, &error);

	if (result == -EEXIST)
		result = 0;
	if (!result)
		result = client_open(&client, arguments->name, &error);
	if (!result && client_request(&client,
				      json_pack("{s:s, s:o, s:b, s:b}", "command", "migrate",
						"peer", text_json(arguments->peer_text), "dry_run",
						1, "insecure", arguments->insecure),
				      NULL, &error))
		result = -EIO;
	if (!result)
		result = follow(&client, differences, &error);
	client_close(&client);
	owner_end(owner);
	if (json_array_size(*differences))
		error_set(&error, EINVAL, "configuration",
			  "the VM that waits there does not match, in %zu items; see them below",
			  json_array_size(*differences));
	add(findings, "pair", true, result, "the VM that waits there can take it in", &error);
}

static void print_findings(const struct findings *findings)
{
	for (size_t i = 0; i < findings->count; i++) {
		const struct jaunt_check *check = &findings->checks[i];
		char found[256], advice[512];
		text_clean(found, sizeof(found), check->found);
		text_clean(advice, sizeof(advice), check->advice);
		printf("%-8s %-26s %s\n",
		       check->ok         ? "ok"
		       : check->required ? "MISSING"
					 : "without",
		       check->name, found);
		if (!check->ok && advice[0])
			printf("%-8s %-26s -> %s\n", "", "", advice);
	}
}

static json_t *findings_json(const struct findings *findings)
{
	json_t *list = json_array();
	for (size_t i = 0; i < findings->count; i++) {
		const struct jaunt_check *check = &findings->checks[i];
		json_array_append_new(list,
				      json_pack("{s:s, s:b, s:b, s:o, s:o}", "name", check->name,
						"ok", check->ok, "required", check->required,
						"found", text_json(check->found), "advice",
						text_json(check->ok ? "" : check->advice)));
	}
	return list;
}

int command_doctor(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"insecure", COMMAND_KEY_INSECURE, NULL, 0,
		 "Compare with a PEER beyond loopback although nothing is encrypted yet", 0},
		{"json", COMMAND_KEY_JSON, NULL, 0, "One JSON object on stdout", 0},
		{0}};
	static const struct argp argp = {
		options,
		parse,
		"[VM|qemu:SOCKET] [PEER]",
		"Finds out whether this host can take part in a migration, and says what to do if "
		"not; "
		"with VM, a name or qemu:SOCKET, whether that VM could be moved now; with PEER, "
		"whether "
		"somebody listens there, and for a QEMU whether the one that waits there matches "
		"it."
		"\vWhether a certain target would take a VM of another kind is for `jaunt migrate "
		"VM "
		"PEER --dry-run' to find out.\n\n"
		"Examples:\n"
		"  jaunt doctor\n"
		"  jaunt doctor web tcp:10.0.0.2\n"
		"  jaunt doctor qemu:/run/web.qmp tcp:10.0.0.2 --insecure\n\n"
		"Exit codes: 0 all that is required is there; 1 something is missing; 2 usage.",
		NULL,
		NULL,
		NULL};
	struct doctor_arguments arguments = {.name = NULL};
	struct jaunt_error error = {.code = 0};
	struct findings findings;
	json_t *differences = NULL;
	size_t missing = 0;

	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	/* Room for our own is kept. */
	findings.count = jaunt_doctor(findings.checks, DOCTOR_CHECKS - EXAMINE_MAX - 8);
	check_runtime(&findings);
	/* Only the built-in VM needs it: an engine host for other VMMs is no patient. */
	int result = guest_check_host(&error);
	add(&findings, "built-in-vm", false, result, "a VM can be made with KVM", &error);
	bool is_qemu = arguments.name && vmname_monitor(arguments.name);
	if (is_qemu)
		check_qemu(&findings, arguments.name);
	else if (arguments.name)
		check_vm(&findings, arguments.name);
	if (arguments.with_peer)
		check_peer(&findings, &arguments.peer);
	if (arguments.with_peer && is_qemu)
		check_pair(&findings, &arguments, &differences);
	for (size_t i = 0; i < findings.count; i++)
		missing += findings.checks[i].required && !findings.checks[i].ok;
	if (arguments.json) {
		json_t *object = json_pack("{s:s, s:b, s:o}", "schema", "jaunt.doctor/1", "ok",
					   missing == 0, "checks", findings_json(&findings));
		identity_add(object);
		if (differences)
			json_object_set(object, "differences", differences);
		text_print_json(object);
	} else {
		print_findings(&findings);
		if (json_array_size(differences)) {
			printf("\nWhere the two differ, and what cannot move:\n");
			mismatch_print(stdout, differences);
		}
		if (missing)
			printf("\n%zu of what is required %s missing.\n", missing,
			       missing == 1 ? "is" : "are");
	}
	json_decref(differences);
	return missing ? JAUNT_FAILED : JAUNT_DONE;
}
