/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/guest_qemu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "cli/runtime.h"
#include "cli/text.h"
#include "cli/vmname.h"

int guest_qemu_place(struct guest_qemu *qemu, const char *name, struct jaunt_error *error)
{
	char folder[PATH_MAX], own[RUNTIME_NAME_MAX + 1];
	const char *monitor = vmname_monitor(name);
	int result = vmname_runtime(own, name, error);

	if (result == 0)
		result = runtime_path(folder, sizeof(folder), error);
	if (result)
		return result;
	if (snprintf(qemu->monitor, sizeof(qemu->monitor), "%s", monitor) >=
		    (int)sizeof(qemu->monitor) ||
	    snprintf(qemu->record, sizeof(qemu->record), "%s/%s.commit", folder, own) >=
		    (int)sizeof(qemu->record))
		return error_set(error, ENAMETOOLONG, "bad-name", "the path %s is too long", name);
	qemu->place = (struct qemu_place){.monitor = qemu->monitor, .record = qemu->record};
	return 0;
}

static void take_facts(const struct qemu *vm, struct guest_facts *facts)
{
	struct qemu_facts found;

	qemu_facts(vm, &found);
	*facts = (struct guest_facts){.memory_bytes = found.memory_bytes,
				      .page_bytes = found.page_bytes,
				      .vcpus = found.vcpus};
	text_clean(facts->name, sizeof(facts->name), found.name);
}

int guest_qemu_open(const struct guest_qemu *qemu, void **vm, struct guest_facts *facts,
		    struct jaunt_error *error)
{
	enum qemu_remains remains;
	struct qemu *opened = NULL;
	int result = qemu_recover(&qemu->place, &remains, error);

	if (result == 0 && remains == QEMU_COMMITTED)
		result = -error->code;
	if (result == 0)
		result = qemu_open(&opened, &qemu->place, error);
	if (result)
		return result;
	take_facts(opened, facts);
	*vm = opened;
	return 0;
}

int guest_qemu_idle(const char *name, struct jaunt_error *error)
{
	struct guest_qemu qemu;
	struct runtime_claim claim;
	char own[RUNTIME_NAME_MAX + 1];
	enum qemu_remains remains = QEMU_NOTHING;
	int result = guest_qemu_place(&qemu, name, error);

	if (result == 0)
		result = vmname_runtime(own, name, error);
	if (result == 0)
		result = runtime_claim(&claim, own, error);
	if (result)
		return result;
	result = qemu_recover(&qemu.place, &remains, error);
	bool waits = !result && remains == QEMU_NOTHING && qemu_can_be_taken_up(&qemu.place);
	runtime_release(&claim);
	if (result)
		return error_context(
			error,
			"%s: its guest stands still for a migration whose process died, "
			"and cannot be continued",
			name);
	if (remains == QEMU_COMMITTED)
		return error_context(error, "%s", name);
	if (waits)
		return error_set(
			error, ESRCH, "receiver-gone",
			"%s: the process that received its guest died before all of it had "
			"come. The guest waits where it needs a page that is missing; `jaunt "
			"resume %s` goes on where that process was, if the source is still "
			"there",
			name, name);
	if (remains == QEMU_CONTINUED)
		return error_set(error, ENOENT, "unknown-vm",
				 "%s is not being moved; the process that moved it had died before "
				 "it was committed, and its guest, which stood still, runs again",
				 name);
	return error_set(error, ENOENT, "unknown-vm", "%s is not being moved", name);
}

/* --- As a kind of guest --------------------------------------------------------------------------
 */

static void let_go(void *vm)
{
	qemu_close(vm);
}

static void leaves(void *vm)
{
	qemu_dismiss(vm);
}

static void has_left(void *vm)
{
	qemu_finish(vm);
}

static int create(void *context, const struct jaunt_description *wanted, void **vm,
		  struct jaunt_error *error)
{
	struct guest_host *host = context;
	struct guest_facts facts;
	int result = qemu_factory.create((void *)&host->qemu->place, wanted, vm, error);

	if (result) {
		host->gone(host->context);
		return result;
	}
	take_facts(*vm, &facts);
	host->created(host->context, *vm, &facts);
	return 0;
}

static void destroy(void *context, void *vm)
{
	struct guest_host *host = context;

	host->gone(host->context);
	qemu_factory.destroy((void *)&host->qemu->place, vm);
}

static int take_up(void *context, void **vm, enum jaunt_runs *runs, struct jaunt_error *error)
{
	struct guest_host *host = context;
	struct guest_facts facts;
	int result = qemu_factory.take_up((void *)&host->qemu->place, vm, runs, error);

	if (result)
		return result;
	take_facts(*vm, &facts);
	host->created(host->context, *vm, &facts);
	return 0;
}

static void leave(void *context, void *vm)
{
	struct guest_host *host = context;

	host->gone(host->context);
	qemu_factory.let_go((void *)&host->qemu->place, vm);
}

static size_t differences(void *context, const struct jaunt_difference **out)
{
	struct guest_host *host = context;
	return qemu_factory.differences((void *)&host->qemu->place, out);
}

static const struct jaunt_vm_factory factory = {
	.ops = &qemu_ops,
	.create = create,
	.destroy = destroy,
	.differences = differences,
	.take_up = take_up,
	.let_go = leave,
};

const struct guest_kind guest_qemu_kind = {
	.ops = &qemu_ops,
	.factory = &factory,
	.leaves = leaves,
	.let_go = let_go,
	.has_left = has_left,
	.separate = true,
};
