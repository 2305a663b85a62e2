/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: the source's state machine
 *
 *   preparing → switchover → post-copy → completed
 *       │           │           ⇅
 *       └→ failed / cancelled  blocked
 *
 * Whatever goes wrong before COMMIT is recorded ends with the VM running here, as if nothing had
 * happened. COMMIT is recorded (under the mutex, where a cancel is, too) before it is submitted for
 * sending, so an error of the send is not a failure before COMMIT. From then on this side never
 * runs the VM by itself: only a FAILED from the target, which promises that no vCPU has run there,
 * or an operator who has fenced the other host, gives it back. It keeps every page until COMPLETE,
 * and looks for the target again when the link is lost: rejoin.c.
 */
#include "engine/source/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/source/bottleneck.h"
#include "engine/source/tamper.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define MS_NS    1000000u
#define LOOK_NS  250000000 /* how often to look whether the target is alive */
#define DEATH_MS 2000      /* how long a dying process may take to end */

int source_send_abort(struct source *source, const struct jaunt_error *why)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Abort abort_message = JAUNT__ABORT__INIT;

	abort_message.reason = (char *)why->reason;
	abort_message.text = (char *)why->text;
	message.message_case = JAUNT__CONTROL__MESSAGE_ABORT;
	message.abort = &abort_message;
	return link_send(&source->link, &message);
}

/* --- After COMMIT
 * ------------------------------------------------------------------------------------------ */

static void note_resumed(struct source *source, const Jaunt__Resumed *resumed)
{
	struct jaunt_migration *base = &source->base;
	uint64_t took;

	if (source->resumed_there)
		return; /* said again on a link that came back */
	source->resumed_there = true;
	if (source->same_clock)
		took = resumed->first_entry_ns - source->last_instruction_ns;
	else /* half a round trip for COMMIT to get there */
		took = source->commit_ns - source->last_instruction_ns + source->round_trip_ns / 2 +
		       resumed->commit_to_entry_ns;
	pthread_mutex_lock(&base->mutex);
	base->status.vm_is_at = JAUNT_AT_TARGET;
	base->status.downtime_us = (double)took / 1e3;
	base->status.switchover_us =
		(double)took / 1e3 + (double)(source->last_instruction_ns - source->pause_ns) / 1e3;
	pthread_mutex_unlock(&base->mutex);
	trace_event(base->lane, "resumed", "downtime %.1f us", (double)took / 1e3);
}

static void note_progress(struct source *source, const Jaunt__Progress *progress)
{
	struct jaunt_migration *base = &source->base;

	source_note_figures(source, progress);
	if (progress->blocked && progress->blocked[0]) {
		struct jaunt_error why = {0};
		error_set(&why, EAGAIN, progress->blocked,
			  "the target is blocked (%s), %" PRIu64 " pages missing; `jaunt status` "
			  "there says why",
			  progress->blocked, progress->missing);
		migration_blocked(base, &why);
	} else if (base->status.phase == JAUNT_PHASE_BLOCKED &&
		   !atomic_load(&source->shared.session.lost)) {
		migration_unblocked(base);
	}
}

static void send_released(struct source *source)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Released released = JAUNT__RELEASED__INIT;

	message.message_case = JAUNT__CONTROL__MESSAGE_RELEASED;
	message.released = &released;
	if (link_send(&source->link, &message) == 0)
		link_flush(&source->link, 1000 * (int64_t)MS_NS);
}

/* The VM goes on here. -1: it cannot, with `error`; 1: its process has ended, and it runs nowhere.
 */
static int run_here(struct source *source, struct jaunt_error *error)
{
	uint64_t first_entry_ns;
	struct jaunt_error failed = {0};

	/* Before it may run no READ may be under way. What is exposed, and tracked, is let go of
	 * behind that, by source_run(): it takes the longer the more memory there is. */
	source_stop(source);
	source_unthrottle(source);
	atomic_store(&source->shared.session.epoch, 0); /* nobody READs: it may give pages back */
	bool stuck =
		source->to_resume && source->ops->resume(source->vm, &first_entry_ns, &failed) < 0;
	if (process_check(&source->process, stuck ? DEATH_MS : 0, error) < 0)
		return 1;
	if (stuck) {
		error_context(&failed, "%s; and then the VM could not be resumed here",
			      error->text);
		*error = failed;
		return -1;
	}
	source->to_resume = source->stands_still = false;
	return 0;
}

/* If the VM cannot go on here nobody runs it: nothing that an exit code could say of it is true but
 * "look". */
static int end(struct source *source, int result, enum jaunt_outcome outcome,
	       struct jaunt_error *error)
{
	if (result < 0)
		return migration_end(&source->base, JAUNT_UNKNOWN, JAUNT_AT_UNKNOWN, error);
	return migration_end(&source->base, result ? JAUNT_FAILED : outcome, JAUNT_AT_SOURCE,
			     error);
}

static int end_here(struct source *source, enum jaunt_outcome outcome, struct jaunt_error *error)
{
	return end(source, run_here(source, error), outcome, error);
}

static void answer_ping(struct source *source, const Jaunt__Ping *ping)
{
	Jaunt__Control answer = JAUNT__CONTROL__INIT;
	Jaunt__Pong pong = JAUNT__PONG__INIT;

	pong.sent_ns = ping->sent_ns;
	answer.message_case = JAUNT__CONTROL__MESSAGE_PONG;
	answer.pong = &pong;
	link_send(&source->link, &answer);
}

void source_note_alive(struct source *source, bool alive)
{
	bool fenced = false;

	if (alive == source->target_alive)
		return;
	pthread_mutex_lock(&source->base.mutex);
	source->target_alive = alive;
	if (alive) /* nor was it */
		fenced = atomic_exchange(&source->base.resume_fenced, false);
	pthread_mutex_unlock(&source->base.mutex);
	if (fenced)
		trace_event(source->base.lane, "not-fenced", "the target lives");
}

/* A target that says nothing, though its host still acknowledges what we send: its process hangs.
 * It speaks ten times a second when it does not. */
static void watch_silence(struct source *source)
{
	uint64_t limit = (uint64_t)source->base.options.peer_timeout_ms * MS_NS;
	bool alive = source->linked && !source->link.closed &&
		     clock_ns() - source->link.heard_ns < limit;
	struct jaunt_error why = {0};

	if (!alive && source->target_alive && !source->link.closed) {
		error_set(
			&why, ETIMEDOUT, "peer-silent",
			"the target has said nothing for %u ms; it goes on by itself when it does",
			source->base.options.peer_timeout_ms);
		migration_blocked(&source->base, &why);
	}
	source_note_alive(source, alive);
}

/* Every page is there: what it was that kept them from being there earlier. */
static void note_bottleneck(struct source *source)
{
	struct jaunt_migration *base = &source->base;
	struct jaunt_status status;
	uint64_t busy_ns = source->past_busy_ns, moving_ns = clock_ns() - source->base.moving_ns;

	jaunt_migration_status(base, &status);
	for (unsigned i = 0; i < source->stream_count; i++)
		if (source->pushers[i]) /* COMPLETE may come before all of them are back */
			busy_ns += worker_busy_ns(&source->pushers[i]->worker);
	struct bottleneck_facts facts = {
		.moving_ns = moving_ns,
		.wire_bytes = status.wire_bytes,
		.sent_bytes = status.payload_bytes,
		.again_bytes = source->precopy.first_bytes
				       ? status.payload_bytes - source->precopy.first_bytes
				       : 0,
		.source_busy = (double)busy_ns / source->stream_count / (double)moving_ns,
		.target_busy = (double)source->target_busy_ns / (double)moving_ns,
		.limit = (double)atomic_load(&base->bandwidth),
		.throttled = source->precopy.throttled,
		.push = base->options.push,
	};
	pthread_mutex_lock(&base->mutex);
	base->status.again_bytes = facts.again_bytes;
	base->status.source_busy_percent = 100 * facts.source_busy;
	base->status.target_busy_percent = 100 * facts.target_busy;
	snprintf(base->status.limited_by, sizeof(base->status.limited_by), "%s",
		 bottleneck_name(&facts));
	pthread_mutex_unlock(&base->mutex);
}

int source_take(struct source *source, const Jaunt__Control *message, struct jaunt_error *error)
{
	switch (message->message_case) {
	case JAUNT__CONTROL__MESSAGE_RESUMED:
		note_resumed(source, message->resumed);
		break;
	case JAUNT__CONTROL__MESSAGE_PROGRESS:
		note_progress(source, message->progress);
		break;
	case JAUNT__CONTROL__MESSAGE_COMPLETE:
		if (!source->resumed_there || !message->complete->progress ||
		    message->complete->progress->missing) {
			/* This host has the only copy of what is missing: not on such a word. */
			session_lose(&source->shared.session, "protocol",
				     "the target says it is complete, and cannot be");
			channel_shutdown(source->link.channel);
			break;
		}
		note_progress(source, message->complete->progress);
		note_bottleneck(source);
		send_released(source);
		return migration_end(&source->base, JAUNT_DONE, JAUNT_AT_TARGET, NULL);
	case JAUNT__CONTROL__MESSAGE_FAILED:
		if (source->resumed_there)
			break; /* it runs there: a promise that cannot be true */
		source_unexpected(message, error);
		return end_here(source, JAUNT_FAILED, error);
	case JAUNT__CONTROL__MESSAGE_PONG:
		source->rejoin.push_told = -1;
		break;
	case JAUNT__CONTROL__MESSAGE_PING:
		answer_ping(source, message->ping);
		break;
	default:
		break; /* a cancel request came too late; a newer peer may say more */
	}
	return -1;
}

/* A wish for push on or off; one that comes while the link is away waits for it. */
static void tell_push(struct source *source)
{
	Jaunt__Control wish = JAUNT__CONTROL__INIT;
	Jaunt__SetPush body = JAUNT__SET_PUSH__INIT;
	Jaunt__Ping ping = JAUNT__PING__INIT;
	int push;

	if (!source->linked || source->link.closed || !source->takes_set_push)
		return;
	push = atomic_exchange(&source->base.set_push, -1);
	if (push < 0)
		push = source->rejoin.push_again;
	source->rejoin.push_again = -1;
	if (push < 0)
		return;
	body.push = push;
	wish.message_case = JAUNT__CONTROL__MESSAGE_SET_PUSH;
	wish.set_push = &body;
	link_send(&source->link, &wish);
	/* PONG says that it was heard. */
	ping.sent_ns = clock_ns();
	wish.message_case = JAUNT__CONTROL__MESSAGE_PING;
	wish.ping = &ping;
	link_send(&source->link, &wish);
	source->rejoin.push_told = push;
}

static int serve_until_complete(struct source *source, struct jaunt_error *error)
{
	source->rejoin.push_told = source->rejoin.push_again = -1;
	migration_phase(&source->base, JAUNT_PHASE_POSTCOPY);
	source_note_alive(source, true);
	source_precopy_end(source);
	if (!source->complete_first)
		source_tell_holes(source);
	source_expose_again(source);
	for (;;) {
		source_tell_exposed(source);
		Jaunt__Control *message = NULL;
		int result = 0, outcome = -1;
		uint64_t now = clock_ns(), until = source_wait_until(source, now + LOOK_NS);
		int64_t wait = until > now ? (int64_t)(until - now) : 0;
		if (source->linked)
			result = link_next(&source->link, wait, &message);
		else
			ring_wait(source->ring, wait);
		watch_silence(source);
		inject_kill(INJECT_KILL_POSTCOPY);
		if (result == 1) {
			outcome = source_take(source, message, error);
			control_free(message);
		}
		if (outcome < 0)
			outcome = source_keep_in_touch(source, error);
		if (outcome >= 0)
			return outcome;
		if (atomic_load(&source->discarded_late) && source->linked) {
			source_stop(source);
			channel_shutdown(source->link.channel);
		}
		tell_push(source);
		if (atomic_load(&source->base.abandon)) {
			error_set(error, ECANCELED, "abandoned",
				  "abandoned by the operator after COMMIT: what only this host had "
				  "of the VM's memory is lost to the target");
			return migration_end(
				&source->base,
				source->resumed_there ? JAUNT_INCOMPLETE : JAUNT_UNKNOWN,
				source->resumed_there ? JAUNT_AT_BLOCKED : JAUNT_AT_UNKNOWN, error);
		}
		if (atomic_exchange(&source->base.resume_fenced, false) && !source->target_alive) {
			error_set(
				error, ECONNRESET, "peer-fenced",
				"the target was lost; the operator has fenced it, and the VM runs "
				"here again, as it was at the switch");
			return end_here(source, JAUNT_FAILED, error);
		}
	}
}

/* --- The whole
 * ---------------------------------------------------------------------------------------------- */

/* The VM does not wait for the target to hear of it: a device that has just fallen silent, or a
 * target that takes no more messages, would have it stand still. */
static int give_up(struct source *source, struct jaunt_error *error)
{
	bool cancelled = error->code == ECANCELED;
	struct jaunt_error why = *error;
	bool sent = false;

	if (source->linked && link_room(&source->link)) {
		sent = source_send_abort(source, &why) == 0;
		ring_submit(source->ring);
	}
	int result = run_here(source, error);
	if (source->linked && !source->link.closed) {
		if (!sent)
			sent = source_send_abort(source, &why) == 0;
		link_flush(&source->link, 1000 * (int64_t)MS_NS);
	}
	source->abort_sent = sent;
	return end(source, result, cancelled ? JAUNT_CANCELLED : JAUNT_FAILED, error);
}

static int move(struct source *source, struct jaunt_error *error)
{
	migration_phase(&source->base, JAUNT_PHASE_PREPARING);
	if (source_connect(source, error) < 0)
		return give_up(source, error);
	if (source->base.options.dry_run) {
		struct jaunt_error dry = {.reason = "dry-run", .text = "it was a dry run"};
		source_send_abort(source, &dry);
		link_flush(&source->link, 1000 * (int64_t)MS_NS);
		return migration_end(&source->base, JAUNT_DONE, JAUNT_AT_SOURCE, NULL);
	}
	inject_kill(INJECT_KILL_PREPARE);
	tamper_prepare(&source->shared.memory);
	if (source_precopy(source, error) < 0)
		return give_up(source, error);
	if (source_hold(source, INJECT_HOLD_PREPARE, error) < 0)
		return give_up(source, error);
	if (source_switch_over(source, error) < 0)
		return give_up(source, error);
	return serve_until_complete(source, error);
}

/* Behind the end. A VM that goes on here may be slower than before: whoever asked is to know. */
static void untrack(struct source *source, struct jaunt_error *why)
{
	struct jaunt_migration *base = &source->base;
	struct jaunt_error failed = {0};

	if (source_untrack(source, &failed) == 0 || base->status.vm_is_at != JAUNT_AT_SOURCE)
		return;
	error_context(&failed, "%s; and then", why->text);
	memcpy(why->text, failed.text, sizeof(why->text));
	migration_reason(base, why);
}

static int source_run(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct source *source = (struct source *)migration;
	int result = ring_create(&source->ring, 256);

	if (result < 0) {
		error_set(error, -result, "io_uring",
			  "create an io_uring: %s; `jaunt doctor` says what this host lacks",
			  strerror(-result));
		return migration_end(migration, JAUNT_FAILED, JAUNT_AT_SOURCE, error);
	}
	session_set_owner(&source->shared.session, source->ring);
	process_watch(&source->process, source->ops, source->vm, source->ring);
	int outcome = move(source, error);
	process_unwatch(&source->process);
	source_disconnect(source);
	untrack(source, error);
	if (!migration->committed)
		source_tell_abort(source, error);
	if (source->linked)
		link_close(&source->link);
	session_set_owner(&source->shared.session, NULL);
	ring_destroy(source->ring);
	source->ring = NULL;
	tamper_forget();
	return outcome;
}

/* --- Figures
 * -------------------------------------------------------------------------------------------------
 */

static void tell_eta(const struct source *source, struct jaunt_status *status)
{
	const struct jaunt_migration *base = &source->base;

	if (!base->ended)
		status->eta_ms =
			(double)eta_left_ns(&source->eta, clock_ns() - base->started_ns) / MS_NS;
	else if (status->phase == JAUNT_PHASE_COMPLETED && base->committed)
		eta_errors(&source->eta, base->ended_ns - base->started_ns,
			   status->eta_error_percent);
}

static void source_status(struct jaunt_migration *migration, struct jaunt_status *status)
{
	struct source *source = (struct source *)migration;
	uint64_t memory = sizeof(*source) + trace_bytes(migration->trace) + LINK_BUFFER_BYTES;
	unsigned channels = 0;

	status->payload_bytes += source->past_payload_bytes;
	status->wire_bytes += source->past_wire_bytes;
	for (unsigned i = 0; i < SOURCE_SERVES_MAX && source->serves[i]; i++) {
		struct serve *serve = source->serves[i];
		status->payload_bytes += counter_get(&serve->payload_bytes);
		status->wire_bytes += counter_get(&serve->wire_bytes);
		channels++;
		memory +=
			sizeof(*serve) + serve->slot_bytes * serve->slot_count + SERVE_BUFFER_BYTES;
	}
	for (unsigned i = 0; i < SOURCE_STREAMS_MAX && source->pushers[i]; i++) {
		struct pusher *pusher = source->pushers[i];
		status->payload_bytes += counter_get(&pusher->payload_bytes);
		status->wire_bytes += counter_get(&pusher->wire_bytes);
		memory += sizeof(*pusher) + counter_get(&pusher->memory_bytes);
		channels++;
	}
	if (source->base.options.verify)
		memory += digester_bytes(&source->shared.memory, channels);
	/* What the target has READ went over the wire without this side's part in it. */
	status->payload_bytes += status->read_bytes;
	status->wire_bytes += status->read_bytes;
	tell_eta(source, status);
	source_exposed_status(source, status);
	status->engine_bytes = memory;
}

static void source_set_push(struct jaunt_migration *migration, bool push)
{
	(void)migration, (void)push; /* the wish travels to the target, which drives */
}

static void source_set_bandwidth(struct jaunt_migration *migration)
{
	struct source *source = (struct source *)migration;

	atomic_store(&source->shared.paced, source_stream_rate(source) != 0);
	for (unsigned i = 0; i < SOURCE_STREAMS_MAX && source->pushers[i]; i++)
		pusher_pace(source->pushers[i], source_stream_rate(source));
	atomic_store(&source->shared.paced, source_stream_rate(source) != 0);
}

static int source_check_resume(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct source *source = (struct source *)migration;

	if (source->target_alive)
		return error_set(
			error, EBUSY, "peer-alive",
			"the target is alive and runs the VM: two must never run it. Fence "
			"the target's host first, so that the link goes");
	return 0;
}

static void source_close(struct jaunt_migration *migration)
{
	struct source *source = (struct source *)migration;

	source_disconnect(source);
	if (source->ops->report_to)
		source->ops->report_to(source->vm, NULL);
	atomic_store(&source->shared.tracking, false);
	tracker_close(source->tracker);
	dirty_close(&source->shared.dirty);
	dirty_close(&source->stale.told);
	for (unsigned i = 0; i < SOURCE_SERVES_MAX; i++)
		free(source->serves[i]);
	for (unsigned i = 0; i < SOURCE_STREAMS_MAX; i++)
		free(source->pushers[i]);
	expose_free(&source->expose);
	if (source->memory_open)
		guestmem_close(&source->shared.memory);
	migration_fini(migration);
	free(source);
}

static const struct side_ops source_ops = {.run = source_run,
					   .status = source_status,
					   .close = source_close,
					   .set_push = source_set_push,
					   .set_bandwidth = source_set_bandwidth,
					   .check_resume = source_check_resume,
					   .changed = source_changed};

int jaunt_source_open(struct jaunt_migration **out, const struct jaunt_vm_ops *ops, void *vm,
		      const struct jaunt_options *options, struct jaunt_error *error)
{
	struct source *source = calloc(1, sizeof(*source));

	if (!source)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	int result =
		migration_init(&source->base, &source_ops, &source->shared.session, options, error);
	if (result < 0) {
		free(source);
		return result;
	}
	source->ops = ops;
	source->vm = vm;
	source->shared.trace = source->base.trace;
	inject_side(INJECT_SOURCE);
	result = address_parse(&source->peer, options->peer, error);
	if (result == 0)
		result = ops->describe(vm, &source->description, error);
	if (result == 0)
		result = guestmem_open(&source->shared.memory, &source->description,
				       ops->process && ops->process(vm), error);
	if (result == 0) {
		source->memory_open = true;
		source->base.page_bytes = guestmem_largest_page(&source->shared.memory);
		result = migration_check_bandwidth(options, options->bandwidth_bytes_per_s,
						   source->base.page_bytes, error);
	}
	if (result < 0) {
		source_close(&source->base);
		return result;
	}
	source->base.status.ram_bytes = source->shared.memory.bytes;
	source->base.status.pages.total = source->shared.memory.pages;
	source->base.status.pages.missing = source->shared.memory.pages;
	snprintf(source->base.status.vm, sizeof(source->base.status.vm), "%s",
		 source->description.name ? source->description.name : "");
	if (ops->report_to)
		ops->report_to(vm, &source->base);
	*out = &source->base;
	return 0;
}
