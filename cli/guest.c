/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/guest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "cli/snapshot.h"
#include "cli/text.h"
#include "cli/touch.h"
#include "vmm/microvm/microvm.h"

int guest_check_workload(const char *text, struct jaunt_error *error)
{
	struct microvm_workload workload;
	return microvm_workload_parse(&workload, text, error);
}

int guest_create(const struct guest_facts *facts, void **vm, struct jaunt_error *error)
{
	const struct microvm_config config = {
		.name = facts->name,
		.memory_bytes = facts->memory_bytes,
		.vcpus = facts->vcpus,
		.page_bytes = facts->page_bytes,
		.workload = facts->workload,
		.thread_backed = facts->thread_backed,
		.tracking = facts->dirty_ring ? MICROVM_DIRTY_RING : MICROVM_DIRTY_LOG,
	};
	struct microvm *made = NULL;
	int result = microvm_create(&made, &config, error);

	*vm = made;
	return result;
}

int guest_start(void *vm, struct jaunt_error *error)
{
	return microvm_start(vm, error);
}

int guest_at_work(void *vm, struct jaunt_error *error)
{
	int result = microvm_wait_ready(vm, 0, error);
	return result == -ETIMEDOUT ? 0 : result ? result : 1;
}

const char *guest_check_name(enum guest_check check)
{
	switch (check) {
	case GUEST_CLEAN:
		return "clean";
	case GUEST_ERRORS:
		return "errors";
	case GUEST_UNFINISHED:
		return "unfinished";
	case GUEST_NOT_CHECKED:
		break;
	}
	return "none";
}

enum guest_check guest_stop(void *vm, unsigned timeout_ms, struct jaunt_error *error)
{
	int result = microvm_stop(vm, true, timeout_ms, error);
	if (!result)
		return GUEST_CLEAN;
	return result == -ETIMEDOUT ? GUEST_UNFINISHED : GUEST_ERRORS;
}

void guest_destroy(void *vm)
{
	microvm_destroy(vm);
}

int guest_account(void *vm, struct guest_account *account, struct jaunt_error *error)
{
	struct microvm_account whole;
	int result = microvm_account(vm, &whole, error);

	if (result)
		return result;
	*account = (struct guest_account){
		.operations = whole.operations,
		.operations_since_arrival = whole.operations_since_arrival,
		.memory_errors = whole.memory_errors,
		.sweeps = whole.sweeps,
		.operations_per_s_before = whole.operations_per_s_before,
		.longest_stall_us = whole.longest_stall_us,
		.arrival_gap_us = whole.arrival_gap_us,
		.ms_to_90_percent_throughput =
			whole.arrived ? whole.ms_to_90_percent_throughput : -1,
		.touches_dropped = whole.touches_dropped,
	};
	snprintf(account->first_error, sizeof(account->first_error), "%s", whole.first_error);
	snprintf(account->tsc_note, sizeof(account->tsc_note), "%s", whole.tsc_note);
	microvm_account_free(&whole);
	return 0;
}

int guest_write_throughput(void *vm, const char *path, struct jaunt_error *error)
{
	struct microvm_account whole;
	int result = microvm_account(vm, &whole, error);

	if (result)
		return result;
	FILE *file = fopen(path, "we");
	for (size_t i = 0; file && i < whole.sample_count; i++)
		fprintf(file, "%" PRIu64 " %u\n", whole.samples[i].time_ns,
			whole.samples[i].operations);
	microvm_account_free(&whole);
	if (!file || fclose(file))
		return error_set(error, errno, "throughput-file", "write %s: %s", path,
				 strerror(errno));
	return 0;
}

static bool demanded(const void *migration, uint64_t page)
{
	return jaunt_migration_was_demanded(migration, 0, page);
}

int guest_touch_latency(void *vm, const struct jaunt_migration *migration,
			struct jaunt_percentiles *out, double *sum_us, struct jaunt_error *error)
{
	struct microvm_account whole;
	int result = microvm_account(vm, &whole, error);

	if (result)
		return result;
	struct touch *touches = calloc(whole.touch_count + 1, sizeof(*touches));
	for (size_t i = 0; touches && i < whole.touch_count; i++)
		touches[i] = (struct touch){.page = whole.touches[i].region_page,
					    .when = whole.touches[i].time_ns,
					    .latency_us = whole.touches[i].latency_us};
	if (touches)
		touch_percentiles(touches, whole.touch_count, demanded, migration, out);
	else
		result = error_set(error, ENOMEM, "no-memory", "not enough memory for %zu touches",
				   whole.touch_count);
	*sum_us = 0;
	for (size_t i = 0; touches && i < out->count; i++)
		*sum_us += touches[i].latency_us;
	free(touches);
	microvm_account_free(&whole);
	return result;
}

json_t *guest_account_json(const struct guest_account *account,
			   const struct jaunt_percentiles *touches, enum guest_check check)
{
	static const struct jaunt_percentiles none;

	json_t *object = json_pack(
		"{s:I, s:I, s:I, s:I, s:s}", "operations", (json_int_t)account->operations,
		"operations_since_arrival", (json_int_t)account->operations_since_arrival,
		"memory_errors", (json_int_t)account->memory_errors, "sweeps",
		(json_int_t)account->sweeps, "self_check", guest_check_name(check));
	json_object_set_new(object, "first_error", text_json(account->first_error));
	json_object_set_new(object, "longest_stall_us", text_real(account->longest_stall_us));
	json_object_set_new(object, "arrival_gap_us", text_real(account->arrival_gap_us));
	json_object_set_new(object, "touch_latency_us",
			    snapshot_percentiles_json(touches ? touches : &none));
	json_object_set_new(object, "touches_dropped",
			    json_integer((json_int_t)account->touches_dropped));
	json_object_set_new(object, "operations_per_s_before",
			    text_real(account->operations_per_s_before));
	json_object_set_new(object, "ms_to_90_percent_throughput",
			    account->ms_to_90_percent_throughput < 0
				    ? json_null()
				    : text_real(account->ms_to_90_percent_throughput));
	json_object_set_new(object, "tsc_note", text_json(account->tsc_note));
	return object;
}

/* --- Receiving one -------------------------------------------------------------------------------
 */

static const char *property(const struct jaunt_description *wanted, const char *key)
{
	for (size_t i = 0; i < wanted->property_count; i++)
		if (strcmp(wanted->properties[i].key, key) == 0)
			return wanted->properties[i].value;
	return "";
}

/* The engine destroys a VM with the context that it was made with; ours must reach microvm's. */
static struct microvm_host microvm_host_of(const struct guest_host *host, const char *name)
{
	return (struct microvm_host){.name = name, .allow_thread_backed = host->thread_backed};
}

static int create(void *context, const struct jaunt_description *wanted, void **vm,
		  struct jaunt_error *error)
{
	struct guest_host *host = context;
	const char *name = host->name ? host->name : wanted->name;
	struct microvm_host microvm_host = microvm_host_of(host, name);
	struct guest_facts facts = {.page_bytes = 4096};
	int result = host->arriving(host->context, name, error);

	if (result)
		return result;
	result = microvm_factory.create(&microvm_host, wanted, vm, error);
	if (result) {
		host->gone(host->context);
		return result;
	}
	/* What the source says is for display only, and may be anything. */
	text_clean(facts.name, sizeof(facts.name), name);
	text_clean(facts.workload, sizeof(facts.workload), property(wanted, "workload"));
	facts.vcpus = (unsigned)strtoul(property(wanted, "vcpus"), NULL, 10);
	facts.thread_backed = strcmp(property(wanted, "backing"), "thread") == 0;
	for (size_t i = 0; i < wanted->region_count; i++) {
		facts.memory_bytes += wanted->regions[i].bytes;
		facts.page_bytes = wanted->regions[i].page_bytes;
	}
	host->created(host->context, *vm, &facts);
	return 0;
}

static void destroy(void *context, void *vm)
{
	struct guest_host *host = context;
	struct microvm_host microvm_host = microvm_host_of(host, host->name);

	host->gone(host->context);
	microvm_factory.destroy(&microvm_host, vm);
}

static const struct jaunt_vm_factory factory = {
	.ops = &microvm_ops,
	.create = create,
	.destroy = destroy,
};

const struct guest_kind guest_builtin_kind = {
	.ops = &microvm_ops,
	.factory = &factory,
	.let_go = guest_destroy,
	.has_left = guest_destroy,
};

/* --- Questions -----------------------------------------------------------------------------------
 */

int guest_check_host(struct jaunt_error *error)
{
	const struct microvm_config config = {.name = "doctor",
					      .memory_bytes = GUEST_MEMORY_LEAST,
					      .vcpus = 1,
					      .page_bytes = 4096,
					      .workload = "idle"};
	struct microvm *vm = NULL;
	int result = microvm_check_kvm(error);

	if (!result)
		result = microvm_create(&vm, &config, error);
	if (!result)
		microvm_destroy(vm);
	return result;
}

char *guest_workload_help(void)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);

	if (!out)
		return NULL;
	fputs("Workloads (each checks its own memory):\n", out);
	for (unsigned kind = 0; microvm_workload_name(kind); kind++)
		fprintf(out, "  %-8s %s\n", microvm_workload_name(kind),
			microvm_workload_help(kind));
	fprintf(out, "%s\n", microvm_workload_parameters());
	fclose(out);
	return text;
}
