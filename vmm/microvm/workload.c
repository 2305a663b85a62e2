/* SPDX-License-Identifier: Apache-2.0 */
/* The text of --workload: names, parameters, and messages that list them. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vmm/microvm/guest/abi.h"
#include "vmm/microvm/microvm.h"

#define DEFAULT_CHECK_EVERY 64
#define MAX_RATE            UINT64_C(1000000000)

static const struct {
	const char *name, *help;
} workloads[GUEST_WORKLOADS] = {
	[GUEST_IDLE] = {"idle", "fills its working set, then sleeps"},
	[GUEST_SWEEP] = {"sweep", "rewrites its pages in order, again and again"},
	[GUEST_RANDOM] = {"random", "rewrites pages chosen uniformly"},
	[GUEST_READ] = {"read", "reads pages chosen uniformly, rewrites one in 16"},
	[GUEST_ZIPF] = {"zipf", "rewrites pages, few of them often (Zipf's law)"},
	[GUEST_KV] = {"kv", "serves a hash table with get and put, three to one"},
	[GUEST_DISCARD] = {"discard", "gives pages back and takes them again, reads the others"},
};

const char *microvm_workload_name(unsigned kind)
{
	return kind < GUEST_WORKLOADS ? workloads[kind].name : NULL;
}

const char *microvm_workload_help(unsigned kind)
{
	return kind < GUEST_WORKLOADS ? workloads[kind].help : NULL;
}

const char *microvm_workload_parameters(void)
{
	return "ws=SIZE or N% (working set, 50%), rate=N (operations/s of the VM, 0: full), "
	       "seed=N (1), check=N (re-check a page every N operations, 0: never, 64)";
}

static int refuse(struct jaunt_error *error, const char *what, const char *value)
{
	char names[128] = "";
	for (unsigned i = 0; i < GUEST_WORKLOADS; i++) {
		size_t used = strlen(names);
		snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "",
			 workloads[i].name);
	}
	return error_set(error, EINVAL, "bad-workload",
			 "workload: %s '%.64s'; workloads: %s; parameters: %s", what, value, names,
			 microvm_workload_parameters());
}

/* A whole number with an optional suffix k, m, g, t if `sizes`. Returns what follows it, or NULL.
 */
static const char *parse_number(const char *text, bool sizes, uint64_t *value)
{
	if (*text < '0' || *text > '9')
		return NULL;
	char *end;
	errno = 0;
	unsigned long long number = strtoull(text, &end, 10);
	if (errno)
		return NULL;
	unsigned shift = 0;
	if (sizes && *end) {
		const char *suffixes = "kmgt", *suffix = strchr(suffixes, *end | 0x20);
		if (suffix) {
			shift = 10 * (unsigned)(suffix - suffixes + 1);
			end++;
		}
	}
	if (number > UINT64_MAX >> shift)
		return NULL;
	*value = (uint64_t)number << shift;
	return end;
}

static bool parse_parameter(struct microvm_workload *workload, const char *key, const char *value)
{
	uint64_t number;
	bool size = !strcmp(key, "ws");
	const char *rest = parse_number(value, size, &number);
	if (!rest)
		return false;
	if (size && !strcmp(rest, "%")) {
		if (number < 1 || number > 100)
			return false;
		workload->working_set_bytes = 0;
		workload->working_set_percent = (unsigned)number;
		return true;
	}
	if (*rest)
		return false;
	if (size) {
		workload->working_set_bytes = number;
		return number >= GUEST_PAGE_BYTES;
	}
	if (!strcmp(key, "rate")) {
		workload->operations_per_s = number;
		return number <= MAX_RATE;
	}
	if (!strcmp(key, "seed")) {
		workload->seed = number;
		return true;
	}
	workload->check_every = number;
	return true;
}

int microvm_workload_parse(struct microvm_workload *workload, const char *text,
			   struct jaunt_error *error)
{
	*workload = (struct microvm_workload){
		.working_set_percent = 50, .seed = 1, .check_every = DEFAULT_CHECK_EVERY};
	size_t length = strcspn(text, ":");
	while (workload->kind < GUEST_WORKLOADS &&
	       (strlen(workloads[workload->kind].name) != length ||
		memcmp(workloads[workload->kind].name, text, length)))
		workload->kind++;
	if (workload->kind == GUEST_WORKLOADS)
		return refuse(error, "there is no", text);
	if (!text[length])
		return 0;
	if (strlen(text) > 256)
		return refuse(error, "too long:", text);
	char copy[257];
	snprintf(copy, sizeof copy, "%s", text + length + 1);
	char *rest = copy, *part;
	while ((part = strsep(&rest, ","))) {
		char *value = strchr(part, '=');
		if (!value)
			return refuse(error, "no 'key=value':", part);
		*value++ = 0;
		if (strcmp(part, "ws") && strcmp(part, "rate") && strcmp(part, "seed") &&
		    strcmp(part, "check"))
			return refuse(error, "no such parameter", part);
		if (!parse_parameter(workload, part, value)) {
			value[-1] = '=';
			return refuse(error, "this makes no sense:", part);
		}
	}
	return 0;
}

void microvm_workload_format(const struct microvm_workload *workload, char *text, size_t bytes)
{
	char working_set[32];
	if (workload->working_set_bytes)
		snprintf(working_set, sizeof working_set, "%" PRIu64, workload->working_set_bytes);
	else
		snprintf(working_set, sizeof working_set, "%u%%", workload->working_set_percent);
	snprintf(text, bytes, "%s:ws=%s,rate=%" PRIu64 ",seed=%" PRIu64 ",check=%" PRIu64,
		 workloads[workload->kind].name, working_set, workload->operations_per_s,
		 workload->seed, workload->check_every);
}
