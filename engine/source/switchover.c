/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the first of the VM's state to COMMIT: sends what can be saved of it while the VM runs,
 * pauses the VM, tells what is stale and sends the rest of the state, waits for LOADED, and records
 * COMMIT before it is submitted. Whatever goes wrong until then leaves the VM to be resumed here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/source/source.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define MS_NS    1000000u
#define SLICE_NS (5 * MS_NS) /* between two questions whether to look for stale pages */

static int send_freeze(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Freeze freeze = JAUNT__FREEZE__INIT;

	freeze.epoch = atomic_load(&source->shared.session.epoch);
	freeze.last = true;
	freeze.complete_first = source->complete_first;
	message.message_case = JAUNT__CONTROL__MESSAGE_FREEZE;
	message.freeze = &freeze;
	int result = source_freeze_exposed(source, &freeze, error);
	if (result == 0 && link_send(&source->link, &message) < 0)
		result = link_why(&source->link, error);
	source_freeze_forget(&freeze);
	return result;
}

static int send_chunk(struct source *source, const uint8_t *bytes, size_t count, bool last,
		      struct jaunt_error *error)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__State chunk = JAUNT__STATE__INIT;

	chunk.bytes.data = (uint8_t *)bytes;
	chunk.bytes.len = count;
	chunk.last = last;
	chunk.last_instruction_ns = source->last_instruction_ns;
	message.message_case = JAUNT__CONTROL__MESSAGE_STATE;
	message.state = &chunk;
	return link_send(&source->link, &message) < 0 ? link_why(&source->link, error) : 0;
}

static int send_state(struct source *source, const uint8_t *state, size_t bytes,
		      struct jaunt_error *error)
{
	int result = send_freeze(source, error);

	for (size_t at = 0; result == 0 && (at == 0 || at < bytes);) {
		size_t step = bytes - at < CONTROL_STATE_CHUNK ? bytes - at : CONTROL_STATE_CHUNK;
		result = send_chunk(source, state + at, step, at + step == bytes, error);
		at += step;
		if (!step)
			break;
	}
	return result;
}

/* Fault injection: stays in the phase, hearing all that may end it. */
int source_hold(struct source *source, enum inject_point point, struct jaunt_error *error)
{
	uint64_t until = inject_hold_until_ns(point);
	Jaunt__Control *message;

	if (!until)
		return 0;
	int result = source_next(source, until, &message, error);
	if (result == 1) {
		result = source_unexpected(message, error);
		control_free(message);
	} else if (error->code == ETIMEDOUT && clock_ns() >= until) {
		error_clear(error);
		result = 0;
	}
	return result;
}

/* Memory stands still: where it has holes can be told. */
void source_tell_holes(struct source *source)
{
	if (source->takes_holes && !source->holes_told && holes_start(&source->holes) < 0)
		trace_event(source->base.lane, "holes", "the search for holes did not start");
}

/* While the VM runs: whatever may end all this is heard. */
static int hear(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = source_look(source, clock_ns(), &message, error);

	if (result == 1) {
		result = source_unexpected(message, error);
		control_free(message);
	}
	return result;
}

/* What was sent before has been dealt with at the target when it answers: so little is on its way
 * when the VM is paused, however slow the link. That may take long, and the VM writes. */
static int await_taken(struct source *source, size_t *unanswered, struct jaunt_error *error)
{
	uint64_t deadline = source_deadline(source);
	Jaunt__Control *answer;
	int result;

	if (*unanswered < CONTROL_STATE_CHUNK)
		return hear(source, error);
	*unanswered = 0;
	source_send_ping(source);
	do {
		uint64_t now = clock_ns(), slice = now + SLICE_NS;
		if (now >= deadline) /* says so */
			result = source_next(source, deadline, &answer, error);
		else if ((result = source_tell_stale_beside(source, unanswered, error)) == 0)
			result = source_look(source, slice < deadline ? slice : deadline, &answer,
					     error);
	} while (result == 0);
	return result < 0 ? result : source_take_pong(answer, error);
}

static int send_ahead(struct source *source, uint8_t *buffer, struct jaunt_error *error)
{
	size_t bytes, all = 0, unanswered = 0;
	int more = 1, result = 0;

	while (result == 0 && more && all <= CONTROL_STATE_MAX - CONTROL_STATE_CHUNK) {
		more = source->ops->save_ahead(source->vm, buffer, CONTROL_STATE_CHUNK, &bytes,
					       error);
		if (more < 0)
			return error_context(error, "save the VM's state while it runs");
		if (bytes && (result = send_chunk(source, buffer, bytes, false, error)) == 0)
			inject_kill(INJECT_KILL_AHEAD);
		all += bytes;
		unanswered += bytes;
		if (result == 0 && more == 1)
			result = source_tell_stale_beside(source, &unanswered, error);
		if (result == 0 && more == 1)
			result = await_taken(source, &unanswered, error);
		if (result == 0 && bytes)
			result = source_hold(source, INJECT_HOLD_AHEAD, error);
	}
	trace_event(source->base.lane, "state-ahead", "%zu bytes; %" PRIu64 " stale pages", all,
		    source->stale.beside);
	if (atomic_load(&source->shared.tracking))
		trace_event(source->base.lane, "looks-ahead", "%u looks for stale pages",
			    source->stale.looks);
	return result;
}

/* What can be saved, sent and loaded while the VM runs is not waited for while it stands still. */
static int save_ahead(struct source *source, struct jaunt_error *error)
{
	if (!source->takes_ahead || !source->ops->save_begin)
		return 0;
	/* What is written meanwhile would have to be sent in a pause that the policy has reckoned
	 * without it. Where the rest comes later only that it is stale is to be told. */
	if (source->complete_first && atomic_load(&source->shared.tracking))
		return 0;
	uint8_t *buffer = malloc(CONTROL_STATE_CHUNK);
	if (!buffer)
		return error_set(error, ENOMEM, "no-memory", "no memory for the VM's state");
	source->to_resume = true; /* also if it fails half way */
	int result = source->ops->save_begin(source->vm, error);
	if (result < 0)
		error_context(error, "begin to save the VM's state");
	else
		result = send_ahead(source, buffer, error);
	free(buffer);
	return result;
}

static int pause_and_save(struct source *source, struct jaunt_error *error)
{
	void *state = NULL;
	size_t bytes = 0;

	source->pause_ns = clock_ns();
	pthread_mutex_lock(&source->base.mutex);
	eta_switch(&source->eta, source->pause_ns - source->base.started_ns);
	pthread_mutex_unlock(&source->base.mutex);
	source->to_resume = true; /* also if it fails half way */
	if (source->ops->pause(source->vm, &source->last_instruction_ns, error) < 0)
		return error_context(error, "pause the VM");
	source->stands_still = true;
	if (source->last_instruction_ns < source->pause_ns) /* it was stopped by its VMM before */
		source->pause_ns = source->last_instruction_ns;
	uint64_t before = clock_ns();
	if (source->ops->save(source->vm, &state, &bytes, error) < 0)
		return error_context(error, "save the VM's state");
	source->save_ns = clock_ns() - before;
	inject_kill(INJECT_KILL_SWITCHOVER);
	if (bytes > CONTROL_STATE_MAX) {
		free(state);
		return error_set(error, EMSGSIZE, "state-too-large",
				 "the VM's device state has %zu bytes; at most %u can be sent",
				 bytes, CONTROL_STATE_MAX);
	}
	int result = source_hold(source, INJECT_HOLD_SWITCHOVER, error);
	if (result == 0)
		result = source_tell_last_stale(source, 1, error);
	if (result == 0) {
		atomic_store(&source->shared.session.epoch, 1);
		source->state_sent = true;
		result = send_state(source, state, bytes, error);
	}
	free(state);
	if (result == 0 && source->complete_first)
		source_tell_holes(source);
	return result;
}

void source_note_figures(struct source *source, const Jaunt__Progress *progress)
{
	struct jaunt_status *status = &source->base.status;

	pthread_mutex_lock(&source->base.mutex);
	status->pages.missing = progress->missing;
	status->pages.zero = progress->zero;
	status->pages.hole = progress->hole;
	status->pages.copied = progress->copied;
	status->pages.kept = progress->kept;
	status->pages.pushed = progress->pushed;
	status->pages.demanded = progress->demanded;
	status->pages.duplicate = progress->duplicate;
	status->pages.discarded = progress->discarded;
	status->pages.read = progress->read;
	status->read_bytes = progress->read_bytes;
	/* With digests what rounds brought becomes present one by one, too. */
	eta_arrived(&source->eta, clock_ns() - source->base.started_ns,
		    progress->zero + progress->pushed + progress->demanded + progress->kept +
			    (source->shared.session.verify ? progress->copied : 0),
		    progress->missing);
	source->target_busy_ns = progress->busy_ns;
	status->verified_pages = progress->verified;
	status->mismatched_pages = progress->mismatched;
	pthread_mutex_unlock(&source->base.mutex);
}

/* The target completes the memory and says how far it is: it must get on. */
struct remainder {
	uint64_t missing, fell_ns;
};

static int watch_remainder(struct source *source, const Jaunt__Progress *progress,
			   struct remainder *remainder, struct jaunt_error *error)
{
	uint64_t now = clock_ns();

	source_note_figures(source, progress);
	if (progress->missing < remainder->missing || !progress->missing)
		*remainder = (struct remainder){progress->missing, now};
	if (now - remainder->fell_ns < (uint64_t)source->base.options.peer_timeout_ms * MS_NS)
		return 0;
	return error_set(error, ETIMEDOUT, "no-progress",
			 "the VM stands still for its last pages, and in %u ms the target has "
			 "received none of the %" PRIu64 " that are missing",
			 source->base.options.peer_timeout_ms, progress->missing);
}

/* A target that completes the memory first takes its time, and says how far it is. */
static int await_loaded(struct source *source, struct jaunt_error *error)
{
	struct remainder remainder = {UINT64_MAX, clock_ns()};

	for (;;) {
		Jaunt__Control *message;
		int result = source_next(source, source_deadline(source), &message, error);
		if (result < 0)
			return result;
		Jaunt__Control__MessageCase what = message->message_case;
		if (what == JAUNT__CONTROL__MESSAGE_LOADED)
			source->load_ns = message->loaded->load_ns;
		else if (what == JAUNT__CONTROL__MESSAGE_PROGRESS && source->complete_first)
			result = watch_remainder(source, message->progress, &remainder, error);
		else
			result = source_unexpected(message, error);
		control_free(message);
		if (result < 0 || what == JAUNT__CONTROL__MESSAGE_LOADED)
			return result < 0 ? result : 0;
	}
}

/* The driver's own record, where it keeps one. A cancel was too late a moment ago; if there is no
 * record, nothing is committed after all. */
static int record(struct source *source, struct jaunt_error *error)
{
	struct jaunt_migration *base = &source->base;

	if (!source->ops->committed ||
	    source->ops->committed(source->vm, base->options.peer, error) == 0)
		return 0;
	pthread_mutex_lock(&base->mutex);
	base->committed = false;
	base->status.vm_is_at = JAUNT_AT_SOURCE;
	pthread_mutex_unlock(&base->mutex);
	return error_context(error, "record COMMIT");
}

/* Either COMMIT is recorded now, or a cancel was first. */
static int commit(struct source *source, struct jaunt_error *error)
{
	struct jaunt_migration *base = &source->base;

	inject_kill(INJECT_KILL_BEFORE_COMMIT);
	pthread_mutex_lock(&base->mutex);
	bool cancelled = atomic_load(&base->cancel) || atomic_load(&base->abandon);
	bool lost = atomic_load(&source->shared.session.lost);
	if (!cancelled && !lost) {
		base->committed = true;
		base->status.vm_is_at = JAUNT_AT_UNKNOWN; /* until RESUMED is heard */
		if (source->complete_first)
			base->status.pages.missing = 0; /* before it said LOADED */
		base->status.downtime_floor_us =
			(double)(source->save_ns + source->load_ns + 2 * source->round_trip_ns) /
			1e3;
	}
	pthread_mutex_unlock(&base->mutex);
	if (cancelled)
		return error_set(error, ECANCELED, "cancelled", "cancelled");
	if (lost) { /* better here and whole than there and blocked */
		pthread_mutex_lock(&source->shared.session.mutex);
		*error = source->shared.session.why;
		pthread_mutex_unlock(&source->shared.session.mutex);
		return -error->code;
	}

	if (record(source, error) < 0)
		return -error->code;
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Commit body = JAUNT__COMMIT__INIT;
	message.message_case = JAUNT__CONTROL__MESSAGE_COMMIT;
	message.commit = &body;
	source->commit_ns = clock_ns();
	if (inject_fires(INJECT_LINK_CUT_COMMIT))
		channel_shutdown(source->link.channel);
	if (link_send(&source->link, &message) < 0 && !source->link.closed)
		channel_shutdown(source->link.channel); /* it is recorded: as if it got lost */
	ring_submit(source->ring);
	inject_kill(INJECT_KILL_AFTER_COMMIT);
	return 0;
}

int source_switch_over(struct source *source, struct jaunt_error *error)
{
	int result;

	if ((result = save_ahead(source, error)) < 0 ||
	    (result = source_hold(source, INJECT_HOLD_HELD, error)) < 0)
		return result;
	migration_phase(&source->base, JAUNT_PHASE_SWITCHOVER);
	if ((result = pause_and_save(source, error)) < 0 ||
	    (result = await_loaded(source, error)) < 0 ||
	    (result = source_hold(source, INJECT_HOLD_BEFORE_COMMIT, error)) < 0 ||
	    (result = commit(source, error)) < 0)
		return result;
	if (atomic_load(&source->shared.tracking))
		trace_event(source->base.lane, "last-stale", "%" PRIu64 " pages",
			    source->stale.last);
	return 0;
}
