/* SPDX-License-Identifier: Apache-2.0 */
/* Taking hold of a QEMU, on either side, and letting go of it. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "vmm/qemu/commit.h"
#include "vmm/qemu/compare.h"
#include "vmm/qemu/config.h"
#include "vmm/qemu/prepared.h"
#include "vmm/qemu/runstate.h"
#include "vmm/qemu/stream.h"
#include "vmm/qemu/vm.h"

#define GREETING_MS 5000
#define LOOK_MS     1000
#define END_MS      5000
#define PREPARE_MS  2000

/* --- What it is --------------------------------------------------------------------------------
 */

static int text_of(struct qemu *vm, const char *command, json_t *arguments, const char *key,
		   char *text, size_t room, struct jaunt_error *error)
{
	json_t *answer = NULL;
	int result = qmp_execute(vm->qmp, command, arguments, QEMU_ANSWER_MS, &answer, error);
	const char *found = json_string_value(key ? json_object_get(answer, key) : answer);

	snprintf(text, room, "%s", found ? found : "");
	json_decref(answer);
	return result;
}

static int count_vcpus(struct qemu *vm, struct jaunt_error *error)
{
	json_t *answer = NULL;
	int result = qmp_execute(vm->qmp, "query-cpus-fast", NULL, QEMU_ANSWER_MS, &answer, error);

	vm->facts.vcpus = (unsigned)json_array_size(answer);
	json_decref(answer);
	return result;
}

static int learn_facts(struct qemu *vm, struct jaunt_error *error)
{
	struct qemu_facts *facts = &vm->facts;
	int result =
		text_of(vm, "query-name", NULL, "name", facts->name, sizeof(facts->name), error);

	if (result == 0)
		result = count_vcpus(vm, error);
	if (result)
		return result;
	if (!facts->name[0]) {
		const char *slash = strrchr(vm->place->monitor, '/');
		snprintf(facts->name, sizeof(facts->name), "%.*s", (int)sizeof(facts->name) - 1,
			 slash ? slash + 1 : vm->place->monitor);
	}
	return 0;
}

/* Where a region lies in the guest is QEMU's affair, and its own stream says so and checks it. The
 * engine only needs addresses that both sides agree on: one region behind the other. */
static void describe_regions(struct qemu *vm)
{
	uint64_t next = 0;

	vm->facts.page_bytes = AGENT_PAGE;
	for (size_t i = 0; i < vm->regions.count; i++) {
		const struct regions_one *one = &vm->regions.all[i];
		next = (next + one->page_bytes - 1) / one->page_bytes * one->page_bytes;
		vm->described[i] = (struct jaunt_region){.name = one->id,
							 .guest_address = next,
							 .bytes = one->bytes,
							 .page_bytes = one->page_bytes,
							 .fd = one->fd,
							 .view = (void *)(uintptr_t)one->address};
		next += one->bytes;
		vm->facts.memory_bytes += one->bytes;
		if (one->page_bytes > vm->facts.page_bytes)
			vm->facts.page_bytes = one->page_bytes;
	}
}

void qemu_facts(const struct qemu *vm, struct qemu_facts *facts)
{
	*facts = vm->facts;
}

/* --- The record --------------------------------------------------------------------------------
 */

int qemu_note(struct qemu *vm, bool stopped, bool committed, const char *peer,
	      struct jaunt_error *error)
{
	struct commit commit = {.process = qmp_process(vm->qmp),
				.started = vm->started,
				.begun = vm->begun,
				.by_qemu = vm->by_qemu,
				.stopped = stopped,
				.committed = committed};
	bool is_kept = vm->place->record && !vm->incoming;

	snprintf(commit.peer, sizeof(commit.peer), "%.*s", (int)sizeof(commit.peer) - 1, peer);
	int result = is_kept ? commit_write(vm->place->record, &commit) : 0;
	if (result)
		return error_set(error, -result, "no-record",
				 "cannot write %s, which says whose the VM is if this process "
				 "dies: %s",
				 vm->place->record, strerror(-result));
	vm->stopped = stopped;
	vm->committed = committed;
	return 0;
}

void qemu_take_back(struct qemu *vm, bool stopped)
{
	if (qemu_note(vm, stopped, false, "", NULL))
		commit_remove(vm->place->record);
	vm->stopped = stopped;
	vm->committed = false;
}

/* --- Opening -----------------------------------------------------------------------------------
 */

static int check_status(struct qemu *vm, struct jaunt_error *error)
{
	char status[RUNSTATE_MAX];
	int result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);

	if (result)
		return result;
	if (vm->incoming && strcmp(status, "inmigrate") != 0)
		return error_set(error, EINVAL, "qemu-state",
				 "this QEMU does not wait for a guest, it says \"%s\": start it "
				 "with the options of the source's and -incoming defer",
				 status);
	if (!vm->incoming && strcmp(status, "running") != 0)
		return error_set(error, EINVAL, "qemu-state",
				 "the guest does not run, QEMU says \"%s\": only a running guest "
				 "can be moved%s",
				 status,
				 strcmp(status, "paused") == 0 ? ", continue it first" : "");
	return 0;
}

static int open_agent(struct qemu *vm, struct jaunt_error *error)
{
	char path[256];
	pid_t process = qmp_process(vm->qmp);
	int result = attach_path(process, path, sizeof(path), error);

	if (result == 0)
		result = attach_open(&vm->attach, path, error);
	/* Its first slots are for userfaultfds. One that has nothing to wait for any more has
	 * nothing to keep either. */
	bool fresh = result == 0 && vm->incoming && !vm->taken_up;
	for (unsigned slot = 0; fresh && slot < AGENT_USERFAULTFD_SLOTS; slot++)
		attach_drop(&vm->attach, slot, NULL);
	if (fresh)
		qemu_keep_nothing(&vm->attach);
	return result;
}

static int take_process(struct qemu *vm, struct jaunt_error *error)
{
	vm->started = commit_started(qmp_process(vm->qmp));
	vm->pidfd = (int)syscall(SYS_pidfd_open, qmp_process(vm->qmp), 0);
	if (vm->pidfd < 0)
		return error_set(error, errno, "qemu-gone", "QEMU's process %ld: %s",
				 (long)qmp_process(vm->qmp), strerror(errno));
	return 0;
}

/* Its monitor's thread may wait for a page that is missing, and answer nothing until it comes, or
 * another client has the monitor: what must be known is kept. Whether the guest runs is not known
 * then. */
static int take_again(struct qemu *vm, struct jaunt_error *error)
{
	char status[RUNSTATE_MAX];
	int result = qmp_connect(&vm->qmp, vm->place->monitor, error);

	if (result == 0)
		result = take_process(vm, error);
	if (result == 0)
		result = open_agent(vm, error);
	if (result == 0)
		result = qemu_remember(vm, error);
	if (result)
		return result;
	describe_regions(vm);
	result = runstate_ask(vm->qmp, LOOK_MS, status, error);
	if (result && result != -ETIMEDOUT)
		return result;
	vm->may_run = result == -ETIMEDOUT;
	vm->spent = !vm->may_run && strcmp(status, "running") != 0;
	return 0;
}

/* A balloon that is asked for the guest's free pages while QEMU copies memory: QEMU would then look
 * for them in bitmaps that memory which it leaves out does not have. */
static bool gives_hints(const struct qemu *vm)
{
	char hints[8];

	for (size_t i = 0; i < vm->config.count; i++)
		if (facts_line(vm->config.all[i].value, "free-page-hint", hints, sizeof(hints)) &&
		    strcmp(hints, "off") != 0)
			return true;
	return false;
}

/* A guest that QEMU stops by itself may have been stopped by somebody else just before. */
static bool says_who_stopped(const struct qemu *vm)
{
	const char *machine = facts_find(&vm->config, "machine type");
	return !machine || runstate_is_saved(machine);
}

static int take_hold(struct qemu *vm, struct jaunt_error *error)
{
	int result = qmp_open(&vm->qmp, vm->place->monitor, GREETING_MS, error);

	if (result == 0)
		result = take_process(vm, error);
	if (result)
		return result;
	if ((result = check_status(vm, error)) || (result = learn_facts(vm, error)) ||
	    (result = regions_find(&vm->regions, vm->qmp, QEMU_ANSWER_MS, error)) ||
	    (result = open_agent(vm, error)))
		return result;
	/* What has not arrived is a hole in the file, and would be sent on as zeros. */
	if (!vm->incoming &&
	    (result = regions_are_whole(&vm->regions, qmp_process(vm->qmp), error)))
		return result;
	if (!vm->incoming) /* all of it came, so nobody needs that any more */
		qemu_keep_nothing(&vm->attach);
	describe_regions(vm);
	/* Ahead of the migration, which it would make longer. */
	if (!vm->incoming) {
		result = config_collect(&vm->config, vm->qmp, QEMU_ANSWER_MS, error);
		vm->config_is_new = result == 0;
		if (result)
			return result;
	}
	if ((result = qemu_note(vm, false, false, "", error)))
		return result;
	vm->ahead = !vm->incoming && !gives_hints(vm) && says_who_stopped(vm);
	return settings_make(&vm->settings, vm->qmp, vm->ahead, error);
}

enum purpose { TO_LEAVE, TO_ARRIVE, TO_TAKE_UP };

static int open_one(struct qemu **out, const struct qemu_place *place, enum purpose purpose,
		    struct jaunt_error *error)
{
	struct qemu *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	vm->place = place;
	vm->incoming = purpose != TO_LEAVE;
	vm->taken_up = purpose == TO_TAKE_UP;
	vm->attach.fd = vm->pidfd = vm->stream_fd = -1;
	int result = vm->taken_up ? take_again(vm, error) : take_hold(vm, error);
	if (result) {
		if (vm->taken_up) /* nothing of it has been changed by us */
			settings_forget(&vm->settings);
		qemu_close(vm);
		return error_context(error, "qemu:%s", place->monitor);
	}
	*out = vm;
	return 0;
}

int qemu_open(struct qemu **out, const struct qemu_place *place, struct jaunt_error *error)
{
	return open_one(out, place, TO_LEAVE, error);
}

void qemu_close(struct qemu *vm)
{
	if (!vm)
		return;
	report_stop(&vm->report);
	stream_withdraw(vm);
	/* A guest that was left standing still is the next command's affair. */
	if (!vm->incoming && !vm->begun && !vm->stopped && !vm->committed && vm->place->record &&
	    vm->pidfd >= 0)
		commit_remove(vm->place->record);
	if (vm->qmp && !vm->spent)
		settings_restore(&vm->settings, vm->qmp);
	settings_forget(&vm->settings);
	regions_close(&vm->regions);
	facts_close(&vm->config);
	attach_close(&vm->attach);
	qmp_close(vm->qmp);
	if (vm->pidfd >= 0)
		close(vm->pidfd);
	free(vm);
}

/* --- Ending it ---------------------------------------------------------------------------------
 */

bool qemu_is_gone(const struct qemu *vm, int patience_ms)
{
	struct pollfd waiting = {.fd = vm->pidfd, .events = POLLIN};
	return poll(&waiting, 1, patience_ms) > 0;
}

void qemu_dismiss(struct qemu *vm)
{
	vm->spent = vm->dismissed = true;
	qmp_execute(vm->qmp, "quit", NULL, 0, NULL, NULL);
}

int qemu_end(struct qemu *vm, struct jaunt_error *error)
{
	vm->spent = true;
	if (vm->dismissed && qemu_is_gone(vm, END_MS))
		return 0;
	/* Nobody waited for an answer before: it may not even have been sent. */
	qmp_execute(vm->qmp, "quit", NULL, END_MS, NULL, NULL);
	if (qemu_is_gone(vm, END_MS))
		return 0;
	if (syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0) == 0 &&
	    qemu_is_gone(vm, END_MS))
		return 0;
	return error_set(error, EBUSY, "qemu-silent",
			 "QEMU, process %ld, cannot be ended: kill it, and make sure that it is "
			 "gone",
			 (long)qmp_process(vm->qmp));
}

void qemu_finish(struct qemu *vm)
{
	if (!vm)
		return;
	if (qemu_end(vm, NULL) == 0 && vm->place->record)
		commit_remove(vm->place->record);
	qemu_close(vm);
}

/* --- The target's side -------------------------------------------------------------------------
 */

static int match(const struct qemu *vm, const struct jaunt_description *wanted,
		 struct jaunt_error *error)
{
	if (vm->regions.count != wanted->region_count)
		return error_set(error, EINVAL, "bad-region",
				 "the guest has %zu regions of memory at the source, this QEMU has "
				 "%zu: give both the same memory options",
				 wanted->region_count, vm->regions.count);
	for (size_t i = 0; i < wanted->region_count; i++) {
		const struct jaunt_region *there = &wanted->regions[i];
		const struct jaunt_region *here = &vm->described[i];
		if (strcmp(there->name, here->name) != 0 || there->bytes != here->bytes ||
		    there->page_bytes != here->page_bytes)
			return error_set(error, EINVAL, "bad-region",
					 "the source's memory backend \"%s\" has %" PRIu64
					 " bytes in pages of %" PRIu64
					 ", \"%s\" of this QEMU %" PRIu64 " in pages of %" PRIu64
					 ": give both the same memory options",
					 there->name, there->bytes, there->page_bytes, here->name,
					 here->bytes, here->page_bytes);
	}
	return 0;
}

/* The whole of both, item by item. */
static int compare(struct qemu *vm, struct qemu_place *place,
		   const struct jaunt_description *wanted, struct jaunt_error *error)
{
	if (!place->compared)
		place->compared = calloc(1, sizeof(*place->compared));
	if (!place->compared)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	compared_close(place->compared);
	int result = place->prepared ? prepared_take(place->prepared, vm->qmp, QEMU_ANSWER_MS,
						     &vm->config, error)
				     : config_collect(&vm->config, vm->qmp, QEMU_ANSWER_MS, error);
	return result ? result : compare_facts(wanted, &vm->config, place->compared, error);
}

static size_t differences(void *context, const struct jaunt_difference **out)
{
	const struct qemu_place *place = context;

	*out = place->compared ? place->compared->all : NULL;
	return place->compared ? place->compared->count : 0;
}

void qemu_prepare(struct qemu_place *place)
{
	struct jaunt_error error = {.code = 0};
	struct qmp *qmp;

	if (!place->prepared)
		place->prepared = calloc(1, sizeof(*place->prepared));
	if (!place->prepared || qmp_open(&qmp, place->monitor, PREPARE_MS, &error))
		return;
	prepared_make(place->prepared, qmp, PREPARE_MS);
	qmp_close(qmp);
}

void qemu_forget(struct qemu_place *place)
{
	if (place->prepared)
		prepared_close(place->prepared);
	free(place->prepared);
	place->prepared = NULL;
	if (place->compared)
		compared_close(place->compared);
	free(place->compared);
	place->compared = NULL;
}

static int create(void *context, const struct jaunt_description *wanted, void **out,
		  struct jaunt_error *error)
{
	struct qemu *vm = NULL;
	int result = open_one(&vm, context, TO_ARRIVE, error);

	if (result)
		return result;
	result = compare(vm, context, wanted, error);
	if (result == 0)
		result = match(vm, wanted, error);
	if (result == 0)
		result = stream_offer(vm, error);
	if (result)
		qemu_close(vm);
	else
		*out = vm;
	return result;
}

static void destroy(void *context, void *made)
{
	struct qemu *vm = made;

	(void)context;
	if (vm->spent) {
		qemu_end(vm, NULL);
	} else {
		/* The last copies are the engine's: when it closes them QEMU's memory is as
		 * before. A guest that may run keeps them, and waits rather than reads zeros. */
		for (unsigned slot = 0; !vm->may_run && slot < vm->slots_used; slot++)
			attach_drop(&vm->attach, slot, NULL);
		qemu_keep_nothing(&vm->attach);
	}
	qemu_close(vm);
}

static int take_up(void *context, void **out, enum jaunt_runs *runs, struct jaunt_error *error)
{
	struct qemu *vm = NULL;
	int result = open_one(&vm, context, TO_TAKE_UP, error);

	if (result)
		return result;
	error_clear(error);
	*runs = vm->may_run ? JAUNT_MAY_RUN : vm->spent ? JAUNT_STANDS : JAUNT_RUNS;
	*out = vm;
	return 0;
}

/* It stays as it was found: a process that lives may have it. */
static void let_go(void *context, void *found)
{
	struct qemu *vm = found;

	(void)context;
	settings_forget(&vm->settings);
	qemu_close(vm);
}

const struct jaunt_vm_factory qemu_factory = {
	.ops = &qemu_ops,
	.create = create,
	.destroy = destroy,
	.differences = differences,
	.take_up = take_up,
	.let_go = let_go,
};
