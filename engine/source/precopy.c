/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 *   watch → decide → track → [ round → collect → decide ]* → stale runs → pause, save → collect →
 * FREEZE
 *
 * A page that the guest writes after it was read for a round is reported by a later collect, the
 * last of which runs when the vCPUs stand still and their state is saved. So what was sent and is
 * not dirty then is what the page holds. Dirty pages are told as stale runs: stale.c.
 */
#include "engine/source/precopy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/source/chunks.h"
#include "engine/source/source.h"
#include "engine/trace.h"

#define MS_NS        1000000u
#define LOOK_NS      (50 * (uint64_t)MS_NS) /* how often the policy is asked within a round */
#define FLOOR_NS     (20 * (uint64_t)MS_NS) /* of a round that does not bring the end nearer */
#define PROBE_NS     (10 * (uint64_t)MS_NS) /* how long the guest's writes are looked at first */
#define WATCH_NS     (5 * (uint64_t)MS_NS)  /* and when the first look at a sample is */
#define WATCH_LEAST  (10 * (uint64_t)MS_NS) /* two looks */
#define WATCH_MOST   (160 * (uint64_t)MS_NS)
#define SAMPLE_EVERY 16u    /* pages, of which one is looked at, or so many more that they are */
#define SAMPLE_MOST  65536u /* no more than these in all */
#define MOST_NS      1e18   /* an end that is further away is none */

/* --- What has been sent, what is left ----------------------------------------------------------
 */

static uint64_t sent_bytes(const struct source *source)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < source->stream_count; i++)
		sum += counter_get(&source->pushers[i]->payload_bytes);
	return sum;
}

static uint64_t dirty_now(const struct source *source)
{
	return source->precopy.can_track
		       ? dirty_bytes(&source->shared.dirty, &source->shared.memory)
		       : 0;
}

/* Of the first round: memory that nobody has looked at. */
static uint64_t unsearched_bytes(const struct source *source)
{
	const struct guestmem *memory = &source->shared.memory;
	uint64_t sum = 0;

	for (size_t i = 0; i < memory->region_count; i++)
		sum += (memory->regions[i].pages -
			atomic_load(&source->precopy.rounds.searched[i])) *
		       memory->regions[i].page_bytes;
	return sum;
}

void source_wake_streams(void *user)
{
	struct source *source = user;

	for (unsigned i = 0; i < source->stream_count; i++)
		worker_wake(&source->pushers[i]->worker);
}

/* --- Asking the policy -------------------------------------------------------------------------
 */

static void set_throttle(struct source *source, unsigned percent)
{
	struct jaunt_error error = {0};

	if (percent == source->precopy.throttle || !source->ops->throttle)
		return;
	if (source->ops->throttle(source->vm, percent, &error) < 0)
		trace_event(source->base.lane, "throttle", "%s", error.text);
	else
		trace_event(source->base.lane, "throttle", "%u %%", percent);
	source->precopy.throttle = percent;
	source->precopy.throttled |= percent != 0;
}

static void tell_status(struct source *source)
{
	const struct precopy *precopy = &source->precopy;
	const struct policy_input *input = &precopy->input;
	const struct policy_prediction *ways = precopy->decision.ways;
	const struct policy_prediction *now = ways[POLICY_WAY_FINISH].allowed
						      ? &ways[POLICY_WAY_FINISH]
						      : &ways[POLICY_WAY_SWITCH];
	struct jaunt_status *status = &source->base.status;
	enum policy_way way = precopy->decision.way;
	bool in_sight = way < POLICY_WAYS && ways[way].allowed && input->bandwidth > 0 &&
			ways[way].total_ns < MOST_NS;

	pthread_mutex_lock(&source->base.mutex);
	eta_expect(&source->eta, input->elapsed_ns, in_sight ? (uint64_t)ways[way].total_ns : 0);
	status->round = input->round;
	status->remaining_bytes = input->left_bytes + input->dirty_bytes;
	status->dirty_bytes_per_s = input->dirty_rate;
	status->bandwidth_bytes_per_s = input->bandwidth;
	status->predicted_downtime_ms = now->allowed ? now->downtime_ns / 1e6 : 0;
	snprintf(status->decision, sizeof(status->decision), "%s: %s",
		 policy_action_name(precopy->decision.action), precopy->decision.reason);
	pthread_mutex_unlock(&source->base.mutex);
}

static void observe(struct source *source, bool round_ended)
{
	struct precopy *precopy = &source->precopy;
	struct policy_input *input = &precopy->input;
	struct jaunt_migration *base = &source->base;
	uint64_t begun = atomic_load(&precopy->rounds.begun);
	bool counts = begun && !round_ended;

	input->elapsed_ns = clock_ns() - base->started_ns;
	input->limits.downtime_ns = (uint64_t)atomic_load(&base->downtime_limit_ms) * MS_NS;
	input->limits.bandwidth = (double)atomic_load(&base->bandwidth);
	input->round = begun ? (unsigned)(begun - 1) : 0;
	input->round_ended = round_ended;
	input->switch_requested = atomic_load(&base->switch_wanted);
	input->throttle = precopy->throttle;
	input->left_bytes = !begun   ? input->data_bytes
			    : counts ? dirty_now(source) + unsearched_bytes(source)
				     : 0;
	input->dirty_bytes = round_ended ? dirty_now(source) : 0;
	if (begun && !unsearched_bytes(source))
		input->data_bytes = input->ram_bytes - atomic_load(&precopy->rounds.hole_bytes);
	if (input->data_bytes < input->dirty_bytes) /* it fills what were holes */
		input->data_bytes = input->dirty_bytes;
	input->since_collect_ns =
		counts && precopy->can_track ? clock_ns() - precopy->collect_ns : 0;
	estimate_tell(&precopy->estimate, input);
}

static void decide(struct source *source, bool round_ended)
{
	struct precopy *precopy = &source->precopy;

	observe(source, round_ended);
	decisions_make(&precopy->decisions, &source->base, &precopy->input, &precopy->decision);
	tell_status(source);
}

/* --- Rounds ------------------------------------------------------------------------------------
 */

static int watch_silence(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	uint64_t sent = 0, now = clock_ns();

	for (unsigned i = 0; i < source->stream_count; i++)
		sent += counter_get(&source->pushers[i]->wire_bytes);
	if (sent != precopy->progress_bytes) {
		precopy->progress_bytes = sent;
		precopy->progress_ns = now;
	}
	if (now - precopy->progress_ns < (uint64_t)source->base.options.peer_timeout_ms * MS_NS)
		return 0;
	return error_set(error, ETIMEDOUT, "peer-silent",
			 "the target has taken and acknowledged nothing for %u ms",
			 source->base.options.peer_timeout_ms);
}

/* Ends the round where it stands. The search for holes speaks of memory as it was, so it ends, too,
 * and begins anew when memory stands still. */
static void cut_round(struct source *source)
{
	holes_stop(&source->holes);
	holes_reset(&source->holes);
	rounds_cut(&source->precopy.rounds);
	source_wake_streams(source);
}

static int look_until(struct source *source, uint64_t until, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = 0;

	while (result == 0 && clock_ns() < until && !atomic_load(&source->base.switch_wanted)) {
		result = source_look(source, until, &message, error);
		if (result == 1) {
			result = source_unexpected(message, error);
			control_free(message);
		}
	}
	return result;
}

static int run_round(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	uint64_t look_ns = clock_ns() + LOOK_NS;
	bool cut = false;

	precopy->round_ns = precopy->progress_ns = clock_ns();
	precopy->round_bytes = sent_bytes(source);
	rounds_begin(&precopy->rounds);
	if (atomic_load(&precopy->rounds.begun) == 1 &&
	    (!source->takes_holes || holes_start(&source->holes) < 0))
		rounds_search_over(&precopy->rounds);
	source_wake_streams(source);
	while (!rounds_over(&precopy->rounds)) {
		Jaunt__Control *message;
		int result = source_look(source, look_ns, &message, error);
		if (result == 1) {
			result = source_unexpected(message, error);
			control_free(message);
		}
		if (result == 0)
			result = watch_silence(source, error);
		if (result < 0)
			return result;
		inject_kill(INJECT_KILL_ROUND);
		if (clock_ns() < look_ns && (cut || !atomic_load(&source->base.switch_wanted)))
			continue;
		look_ns = clock_ns() + LOOK_NS;
		if (cut)
			continue;
		estimate_sent(&precopy->estimate, clock_ns(), sent_bytes(source));
		decide(source, false);
		set_throttle(source, precopy->decision.throttle);
		if (precopy->decision.action != POLICY_CONTINUE) {
			cut = true;
			cut_round(source);
		}
	}
	estimate_idle(&precopy->estimate, clock_ns(), sent_bytes(source));
	return cut;
}

static void note_round(struct source *source)
{
	struct precopy *precopy = &source->precopy;
	struct policy_input *input = &precopy->input;
	uint64_t now = clock_ns();
	struct policy_round round = {.duration_ns = now - precopy->round_ns,
				     .sent_bytes = sent_bytes(source) - precopy->round_bytes,
				     .dirtied_bytes = dirty_now(source)};

	if (input->round_count == POLICY_ROUNDS_KEPT)
		memmove(&input->rounds[0], &input->rounds[1],
			--input->round_count * sizeof(input->rounds[0]));
	input->rounds[input->round_count++] = round;
	estimate_collected(&precopy->estimate, now - precopy->collect_ns, round.dirtied_bytes,
			   precopy->throttle);
	precopy->collect_ns = now;
}

/* Rounds that are short and leave as much as they sent would follow each other without a pause. */
static int rest(struct source *source, struct jaunt_error *error)
{
	const struct precopy *precopy = &source->precopy;
	const struct policy_input *input = &precopy->input;
	const struct policy_round *last = &input->rounds[input->round_count - 1];

	if (last->dirtied_bytes < last->sent_bytes)
		return 0;
	return look_until(source, precopy->round_ns + FLOOR_NS, error);
}

/* 0 with a decision that is not to continue. */
static int run_rounds(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;

	while (precopy->decision.action == POLICY_CONTINUE) {
		int cut = run_round(source, error);
		if (cut < 0)
			return cut;
		if (atomic_load(&precopy->rounds.begun) == 1) {
			/* With digests they are told again, in the epoch. */
			precopy->first_bytes = cut ? 0 : sent_bytes(source);
			source->holes_told = !cut && !source->shared.session.verify;
			holes_stop(&source->holes);
			holes_reset(&source->holes);
		}
		int result = source_collect(source, error);
		if (result < 0)
			return result;
		note_round(source);
		if (!cut)
			decide(source, true);
		set_throttle(source, precopy->decision.throttle);
		if (precopy->decision.action == POLICY_CONTINUE &&
		    (result = rest(source, error)) < 0)
			return result;
	}
	return 0;
}

/* --- Before the first round --------------------------------------------------------------------
 */

static int begin_tracking(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	int result = source_track(source, precopy->tracker, error);

	precopy->collect_ns = clock_ns();
	precopy->can_track = precopy->input.can_track = result == 0;
	if (result < 0 && (result != -ENOTSUP || precopy->input.mode != POLICY_AUTO ||
			   source->base.options.tracker))
		return error_context(error, "mode %s", source->base.options.mode);
	error_clear(error);
	return 0;
}

/* So many pages cost the guest a first write. */
static void tell_watched(const struct source *source, uint64_t pages, unsigned every, uint64_t ns)
{
	trace_event(source->base.lane, "watched",
		    "%" PRIu64 " written pages, one in %u looked at, in %.1f ms", pages, every,
		    (double)ns / MS_NS);
}

static unsigned sample_every(const struct policy_input *input)
{
	unsigned every = SAMPLE_EVERY;

	while (input->ram_bytes / input->page_bytes / every > SAMPLE_MOST)
		every *= 2;
	return every;
}

/* Looks at a sample of the guest's writes, again and again, until what they are is clear enough for
 * the first decision. */
static int watch_sample(struct source *source, unsigned every, uint64_t begun,
			struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	uint64_t ns = WATCH_NS, watched = 0;
	enum policy_watch on = POLICY_WATCH_ON;

	precopy->can_track = precopy->input.can_track = true;
	for (;
	     on == POLICY_WATCH_ON && ns <= WATCH_MOST && !atomic_load(&source->base.switch_wanted);
	     ns *= 2) {
		int result = look_until(source, begun + ns, error);
		if (result < 0)
			return result;
		int64_t pages = source_sampled(source);
		if (pages < 0)
			return error_set(error, (int)-pages, "no-sample",
					 "read the sample of written pages: %s",
					 strerror((int)-pages));
		estimate_sampled(&precopy->estimate, clock_ns() - begun, (uint64_t)pages,
				 every * precopy->input.page_bytes);
		watched = (uint64_t)pages;
		observe(source, false);
		if (ns >= WATCH_LEAST)
			on = policy_watch(&precopy->input, (double)pages);
	}
	precopy->input.watched = on == POLICY_WATCH_CLEAR || ns > WATCH_MOST;
	tell_watched(source, watched, every, clock_ns() - begun);
	return 0;
}

/* Where there is no sample to be had: looks at all writes, for a moment. What is dirty then has not
 * been sent, and the first round sends everything. */
static int probe(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	int result = begin_tracking(source, error);

	if (result < 0 || !precopy->can_track)
		return result;
	result = source_collect(source, error);
	precopy->collect_ns = clock_ns();
	if (result == 0)
		result = look_until(source, precopy->collect_ns + PROBE_NS, error);
	if (result < 0 || (result = source_collect(source, error)) < 0)
		return result;
	uint64_t now = clock_ns();
	estimate_collected(&precopy->estimate, now - precopy->collect_ns, dirty_now(source), 0);
	tell_watched(source, dirty_count_all(&source->shared.dirty), 1, now - precopy->collect_ns);
	precopy->collect_ns = now;
	return 0;
}

/* Something of the guest's writes is to be known to the first decision. */
static int watch(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	unsigned every = sample_every(&precopy->input);

	/* The sample's pages are armed one after the other: on the mean half of that time ago. */
	uint64_t before = clock_ns();
	if (source_sample(source, precopy->tracker, every, error) == 0)
		return watch_sample(source, every, before + (clock_ns() - before) / 2, error);
	error_clear(error);
	return probe(source, error);
}

/* As the driver describes it; 1 where it does not say. */
static unsigned vcpus(const struct jaunt_description *description)
{
	for (size_t i = 0; i < description->property_count; i++)
		if (strcmp(description->properties[i].key, "vcpus") == 0) {
			unsigned long count = strtoul(description->properties[i].value, NULL, 10);
			return count >= 1 && count <= 65536 ? (unsigned)count : 1;
		}
	return 1;
}

/* Of a VM that has been watched. */
static int decide_first(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;

	decide(source, false);
	if (precopy->decision.action != POLICY_CONTINUE || !precopy->can_track ||
	    atomic_load(&source->shared.tracking))
		return 0;
	int result = begin_tracking(source, error);
	if (result == 0 && !precopy->can_track) /* who shows a sample may not be able to do more */
		decide(source, false);
	return result;
}

static int prepare(struct source *source, struct jaunt_error *error)
{
	const struct jaunt_options *options = &source->base.options;
	struct precopy *precopy = &source->precopy;
	struct policy_input *input = &precopy->input;

	policy_limits_init(&input->limits);
	policy_costs_init(&input->costs);
	if (!policy_mode_parse(options->mode, &input->mode))
		return error_set(error, EINVAL, "bad-option", "unknown mode \"%s\"", options->mode);
	if (!tracker_kind_parse(options->tracker, &precopy->tracker))
		return error_set(error, EINVAL, "bad-option",
				 "there is no way to track writes that is called \"%s\"",
				 options->tracker);
	input->limits.total_ns = (uint64_t)options->total_limit_ms * MS_NS;
	input->limits.timeout_ns = (uint64_t)options->timeout_ms * MS_NS;
	input->limits.timeout_aborts = options->timeout_action == JAUNT_TIMEOUT_ABORT;
	input->limits.max_rounds = options->max_rounds;
	input->limits.no_postcopy = options->no_post_copy;
	input->limits.throttle = options->throttle;
	input->limits.total_weight = options->total_weight;
	input->can_throttle = source->ops->throttle != NULL;
	input->ram_bytes = source->shared.memory.bytes;
	/* As its files tell without being searched; the first round's search knows better. */
	input->data_bytes = chunks_data_bytes(&source->shared.memory);
	if (!input->data_bytes)
		input->data_bytes = input->ram_bytes;
	estimate_init(&precopy->estimate, input->data_bytes);
	input->page_bytes = source->shared.memory.regions[0].page_bytes;
	input->round_trip_ns = (double)source->round_trip_ns;
	input->vcpus = vcpus(&source->description);
	input->device_ns = estimate_device_ns(input->vcpus);
	return 0;
}

/* --- The whole ---------------------------------------------------------------------------------
 */

int source_precopy(struct source *source, struct jaunt_error *error)
{
	struct precopy *precopy = &source->precopy;
	struct jaunt_error ignored = {0};

	source->complete_first = strcmp(source->base.options.mode, "stop-and-copy") == 0;
	if (!migration_has_rounds(source->base.options.mode))
		return 0;
	int result = prepare(source, error);
	if (result < 0)
		return result;
	migration_phase(&source->base, JAUNT_PHASE_PRECOPY);
	if ((result = watch(source, error)) < 0 || (result = decide_first(source, error)) < 0)
		return result;
	if (precopy->can_track)
		dirty_clear(&source->shared.dirty);
	if ((result = run_rounds(source, error)) < 0)
		return result;
	if (precopy->decision.action == POLICY_ABORT)
		return error_set(error, EAGAIN, precopy->decision.code, "%s",
				 precopy->decision.reason);
	source->complete_first = precopy->decision.action == POLICY_FINISH;
	set_throttle(source, 0);
	if (!atomic_load(&precopy->rounds.begun)) {
		source_untrack(source, &ignored); /* nothing was sent: nothing can be stale */
		return source_await_exposed(source, error);
	}
	source_end_exposing(source);
	return source_tell_stale(source, error);
}

void source_unthrottle(struct source *source)
{
	set_throttle(source, 0);
}

void source_precopy_end(struct source *source)
{
	struct jaunt_error ignored = {0};

	source_unthrottle(source);
	source_untrack(source, &ignored);
}
