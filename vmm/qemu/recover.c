/* SPDX-License-Identifier: Apache-2.0 */
/* After the death of a process that moved a guest away: what the record says of it (commit.h). */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "vmm/qemu/commit.h"
#include "vmm/qemu/runstate.h"
#include "vmm/qemu/stream.h"
#include "vmm/qemu/vm.h"

#define GREETING_MS 5000

/* What tracked its writes is taken off with the last descriptor. */
static void untrack(struct qemu *vm)
{
	char path[256];

	if (attach_path(qmp_process(vm->qmp), path, sizeof(path), NULL) ||
	    attach_open(&vm->attach, path, NULL))
		return;
	for (unsigned slot = 0; slot < AGENT_USERFAULTFD_SLOTS; slot++)
		attach_drop(&vm->attach, slot, NULL);
	attach_close(&vm->attach);
}

/* It stood still: whatever has it run again, and how it is then. */
static int go_on(struct qemu *vm, char status[RUNSTATE_MAX], enum qemu_remains *remains,
		 struct jaunt_error *error)
{
	uint64_t when;
	int result = qemu_ops.resume(vm, &when, error);

	if (result == 0)
		result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);
	if (result == 0 && strcmp(status, "running") == 0)
		*remains = QEMU_CONTINUED;
	return result;
}

/* It may have been stopped for the migration. */
static int continue_it(struct qemu *vm, enum qemu_remains *remains, struct jaunt_error *error)
{
	enum qemu_remains ran = QEMU_NOTHING;
	char status[RUNSTATE_MAX];

	qmp_execute(vm->qmp, "migrate_cancel", NULL, QEMU_ANSWER_MS, NULL, NULL);
	int result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);
	bool stood = strcmp(status, "running") != 0;
	return result ? result : go_on(vm, status, stood ? remains : &ran, error);
}

/* QEMU may have stopped it by itself, and waits for the dead process, or wrote all that it had to:
 * where it gives that up it continues what it stopped; where it has done it, Jaunt does. */
static int let_go_on(struct qemu *vm, enum qemu_remains *remains, struct jaunt_error *error)
{
	char status[RUNSTATE_MAX];

	vm->under_way = stream_waits(vm);
	return vm->under_way || vm->by_qemu ? go_on(vm, status, remains, error) : 0;
}

/* One that the dead process did not stop is left as it is: its operator may have. */
static int clear_up(const struct qemu_place *place, const struct commit *commit,
		    enum qemu_remains *remains, struct jaunt_error *error)
{
	struct qemu vm = {.place = place,
			  .pidfd = -1,
			  .stream_fd = -1,
			  .started = commit->started,
			  .begun = commit->begun,
			  .by_qemu = commit->by_qemu,
			  .stopped = commit->stopped};
	int result = qmp_open(&vm.qmp, place->monitor, GREETING_MS, error);

	if (result)
		return result;
	/* Another may listen there by now: whatever it does is nothing of ours. */
	if (qmp_process(vm.qmp) == commit->process) {
		untrack(&vm);
		if (vm.stopped)
			result = continue_it(&vm, remains, error);
		else if (vm.begun)
			result = let_go_on(&vm, remains, error);
		settings_clear(vm.qmp);
	}
	if (result == 0)
		commit_remove(place->record);
	qmp_close(vm.qmp);
	return result;
}

int qemu_recover(const struct qemu_place *place, enum qemu_remains *remains,
		 struct jaunt_error *error)
{
	struct commit commit;

	*remains = QEMU_NOTHING;
	if (!place->record || commit_read(place->record, &commit))
		return 0;
	if (!commit.started || commit_started(commit.process) != commit.started) {
		commit_remove(place->record); /* about a QEMU that is gone */
		return 0;
	}
	if (!commit.committed)
		return clear_up(place, &commit, remains, error);
	*remains = QEMU_COMMITTED;
	error_set(error, EBUSY, "committed",
		  "its guest was handed over to %s by a process that died: it must not run here. "
		  "If it runs there, end this QEMU (`quit`); if it does not, fence that host, then "
		  "continue it here (`cont`) and remove %s",
		  commit.peer, place->record);
	return 0;
}
