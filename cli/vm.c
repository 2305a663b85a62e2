/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/guest.h"
#include "cli/host.h"
#include "cli/identity.h"
#include "cli/outcome.h"
#include "cli/quantity.h"
#include "cli/report.h"
#include "cli/snapshot.h"
#include "cli/text.h"

#define VM_DEFAULT_MEMORY   (UINT64_C(1) << 30)
#define VM_DEFAULT_WORKLOAD "random"

struct vm_arguments {
	struct guest_facts facts;
	bool json;
};

static const struct argp_option vm_options[] = {
	{"memory", COMMAND_KEY_MEMORY, "SIZE", 0,
	 "Guest memory, at least 64M, in steps of 2M (default: 1G)", 0},
	{"vcpus", COMMAND_KEY_VCPUS, "N", 0, "Virtual processors, 1 to 64 (default: 1)", 0},
	{"page-size", COMMAND_KEY_PAGE_SIZE, "4k|2m", 0,
	 "Pages of the memory file; 2m takes them from the host's huge pages (default: 4k)", 0},
	{"workload", COMMAND_KEY_WORKLOAD, "W[:KEY=VALUE,…]", 0,
	 "What the guest does, see below (default: " VM_DEFAULT_WORKLOAD ")", 0},
	{"dirty-tracking", COMMAND_KEY_DIRTY_TRACKING, "log|ring", 0,
	 "How KVM notes which pages the guest writes, for modes that copy while it runs (default: "
	 "log)",
	 0},
	{"thread-backed", COMMAND_KEY_THREAD_BACKED, NULL, 0,
	 "Run the vCPUs as threads of this process, without KVM; for hosts that have none", 0},
	{"json", COMMAND_KEY_JSON, NULL, 0,
	 "At the end, one JSON object as the last line of stdout", 0},
	{0},
};

static void take_facts(struct argp_state *state, struct guest_facts *facts)
{
	struct jaunt_error error;

	if (facts->memory_bytes < GUEST_MEMORY_LEAST || facts->memory_bytes % GUEST_MEMORY_STEP)
		command_usage(state,
			      "a guest has at least 64M of memory, in steps of 2M; not %llu bytes",
			      (unsigned long long)facts->memory_bytes);
	if (guest_check_workload(facts->workload, &error))
		command_usage(state, "%s", error.text);
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct vm_arguments *arguments = state->input;
	struct guest_facts *facts = &arguments->facts;
	struct jaunt_error error = {.code = 0};
	uint64_t value = 0;

	switch (key) {
	case COMMAND_KEY_MEMORY:
		quantity_size(argument, &facts->memory_bytes, &error);
		break;
	case COMMAND_KEY_VCPUS:
		quantity_count("vCPUs", argument, 1, GUEST_VCPUS_MOST, &value, &error);
		facts->vcpus = (unsigned)value;
		break;
	case COMMAND_KEY_PAGE_SIZE:
		quantity_size(argument, &facts->page_bytes, &error);
		if (!error.code && facts->page_bytes != 4096 && facts->page_bytes != 2097152)
			command_usage(state, "pages are of 4k or of 2m, not \"%s\"", argument);
		break;
	case COMMAND_KEY_WORKLOAD:
		if (strlen(argument) >= sizeof(facts->workload))
			command_usage(state, "this workload is too long a text");
		snprintf(facts->workload, sizeof(facts->workload), "%s", argument);
		break;
	case COMMAND_KEY_DIRTY_TRACKING:
		if (strcmp(argument, "log") != 0 && strcmp(argument, "ring") != 0)
			command_usage(state, "writes are noted in a log or in a ring, not \"%s\"",
				      argument);
		facts->dirty_ring = strcmp(argument, "ring") == 0;
		break;
	case COMMAND_KEY_THREAD_BACKED:
		facts->thread_backed = true;
		break;
	case COMMAND_KEY_JSON:
		arguments->json = true;
		break;
	case ARGP_KEY_ARG:
		if (facts->name[0])
			command_usage(state, "one name is enough; what is \"%s\"?", argument);
		if (runtime_name_check(argument, &error))
			break;
		snprintf(facts->name, sizeof(facts->name), "%s", argument);
		break;
	case ARGP_KEY_END:
		if (!facts->name[0])
			command_usage(state, "the VM needs a name, like `jaunt vm run web'");
		if (facts->dirty_ring && facts->thread_backed)
			command_usage(state, "a dirty ring is KVM's; a VM whose vCPUs are threads "
					     "has none");
		take_facts(state, facts);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	if (error.code)
		command_usage(state, "%s", error.text);
	return 0;
}

static char *filter(int key, const char *text, void *input)
{
	if (key != ARGP_KEY_HELP_POST_DOC)
		return (char *)text;
	return guest_workload_help();
}

static void report_json_vm(const struct host *host, const struct jaunt_error *error,
			   enum jaunt_outcome outcome)
{
	const char *result =
		error->code ? "failed"
		: host->has_left && !host->vm_here && host->left.vm_is_at != JAUNT_AT_SOURCE
			? (outcome == JAUNT_DONE ? "moved" : report_result(outcome))
			: "stopped";
	json_t *object =
		json_pack("{s:s, s:s, s:s, s:i, s:o, s:o}", "schema", "jaunt.vm/1", "name",
			  host->facts.name, "result", result, "exit_code", (int)outcome, "reason",
			  text_json(error->reason), "error", text_json(error->text));
	json_object_set_new(object, "ram_bytes",
			    json_integer((json_int_t)host->facts.memory_bytes));
	json_object_set_new(object, "vcpus", json_integer(host->facts.vcpus));
	json_object_set_new(object, "workload", text_json(host->facts.workload));
	json_object_set_new(object, "guest", guest_account_json(&host->account, NULL, host->check));
	json_object_set_new(
		object, "migration",
		host->has_left ? report_json("jaunt.migrate/1", &host->left, host->left_outcome)
			       : json_null());
	identity_add(object);
	text_print_json(object);
}

static int run(struct host *host, struct vm_arguments *arguments, struct jaunt_error *error)
{
	char memory[TEXT_ROOM];
	void *vm = NULL;
	int result = host_open(host, "vm run", true, error);

	host->facts = arguments->facts;
	/* The name first: it costs nothing, and is the likeliest mistake. */
	if (!result)
		result = host_claim(host, arguments->facts.name, error);
	if (!result)
		result = guest_create(&arguments->facts, &vm, error);
	if (result)
		return result;
	result = guest_start(vm, error);
	if (result) {
		guest_destroy(vm);
		return result;
	}
	host_adopt(host, &guest_builtin_kind, vm, &arguments->facts);
	host_say(host, "%s: runs, %s, %u vCPU%s%s, workload %s, process %ld", arguments->facts.name,
		 text_bytes(memory, sizeof(memory), arguments->facts.memory_bytes),
		 arguments->facts.vcpus, arguments->facts.vcpus == 1 ? "" : "s",
		 arguments->facts.thread_backed ? " (threads, no KVM)" : "",
		 arguments->facts.workload, (long)getpid());
	return 0;
}

static int vm_run(int argc, char **argv)
{
	static const struct argp argp = {vm_options,
					 parse,
					 "NAME",
					 "Starts a built-in VM and stays with it until it is "
					 "stopped (SIGINT, SIGTERM) or has "
					 "moved away. Other commands find it by its name: `jaunt "
					 "migrate NAME PEER' moves it."
					 "\v-",
					 NULL,
					 filter,
					 NULL};
	struct vm_arguments arguments = {.facts = {.memory_bytes = VM_DEFAULT_MEMORY,
						   .page_bytes = 4096,
						   .vcpus = 1,
						   .workload = VM_DEFAULT_WORKLOAD}};
	struct jaunt_error error = {.code = 0};
	struct host host;

	argp_parse(&argp, argc, argv, 0, NULL, &arguments);
	enum jaunt_outcome outcome = JAUNT_FAILED;
	if (run(&host, &arguments, &error)) {
		command_complain("vm run", error.text);
		outcome = outcome_of_error(&error);
	} else {
		outcome = host_run(&host);
	}
	bool stopped = !error.code && host.check != GUEST_NOT_CHECKED;
	if (stopped && !arguments.json)
		host_print_account(&host, stdout);
	if (arguments.json)
		report_json_vm(&host, &error, outcome);
	host_close(&host);
	return (int)outcome;
}

int command_vm(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "run") == 0) {
		argv[1] = (char *)"jaunt vm run";
		return vm_run(argc - 1, argv + 1);
	}
	bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0);
	fputs("Usage: jaunt vm run NAME [OPTION…]\n"
	      "Starts a built-in VM; `jaunt vm run --help' says more.\n",
	      help ? stdout : stderr);
	return help ? JAUNT_DONE : JAUNT_USAGE;
}
