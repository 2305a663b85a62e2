/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: the target's state machine
 *
 *   waiting → preparing → switchover → post-copy → completed
 *                │            │            ⇅
 *                │         in doubt     blocked
 *                └→ failed / cancelled, before COMMIT
 *
 * One thread works through the phases in order; in between it waits for the next control message, a
 * visitor at the gate, a wake-up by another thread, or a deadline. Until a VM is prepared and the
 * source told so, whatever goes wrong with a peer ends only that peer's attempt, and the target
 * goes on waiting.
 *
 * From LOADED on this side is in doubt: it neither runs nor discards the VM until it hears COMMIT
 * or ABORT. After COMMIT a lost link blocks the guest on what is missing; page map, userfaultfds
 * and session stay as they are. In both the source may come back: rejoin.c.
 */
#include "engine/target/target.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define MS_NS 1000000u

/* Before COMMIT: the VM runs at the source, or will. */
static int give_up(struct target *target, struct jaunt_error *error)
{
	bool cancelled = error->code == ECANCELED;

	if (target->linked && !target->link.closed) {
		target_say(target, JAUNT__CONTROL__MESSAGE_FAILED, error->reason, error->text);
		link_flush(&target->link, 1000 * (int64_t)MS_NS);
	}
	target_unprepare(target);
	return migration_end(&target->base, cancelled ? JAUNT_CANCELLED : JAUNT_FAILED,
			     JAUNT_AT_SOURCE, error);
}

/* After COMMIT, no vCPU having run: the source runs the VM again if it hears so, which shows in its
 * ending the link in order; also over a link that comes back meanwhile, on which it says COMMIT
 * again. Otherwise nobody can say whose the VM is. */
static int hand_back(struct target *target, struct jaunt_error *error)
{
	uint64_t until = target_deadline(target);
	bool said = target->linked && !target->link.closed, heard = false;

	/* The process before this one may have run it, so the source must not. */
	if (target->may_have_run) {
		target->ran = true;
		return migration_end(&target->base, JAUNT_INCOMPLETE, JAUNT_AT_BLOCKED, error);
	}
	uint32_t said_on = target->link_epoch;

	if (said)
		target_say(target, JAUNT__CONTROL__MESSAGE_FAILED, error->reason, error->text);
	while (!heard && clock_ns() < until && (target->linked || target->source_rejoins) &&
	       !atomic_load(&target->base.abandon)) {
		Jaunt__Control *message;
		int result = target_turn(target, until, &message);
		if (target->link_epoch != said_on) { /* another link, on which nothing was said */
			said = false;
			said_on = target->link_epoch;
		}
		if (result < 0 && target->linked) {
			heard = said && target->link.closed && !target->link.close_error;
			target_lose_link(target);
			said = false;
		}
		if (result != 1)
			continue;
		if (message->message_case == JAUNT__CONTROL__MESSAGE_COMMIT) {
			target_say(target, JAUNT__CONTROL__MESSAGE_FAILED, error->reason,
				   error->text);
			said = true;
		}
		control_free(message);
	}
	target_unprepare(target);
	return migration_end(&target->base, heard ? JAUNT_FAILED : JAUNT_UNKNOWN,
			     heard ? JAUNT_AT_SOURCE : JAUNT_AT_UNKNOWN, error);
}

static int arrive(struct target *target, struct jaunt_error *error)
{
	if (target_await_source(target, error) < 0)
		return -error->code;
	inject_kill(INJECT_KILL_PREPARE);
	return target_receive_state(target, error);
}

static int move(struct target *target, struct jaunt_error *error)
{
	if (target->taken_up)
		target_go_on(target);
	else if (arrive(target, error) < 0)
		return give_up(target, error);
	if (target->ran)
		return target_serve_postcopy(target, error);
	switch (target_await_commit(target, error)) {
	case TARGET_ABORT:
		return give_up(target, error);
	case TARGET_ABANDONED:
		target_unprepare(target);
		return migration_end(&target->base, JAUNT_UNKNOWN, JAUNT_AT_UNKNOWN, error);
	case TARGET_FENCED:
	case TARGET_COMMIT:
		error_clear(error);
		break;
	}
	if (target->link_epoch && target->linked)
		target_rejoin_attach(target);
	if (target_resume(target, clock_ns(), error) < 0)
		return hand_back(target, error);
	return target_serve_postcopy(target, error);
}

static int target_run(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct target *target = (struct target *)migration;
	int result = ring_create(&target->ring, 256);

	if (result < 0)
		error_set(error, -result, "io_uring",
			  "create an io_uring: %s; `jaunt doctor` says what this host lacks",
			  strerror(-result));
	session_set_owner(&target->shared.session, target->ring);
	if (result == 0 &&
	    (result = gate_open(&target->gate, target->listener, target->ring,
				migration->options.connect_timeout_ms, target_admits, target)) < 0)
		error_set(error, -result, "listen", "accept connections: %s", strerror(-result));
	int outcome;
	if (result == 0) {
		outcome = move(target, error);
	} else if (target->taken_up) { /* it stays as it was found */
		target->ran = true;
		outcome = migration_end(migration, JAUNT_INCOMPLETE, JAUNT_AT_BLOCKED, error);
	} else {
		outcome = migration_end(migration, JAUNT_FAILED, JAUNT_AT_SOURCE, error);
	}
	target_drop_link(target);
	gate_close(&target->gate);
	session_set_owner(&target->shared.session, NULL);
	process_unwatch(&target->process);
	if (target->ring)
		ring_destroy(target->ring);
	target->ring = NULL;
	listener_free(target->listener);
	target->listener = NULL;
	return outcome;
}

static void target_set_push(struct jaunt_migration *migration, bool push)
{
	struct target *target = (struct target *)migration;

	atomic_store(&target->shared.push, push);
	target_note_push(target);
	trace_event(migration->lane, "push", "%s", push ? "on" : "off");
	for (unsigned i = 0; i < TARGET_STREAMS_MAX; i++)
		if (target->fills[i])
			worker_wake(&target->fills[i]->worker);
}

static void target_close(struct jaunt_migration *migration)
{
	struct target *target = (struct target *)migration;

	target_unprepare(target);
	if (target->listener)
		listener_free(target->listener);
	migration_fini(migration);
	free(target);
}

static int target_check_resume(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct target *target = (struct target *)migration;

	uint64_t missing = target->prepared ? pagemap_missing(&target->shared.map) : 0;

	if (migration->committed)
		return error_set(error, EINVAL, "runs-here",
				 "the VM was already resumed here; it waits for %" PRIu64
				 " pages that only the source has",
				 missing);
	if (missing)
		return error_set(error, EINVAL, "memory-missing",
				 "%" PRIu64 " pages of the VM's memory are only at the source: it "
				 "cannot run here. Resume it there (after fencing this host), or "
				 "give this copy up with `jaunt cancel VM --abandon`",
				 missing);
	return 0;
}

static const struct side_ops target_ops = {.run = target_run,
					   .status = target_status,
					   .close = target_close,
					   .set_push = target_set_push,
					   .check_resume = target_check_resume};

int target_new(struct target **out, const struct jaunt_vm_factory *factory, void *context,
	       const struct jaunt_options *options, struct jaunt_error *error)
{
	struct target *target = calloc(1, sizeof(*target));

	if (!target)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	int result =
		migration_init(&target->base, &target_ops, &target->shared.session, options, error);
	if (result < 0) {
		free(target);
		return result;
	}
	target->factory = factory;
	target->context = context;
	target->ledger = LEDGER_NONE;
	pthread_mutex_init(&target->shared.prefetch_mutex, NULL);
	pthread_mutex_init(&target->shared.suspects_mutex, NULL);
	inject_side(INJECT_TARGET);
	*out = target;
	return 0;
}

int target_listen(struct target *target, struct jaunt_error *error)
{
	struct address address;
	int result = migration_check_address(&target->base.options, &address, true, error);

	if (result == 0)
		result = transport_listen(&target->listener, &address, error);
	if (result == 0)
		target->port = listener_port(target->listener);
	return result;
}

int jaunt_target_open(struct jaunt_migration **out, const struct jaunt_vm_factory *factory,
		      void *context, const struct jaunt_options *options, struct jaunt_error *error)
{
	struct target *target;
	int result = target_new(&target, factory, context, options, error);

	if (result < 0)
		return result;
	result = target_listen(target, error);
	if (result < 0) {
		target_close(&target->base);
		return result;
	}
	target->base.status.phase = JAUNT_PHASE_WAITING;
	*out = &target->base;
	return 0;
}

unsigned jaunt_target_port(const struct jaunt_migration *migration)
{
	return ((const struct target *)migration)->port;
}

void *jaunt_migration_vm(struct jaunt_migration *migration)
{
	if (migration->side != &target_ops)
		return NULL;
	pthread_mutex_lock(&migration->mutex);
	void *vm = ((struct target *)migration)->vm;
	pthread_mutex_unlock(&migration->mutex);
	return vm;
}

bool jaunt_migration_was_demanded(const struct jaunt_migration *migration, size_t region,
				  uint64_t page)
{
	struct target *target = (struct target *)migration; /* only its mutex changes */
	bool demanded = false;

	if (migration->side != &target_ops)
		return false;
	pthread_mutex_lock(&target->base.mutex);
	if (target->prepared && region < target->shared.memory.region_count &&
	    page < target->shared.memory.regions[region].pages && target->shared.demanded[region])
		demanded = atomic_load_explicit(&target->shared.demanded[region][page / 64],
						memory_order_relaxed) >>
				   (page % 64) &
			   1;
	pthread_mutex_unlock(&target->base.mutex);
	return demanded;
}
