/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The guest stands still between STOP and RESUME, as QEMU's events say: STOP is told when its vCPUs
 * have stopped, RESUME just before they run. Their times are of the host's wall clock, and are
 * taken over to the monotonic one as they are heard.
 *
 * At the switch the source's QEMU begins to write its state while the guest runs, and stops it by
 * itself when little is left: see stream.c. It says the same of a guest that somebody else had
 * stopped just before: "finish-migrate", and one STOP. Only the state tells the two apart, once all
 * of it is written; so until then such a guest is not ours, and is left to QEMU, which continues
 * what it stopped if it is to give up, and nothing else. Of a guest that was stopped earlier QEMU
 * still says so, and is asked at each STOP.
 *
 * A QEMU that was stopped by us is "paused", one whose state was saved "postmigrate"; both go on
 * with `cont`. Its disks were let go of with the state; `cont` takes them again, which the other
 * side does not stand in the way of: with late-block-activate it takes them at its own `cont`. If
 * that one is refused, its QEMU is ended before the refusal is told to anybody, for some of the
 * disks may already be its own.
 *
 * The other side runs what it loaded only when it is told to: the state says that the guest was
 * stopped by its operator, or its QEMU was told so ahead, and QEMU keeps to that. One that runs all
 * the same is ended.
 */
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/qemu/config.h"
#include "vmm/qemu/runstate.h"
#include "vmm/qemu/stream.h"
#include "vmm/qemu/vm.h"

#define EVENT_MS  1000 /* an event comes before the answer to the command that caused it */
#define GONE_MS   2000 /* a process that is being killed closes its sockets before it is gone */
#define SETTLE_NS UINT64_C(5000000000)

/* --- Time --------------------------------------------------------------------------------------
 */

/* When an event was, by the monotonic clock. */
static uint64_t time_of(const json_t *event)
{
	const json_t *stamp = json_object_get(event, "timestamp");
	json_int_t seconds = json_integer_value(json_object_get(stamp, "seconds"));
	json_int_t micros = json_integer_value(json_object_get(stamp, "microseconds"));
	uint64_t now_ns = clock_ns();
	struct timespec wall;

	clock_gettime(CLOCK_REALTIME, &wall);
	int64_t ago_ns = ((int64_t)wall.tv_sec - seconds) * 1000000000 +
			 ((int64_t)wall.tv_nsec - micros * 1000);
	/* Nobody set the clock between the two. */
	if (seconds <= 0 || ago_ns < 0 || ago_ns > INT64_C(60) * 1000000000)
		return now_ns;
	return now_ns - (uint64_t)ago_ns;
}

static int hear(struct qemu *vm, const char *name, uint64_t *when_ns, struct jaunt_error *error)
{
	json_t *event;
	int result = qmp_wait(vm->qmp, name, EVENT_MS, &event, error);

	if (result)
		return result;
	*when_ns = time_of(event);
	json_decref(event);
	return 0;
}

/* When it stopped last. Others may have stopped and continued it before, while it was QEMU that was
 * to stop it: that is over. */
static int hear_stop(struct qemu *vm, uint64_t *when_ns, struct jaunt_error *error)
{
	json_t *event;
	int result = qmp_wait_last(vm->qmp, "STOP", "RESUME", EVENT_MS, &event, error);

	if (result)
		return result;
	*when_ns = time_of(event);
	json_decref(event);
	return 0;
}

/* --- Describing --------------------------------------------------------------------------------
 */

static int describe(void *context, struct jaunt_description *out, struct jaunt_error *error)
{
	struct qemu *vm = context;

	/* Anew for each migration: devices come and go. At the target create() has done it. */
	if (!vm->incoming && !vm->config_is_new) {
		facts_close(&vm->config);
		int result = config_collect(&vm->config, vm->qmp, QEMU_ANSWER_MS, error);
		if (result)
			return error_context(error, "qemu:%s", vm->place->monitor);
	}
	vm->config_is_new = false;
	*out = (struct jaunt_description){.name = vm->facts.name,
					  .properties = vm->config.all,
					  .property_count = vm->config.count,
					  .regions = vm->described,
					  .region_count = vm->regions.count};
	return 0;
}

/* --- Standing still ----------------------------------------------------------------------------
 */

/* Whether it has run since RESUME was forgotten: of each time QEMU tells, before anything else that
 * comes of it. */
static int has_run(struct qemu *vm, bool *ran, struct jaunt_error *error)
{
	int result = qmp_wait(vm->qmp, "RESUME", 0, NULL, error);

	*ran = result == 0;
	if (result != -ETIMEDOUT)
		return result;
	error_clear(error);
	return 0;
}

/* Nor for the next command, if we die. */
static void leave_stopped(struct qemu *vm)
{
	vm->by_qemu = false;
	qemu_take_back(vm, false);
}

/* It is not for us to continue. */
static int had_stopped(struct qemu *vm, const char *status, struct jaunt_error *error)
{
	leave_stopped(vm);
	return error_set(error, EINVAL, "qemu-state",
			 "the guest had stopped before, \"%s\" as QEMU says, and is not continued; "
			 "continue it, then move it again",
			 status);
}

/* Somebody has stopped it, and it was not QEMU for its state: as long as that is being written QEMU
 * can still be asked. */
static int look_at_stop(struct qemu *vm, struct jaunt_error *error)
{
	char status[RUNSTATE_MAX];

	if (vm->held || !qmp_stands(vm->qmp, "STOP", "RESUME"))
		return 0;
	int result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);
	if (result || strcmp(status, "running") == 0 || strcmp(status, "finish-migrate") == 0)
		return result;
	return had_stopped(vm, status, error);
}

static int save_begin(void *context, struct jaunt_error *error)
{
	struct qemu *vm = context;
	char status[RUNSTATE_MAX];

	if (!vm->ahead)
		return 0;
	int result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);
	if (result)
		return result;
	if (strcmp(status, "running") != 0)
		return had_stopped(vm, status, error);
	vm->begun = true;
	result = qemu_note(vm, false, false, "", error);
	return result ? result : stream_begin(vm, error);
}

static int save_ahead(void *context, void *buffer, size_t room, size_t *bytes,
		      struct jaunt_error *error)
{
	struct qemu *vm = context;

	*bytes = 0;
	int more = vm->ahead ? stream_ahead(vm, buffer, room, bytes, error) : 0;
	int result = vm->ahead && more >= 0 ? look_at_stop(vm, error) : 0;
	return result ? result : more;
}

static int stop(struct qemu *vm, struct jaunt_error *error)
{
	/* While it still runs. */
	int result = vm->incoming ? 0 : stream_offer(vm, error);

	if (result)
		return result;
	if ((result = qemu_note(vm, true, false, "", error)))
		return result;
	qmp_forget(vm->qmp, "STOP");
	/* Another from here on would be somebody else's, see committed(). */
	qmp_forget(vm->qmp, "RESUME");
	return qmp_execute(vm->qmp, "stop", NULL, QEMU_SLOW_MS, NULL, error);
}

/* Where QEMU has stopped it by itself, or is about to, it would also continue it by itself: that it
 * did is for save() to find out. */
static int await_stop(struct qemu *vm, struct jaunt_error *error)
{
	char status[RUNSTATE_MAX];

	if (vm->held)
		return 0;
	int result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);
	if (result || strcmp(status, "finish-migrate") == 0)
		return result;
	if (strcmp(status, "running") != 0)
		return had_stopped(vm, status, error);
	/* It runs: that is over. */
	qmp_forget_before(vm->qmp, "STOP");
	qmp_forget_before(vm->qmp, "RESUME");
	if ((result = qemu_note(vm, true, false, "", error)))
		return result;
	return qmp_execute(vm->qmp, "stop", NULL, QEMU_SLOW_MS, NULL, error);
}

static int pause(void *context, uint64_t *last_instruction_ns, struct jaunt_error *error)
{
	struct qemu *vm = context;
	char status[RUNSTATE_MAX];

	if (vm->unreported.code) { /* it may have given back pages that nobody told of */
		*error = vm->unreported;
		return -error->code;
	}
	int result = vm->under_way ? await_stop(vm, error) : stop(vm, error);
	if (result)
		return result;
	result = vm->stopped ? hear(vm, "STOP", last_instruction_ns, error)
			     : hear_stop(vm, last_instruction_ns, error);
	if (result) {
		/* None is told of a guest that had stopped before. */
		result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error);
		return result ? result : had_stopped(vm, status, error);
	}
	report_now(&vm->report);
	return 0;
}

/* QEMU tells no second STOP of a guest that stood still when it was to be stopped, but the state
 * says so. What QEMU has stopped is ours to continue once all of its state is written. */
static int find_stopped(struct qemu *vm, int saved, const void *state, size_t bytes,
			struct jaunt_error *error)
{
	char before[RUNSTATE_MAX];
	bool says = state && runstate_saved(state, bytes, before);

	if (says && strcmp(before, "running") == 0) {
		int noted = qemu_note(vm, true, false, "", saved ? NULL : error);
		vm->stopped = true;
		return saved ? saved : noted;
	}
	if (says && !saved)
		return had_stopped(vm, before, error);
	if (says || !saved)
		leave_stopped(vm);
	if (saved)
		return saved;
	return error_set(error, EINVAL, "qemu-state",
			 "QEMU's state does not say whether it was QEMU that stopped the guest (is "
			 "store-global-state off?), so it is not continued; continue it if nobody "
			 "else had stopped it");
}

static int save(void *context, void **state, size_t *bytes, struct jaunt_error *error)
{
	struct qemu *vm = context;
	int result = 0;

	*state = NULL;
	*bytes = 0;
	vm->by_qemu = !vm->stopped;
	if (vm->by_qemu)
		result = qemu_note(vm, false, false, "", error);
	if (result == 0)
		result = stream_save(vm, state, bytes, error);
	if (vm->by_qemu)
		result = find_stopped(vm, result, *state, *bytes, error);
	if (result) {
		free(*state);
		*state = NULL;
	}
	return result;
}

static int load_ahead(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	return stream_load_ahead(context, state, bytes, error);
}

static int load(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	struct qemu *vm = context;
	bool ran;
	int result = stream_load(vm, state, bytes, error);

	if (result == 0)
		result = has_run(vm, &ran, error);
	if (result)
		return result;
	if (ran && qemu_end(vm, error))
		return error_context(error, "QEMU runs the guest by itself");
	if (ran)
		return error_set(error, EIO, "qemu-state",
				 "QEMU ran the guest by itself as soon as it was loaded");
	return 0;
}

/* --- Running -----------------------------------------------------------------------------------
 */

/* 0 once it runs; -EINVAL or -ENOSYS: QEMU refused, and it does not run. */
static int go_on(struct qemu *vm, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	qmp_forget(vm->qmp, "RESUME");
	int result = qmp_execute(vm->qmp, "cont", NULL, QEMU_SLOW_MS, NULL, error);
	if (!qmp_is_negotiated(vm->qmp)) /* it was not sent */
		return result;
	/* An event that came is the proof, whatever followed. */
	if (hear(vm, "RESUME", first_entry_ns, NULL) == 0)
		return 0;
	*first_entry_ns = clock_ns();
	return result;
}

/* Whoever sends to the guest's address learns where it is now. Of no consequence for the guest, nor
 * if it fails: without network devices there is nobody to announce. Nobody waits for the answer. */
static void announce(struct qemu *vm)
{
	qmp_execute(vm->qmp, "announce-self",
		    json_pack("{s:i, s:i, s:i, s:i}", "initial", 50, "max", 550, "rounds", 5,
			      "step", 100),
		    0, NULL, NULL);
}

static int resume_here(struct qemu *vm, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	int result = go_on(vm, first_entry_ns, error);
	if (!qmp_is_negotiated(vm->qmp))
		return result;
	bool refused = result == -EINVAL || result == -ENOSYS;
	/* One that ended before it said RESUME has run nothing. */
	bool ended = result == -ECONNRESET && qemu_is_gone(vm, GONE_MS);

	/* Where it may have run, or may yet, it must not run elsewhere: it counts as running. */
	if (result && !ended && (!refused || qemu_end(vm, NULL)))
		result = 0;
	if (result)
		return result;
	vm->spent = false;
	error_clear(error);
	announce(vm);
	return 0;
}

/* Waits for the end of a migration of QEMU's that was cancelled: before, `cont` is refused. */
static int settle(struct qemu *vm, char status[RUNSTATE_MAX], struct jaunt_error *error)
{
	uint64_t until_ns = clock_ns() + SETTLE_NS;
	int result;

	while ((result = runstate_ask(vm->qmp, QEMU_ANSWER_MS, status, error)) == 0 &&
	       strcmp(status, "finish-migrate") == 0 && clock_ns() < until_ns)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return result;
}

/* Whether it is to be left as it is: it runs again by QEMU's doing, or somebody else has stopped
 * it. What QEMU stopped by itself is never "paused". */
static bool is_anothers(const struct qemu *vm, const char *status)
{
	return !vm->stopped || (vm->by_qemu && strcmp(status, "paused") == 0);
}

static void forget(struct qemu *vm)
{
	vm->begun = vm->by_qemu = false;
	qemu_take_back(vm, false);
}

/* After a failure. What we did not stop is left as it is. */
static int go_back(struct qemu *vm, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	char status[RUNSTATE_MAX];

	int result = vm->under_way ? stream_cancel(vm, error) : 0;
	*first_entry_ns = clock_ns();
	vm->held = false;
	if (result || !(vm->begun || vm->stopped))
		return result;
	result = settle(vm, status, error);
	if (result)
		return result;
	if (!vm->stopped && strcmp(status, "finish-migrate") == 0)
		return error_set(error, ETIMEDOUT, "qemu-silent",
				 "QEMU has stopped the guest for its state, and does not continue "
				 "it");
	/* Nobody else was seen to stop it, and one that does so unseen in the moment of a failure
	 * is rarer than the failure. */
	if (vm->by_qemu && !vm->stopped && strcmp(status, "postmigrate") == 0 &&
	    stream_is_written(vm))
		qemu_take_back(vm, true);
	if (is_anothers(vm, status)) {
		forget(vm);
		return 0;
	}
	/* First: if we die in between it is the next command that continues it. */
	if (vm->committed)
		qemu_take_back(vm, true);
	if (strcmp(status, "running") != 0) {
		bool ours = strcmp(status, "paused") == 0 || strcmp(status, "postmigrate") == 0 ||
			    strcmp(status, "finish-migrate") == 0;
		if (!ours)
			return error_set(error, EINVAL, "qemu-state",
					 "the guest cannot be continued: QEMU says \"%s\"", status);
		result = go_on(vm, first_entry_ns, error);
	}
	if (result == 0)
		forget(vm);
	return result;
}

static int resume(void *context, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	struct qemu *vm = context;

	return vm->incoming ? resume_here(vm, first_entry_ns, error)
			    : go_back(vm, first_entry_ns, error);
}

/* Its state was saved: if it runs again it is another guest by now, and must not run twice. */
static int committed(void *context, const char *peer, struct jaunt_error *error)
{
	struct qemu *vm = context;
	bool ran;
	int result = has_run(vm, &ran, error);

	if (result)
		return result;
	if (ran)
		return error_set(error, EBUSY, "qemu-state",
				 "somebody else continued the guest at its source (`cont` by "
				 "another monitor?), where it runs on; leave it alone while it is "
				 "moved");
	return qemu_note(vm, true, true, peer, error);
}

/* --- Its address space -------------------------------------------------------------------------
 */

/* The agent keeps them for the life of QEMU: one that came with the guest is taken again. */
static int userfaultfd(void *context, struct jaunt_error *error)
{
	struct qemu *vm = context;
	unsigned slot = vm->slots_used;
	int fd = attach_take(&vm->attach, slot, error);

	if (fd == -ENOENT)
		fd = attach_make(&vm->attach, slot, error);
	if (fd >= 0)
		vm->slots_used++;
	return fd;
}

static int process(void *context)
{
	const struct qemu *vm = context;
	return (int)qmp_process(vm->qmp);
}

/* A disk with direct I/O writes to the pages that it pinned when the request was made. */
static bool writes_late(void *context)
{
	const struct qemu *vm = context;
	char direct[8];

	for (size_t i = 0; i < vm->config.count; i++)
		if (facts_line(vm->config.all[i].value, "direct I/O", direct, sizeof(direct)) &&
		    strcmp(direct, "off") != 0)
			return true;
	return false;
}

static void report_to(void *context, struct jaunt_migration *migration)
{
	struct qemu *vm = context;

	report_stop(&vm->report);
	vm->unreported = (struct jaunt_error){.code = 0};
	if (migration)
		report_start(&vm->report, &vm->attach, &vm->regions, migration, &vm->unreported);
}

const struct jaunt_vm_ops qemu_ops = {
	.driver = "qemu",
	.describe = describe,
	.pause = pause,
	.save = save,
	.load = load,
	.resume = resume,
	.committed = committed,
	.userfaultfd = userfaultfd,
	.keep = qemu_keep,
	.kept = qemu_kept,
	.process = process,
	.writes_late = writes_late,
	.report_to = report_to,
	.save_begin = save_begin,
	.save_ahead = save_ahead,
	.load_ahead = load_ahead,
};
