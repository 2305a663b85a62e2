/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From FREEZE to the first entry of a vCPU. From LOADED on this side is in doubt: it neither runs
 * nor discards the VM until it hears COMMIT or ABORT, if the link is lost then on the next one
 * (rejoin.c), or until an operator decides.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/target/target.h"
#include "engine/trace.h"
#include "transport/ring.h"

static int take_state(struct target *target, const Jaunt__State *state, struct jaunt_error *error)
{
	if (state->bytes.len > CONTROL_STATE_MAX - target->state_bytes)
		return error_set(error, EMSGSIZE, "state-too-large",
				 "the device state is larger than %u bytes", CONTROL_STATE_MAX);
	uint8_t *bigger = realloc(target->state, target->state_bytes + state->bytes.len + 1);
	if (!bigger)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	target->state = bigger;
	if (state->bytes.len)
		memcpy(bigger + target->state_bytes, state->bytes.data, state->bytes.len);
	target->state_bytes += state->bytes.len;
	target->last_instruction_ns = state->last_instruction_ns;
	return state->last;
}

/* The VM runs at the source: a part of its state that can be loaded without its memory. */
static int take_ahead(struct target *target, const Jaunt__State *state, struct jaunt_error *error)
{
	const struct jaunt_vm_ops *ops = target->factory->ops;

	if (state->last || target->channels_wanted)
		return error_set(error, EPROTO, "protocol",
				 "the source sent the VM's state before its memory stood still");
	inject_kill(INJECT_KILL_AHEAD);
	if (!ops->load_ahead)
		return take_state(target, state, error);
	if (state->bytes.len > CONTROL_STATE_MAX - target->ahead_bytes)
		return error_set(error, EMSGSIZE, "state-too-large",
				 "the device state is larger than %u bytes", CONTROL_STATE_MAX);
	target->ahead_bytes += state->bytes.len;
	if (ops->load_ahead(target->vm, state->bytes.data, state->bytes.len, error) < 0)
		return error_context(error, "load the VM's state");
	return 0;
}

static void target_grant(struct target *target)
{
	atomic_store(&target->shared.granting, true);
	for (unsigned i = 0; i < target->streams; i++)
		if (target->fills[i]) /* none until the source is back, if it was taken up */
			worker_wake(&target->fills[i]->worker);
}

/* What was placed stays as it is from here on. A stream in the middle of a round would mean that
 * the source calls pages stale before it has sent them. */
static int end_rounds(struct target *target, struct jaunt_error *error)
{
	place_end(&target->shared);
	for (unsigned i = 0; i < target->streams; i++)
		if (place_busy(&target->fills[i]->place))
			return error_set(error, EPROTO, "protocol",
					 "the source freezes in the middle of a round");
	return 0;
}

static int take_stale(struct target *target, const Jaunt__Freeze *freeze, struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;

	for (size_t i = 0; i < freeze->n_dirty; i++) {
		const Jaunt__Run *run = freeze->dirty[i];
		if (run->region >= shared->memory.region_count ||
		    run->first_page >= shared->memory.regions[run->region].pages ||
		    run->page_count > shared->memory.regions[run->region].pages - run->first_page)
			return error_set(error, EPROTO, "protocol",
					 "the source calls pages stale that the VM does not have");
		place_stale(shared, run->region, run->first_page, run->page_count);
	}
	return 0;
}

static int freeze(struct target *target, const Jaunt__Freeze *freeze, struct jaunt_error *error)
{
	bool ahead = !freeze->epoch; /* the VM still runs there */

	if (target->channels_wanted)
		return error_set(error, EPROTO, "protocol",
				 "the source switches over before all of its channels have come");
	if (atomic_load(&target->shared.session.epoch))
		return error_set(error, EPROTO, "protocol", "the source freezes a second time");
	if (ahead && freeze->last)
		return error_set(error, EPROTO, "protocol", "an epoch without a number begins");
	int result = end_rounds(target, error);
	if (result == 0)
		result = take_stale(target, freeze, error);
	if (result == 0)
		result = target_forget_exposed(target, freeze, error);
	if (result < 0 || !freeze->last)
		return result;
	migration_phase(&target->base, JAUNT_PHASE_SWITCHOVER);
	pthread_mutex_lock(&target->base.mutex);
	target->copied = target->shared.memory.pages - pagemap_missing(&target->shared.map);
	pthread_mutex_unlock(&target->base.mutex);
	atomic_store(&target->shared.session.epoch, freeze->epoch);
	target->complete_first = freeze->complete_first;
	atomic_store(&target->shared.complete_first, freeze->complete_first);
	if (freeze->complete_first)
		target_grant(target);
	for (unsigned i = 0; i < target->shards; i++) /* faults that were parked until now */
		worker_wake(&target->demands[i]->worker);
	return 0;
}

/* Fault injection: stays where it is, hearing all that may end it. */
static int hold(struct target *target, enum inject_point point, struct jaunt_error *error)
{
	uint64_t until = inject_hold_until_ns(point);
	Jaunt__Control *message;

	if (!until)
		return 0;
	int result = target_next(target, until, &message, error);
	if (result == 1) {
		result = target_unexpected(message, error);
		control_free(message);
	} else if (error->code == ETIMEDOUT && clock_ns() >= until) {
		error_clear(error);
		result = 0;
	}
	return result;
}

/* Everything up to a loaded VM. */
int target_receive_state(struct target *target, struct jaunt_error *error)
{
	/* How long the source takes until it pauses is its own affair. */
	for (bool loaded = false; !loaded;) {
		Jaunt__Control *message;
		int result = target_next(target, UINT64_MAX, &message, error);
		if (result < 0)
			return result;
		switch (message->message_case) {
		case JAUNT__CONTROL__MESSAGE_FREEZE:
			inject_kill(INJECT_KILL_SWITCHOVER);
			result = freeze(target, message->freeze, error);
			break;
		case JAUNT__CONTROL__MESSAGE_STATE:
			if (!atomic_load(&target->shared.session.epoch))
				result = take_ahead(target, message->state, error);
			else
				result = take_state(target, message->state, error);
			loaded = result == 1;
			break;
		default:
			result = target_unexpected(message, error);
		}
		control_free(message);
		if (result < 0)
			return result;
	}
	if (hold(target, INJECT_HOLD_SWITCHOVER, error) < 0)
		return -error->code;
	int result = target->complete_first ? target_await_remainder(target, error) : 0;
	if (result < 0)
		return result;
	uint64_t took_ns;
	result = load_run(&target->load, &took_ns, error);
	if (result < 0)
		return result;
	inject_kill(INJECT_KILL_BEFORE_COMMIT);

	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Loaded loaded = JAUNT__LOADED__INIT;
	loaded.load_ns = took_ns;
	message.message_case = JAUNT__CONTROL__MESSAGE_LOADED;
	message.loaded = &loaded;
	target->loaded = target->agreed = true;
	target_note(target, LEDGER_LOADED);
	if (inject_fires(INJECT_LINK_CUT_LOADED))
		channel_shutdown(target->link.channel);
	link_send(&target->link, &message);
	ring_submit(target->ring);
	/* While COMMIT is on its way. */
	if (target->copied && !target->complete_first &&
	    sweep_open(&target->sweep, &target->shared) == 0)
		sweep_release(&target->sweep, SWEEP_CALLS);
	return 0;
}

static void say_in_doubt(struct target *target)
{
	struct jaunt_error why = target->lost;

	error_set(&why, ECONNRESET, "in-doubt",
		  "the link was lost before COMMIT or ABORT was heard: the VM may run at the "
		  "source. The source says so itself when it reaches this host again. Fence it "
		  "before running the VM here");
	migration_reason(&target->base, &why);
	migration_place(&target->base, JAUNT_AT_UNKNOWN);
	migration_phase(&target->base, JAUNT_PHASE_IN_DOUBT);
}

enum target_verdict target_await_commit(struct target *target, struct jaunt_error *error)
{
	bool asked = false;

	for (;;) {
		Jaunt__Control *message;
		int result = target_turn(target, UINT64_MAX, &message);
		if (result < 0 && target->linked)
			target_lose_link(target);
		/* Or it was dropped for a new one, of which nothing came. */
		if (!target->linked && target->base.status.phase != JAUNT_PHASE_IN_DOUBT)
			say_in_doubt(target);
		if (result == 1) {
			Jaunt__Control__MessageCase what = message->message_case;
			if (what != JAUNT__CONTROL__MESSAGE_COMMIT)
				target_unexpected(message, error);
			control_free(message);
			if (what == JAUNT__CONTROL__MESSAGE_COMMIT)
				return TARGET_COMMIT;
			if (what == JAUNT__CONTROL__MESSAGE_ABORT)
				return TARGET_ABORT;
			/* Nonsense ends the link, not the doubt. */
			channel_shutdown(target->link.channel);
		}
		if (atomic_load(&target->base.abandon)) {
			error_set(error, ECANCELED, "abandoned",
				  "abandoned here by the operator while it was in doubt whose the "
				  "VM is");
			return TARGET_ABANDONED;
		}
		/* A source that has shown itself since is not fenced. */
		if (atomic_exchange(&target->base.resume_fenced, false) && !target->linked)
			return TARGET_FENCED;
		if (atomic_load(&target->base.cancel) && !asked && target_in_touch(target)) {
			asked = true; /* only a request: the source decides */
			target_say(target, JAUNT__CONTROL__MESSAGE_CANCEL_REQUEST, NULL, NULL);
		}
	}
}

int target_resume(struct target *target, uint64_t commit_ns, struct jaunt_error *error)
{
	struct jaunt_migration *base = &target->base;
	uint64_t first_entry_ns = 0;

	pthread_mutex_lock(&base->mutex);
	base->committed = true;
	pthread_mutex_unlock(&base->mutex);
	target_note(target, LEDGER_COMMITTED);
	inject_kill(INJECT_KILL_AFTER_COMMIT);
	int result = target->factory->ops->resume(target->vm, &first_entry_ns, error);
	if (result < 0) {
		error_context(error, "resume the VM");
		return result;
	}
	target->ran = true;
	target->first_entry_ns = first_entry_ns;
	target->commit_to_entry_ns = first_entry_ns - commit_ns;
	target_note(target, LEDGER_RAN);
	migration_reason(base, NULL); /* it may have been in doubt */
	pthread_mutex_lock(&base->mutex);
	base->status.vm_is_at = JAUNT_AT_TARGET;
	base->status.switchover_us = (double)(first_entry_ns - commit_ns) / 1e3;
	if (target->same_clock)
		base->status.downtime_us =
			(double)(first_entry_ns - target->last_instruction_ns) / 1e3;
	pthread_mutex_unlock(&base->mutex);

	if (target->agreed) {
		target_say_resumed(target);
		ring_submit(target->ring);
	}
	if (!target->complete_first)
		target_grant(target);
	if (sweep_start(&target->sweep) < 0)
		trace_event(base->lane, "sweep", "the thread did not start");
	migration_phase(base, JAUNT_PHASE_POSTCOPY);
	return 0;
}
