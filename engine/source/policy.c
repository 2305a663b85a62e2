/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/policy.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/source/predict.h"

#define MS_NS 1e6
/* Rounds that are looked ahead. Where pre-copy converges the rest shrinks by a constant factor. */
#define LOOKAHEAD 24u
/* A way that ends with a finish is preferred unless a switch is cheaper by more than this. */
#define PREFERENCE 1.05
/* And another round must pay this much. */
#define ROUND_GAIN 1.01
/* In the middle of a round only a clear gain, seen with some confidence, changes the plan. */
#define CHANGE_GAIN       1.10
#define CHANGE_CONFIDENCE 0.5
/* Writes that were seen for a time say something of times up to so often as long. */
#define HORIZONS 3
/* Who was seen to write so much of his working set has no larger one. */
#define SEEN 0.4
/* And who did not write so much of the one that fits best may have one of everything. */
#define SATURATED 0.8
/* A shorter standstill of its writes may be the host's: a vCPU that did not get a CPU. */
#define STILL_NS (40 * MS_NS)
/* Of the limit of downtime, for a finish that might be a switch as well. */
#define FINISH_SHARE 0.8
/* Looking at the guest before the first decision may cost so much of what is decided about. */
#define WATCH_SHARE 0.02

static const char *const mode_names[POLICY_MODES] = {"auto", "hybrid", "post-copy", "pre-copy",
						     "stop-and-copy"};
static const char *const action_names[POLICY_ACTIONS] = {"continue", "switch", "finish", "abort"};
static const char *const way_names[POLICY_WAYS] = {"finish", "rounds+finish", "switch",
						   "rounds+switch"};

const char *policy_mode_name(enum policy_mode mode)
{
	return mode < POLICY_MODES ? mode_names[mode] : "?";
}

const char *policy_action_name(enum policy_action action)
{
	return action < POLICY_ACTIONS ? action_names[action] : "?";
}

const char *policy_way_name(enum policy_way way)
{
	return way < POLICY_WAYS ? way_names[way] : "?";
}

bool policy_mode_parse(const char *name, enum policy_mode *mode)
{
	for (unsigned i = 0; i < POLICY_MODES; i++)
		if (strcmp(name, mode_names[i]) == 0) {
			*mode = (enum policy_mode)i;
			return true;
		}
	return false;
}

void policy_limits_init(struct policy_limits *limits)
{
	*limits = (struct policy_limits){.downtime_ns = 300000000u, .total_weight = 0.01};
}

void policy_costs_init(struct policy_costs *costs)
{
	*costs = (struct policy_costs){.fault_ns = 55e3,
				       .tracking_ns = 6.5e3,
				       .round_ns = 1e6,
				       .run_ns = 5,
				       .touches = 2,
				       .paused_speedup = 1};
}

/* --- Predicting
 * -------------------------------------------------------------------------------------------- */

static bool may_rounds(const struct policy_input *input)
{
	return input->can_track && input->mode != POLICY_POSTCOPY &&
	       input->mode != POLICY_STOP_AND_COPY;
}

static bool may_finish(const struct policy_input *input)
{
	return input->mode == POLICY_AUTO || input->mode == POLICY_PRECOPY ||
	       input->mode == POLICY_STOP_AND_COPY;
}

static bool may_switch(const struct policy_input *input)
{
	return !input->limits.no_postcopy &&
	       (input->mode == POLICY_AUTO || input->mode == POLICY_HYBRID ||
		input->mode == POLICY_POSTCOPY);
}

/* How many more rounds may end; the one that runs counts. */
static unsigned rounds_left(const struct policy_input *input)
{
	unsigned done = input->round + (input->round_ended ? 1 : 0);
	unsigned most = input->limits.max_rounds;

	if (!may_rounds(input))
		return 0;
	if (!most)
		return LOOKAHEAD;
	if (done >= most)
		return 0;
	return most - done < LOOKAHEAD ? most - done : LOOKAHEAD;
}

/* How long a finish takes depends on the link's next moments: where a switch is the alternative,
 * some of the limit is kept in reserve. */
static bool keeps_limits(const struct policy_input *input, const struct policy_prediction *way,
			 bool finish)
{
	const struct policy_limits *limits = &input->limits;
	double share = finish && may_switch(input) ? FINISH_SHARE : 1;

	return (!limits->downtime_ns || way->downtime_ns <= (double)limits->downtime_ns * share) &&
	       (!limits->total_ns || way->total_ns <= (double)limits->total_ns);
}

/* Keeps the better of two numbers of rounds: limits first, then cost. */
static void keep_better(struct policy_prediction *best, const struct policy_prediction *other)
{
	if (!best->allowed || (other->in_limits && !best->in_limits) ||
	    (other->in_limits == best->in_limits && other->cost_ns < best->cost_ns))
		*best = *other;
}

static void consider(const struct policy_input *input, const struct predict *at, bool finish,
		     struct policy_prediction *best)
{
	struct policy_prediction way = {.allowed = true};

	if (finish)
		predict_finish(at, &way);
	else
		predict_switch(at, &way);
	way.in_limits = keeps_limits(input, &way, finish);
	keep_better(best, &way);
}

static void predict_ways(const struct policy_input *input, unsigned throttle,
			 struct policy_prediction ways[POLICY_WAYS])
{
	struct predict at;
	unsigned most = rounds_left(input);

	memset(ways, 0, POLICY_WAYS * sizeof(*ways));
	predict_init(&at, input);
	at.throttle = throttle;
	for (unsigned i = 0; i <= most; i++) {
		if (i)
			predict_round(&at);
		if (may_finish(input))
			consider(input, &at, true,
				 &ways[i ? POLICY_WAY_ROUNDS_FINISH : POLICY_WAY_FINISH]);
		if (may_switch(input))
			consider(input, &at, false,
				 &ways[i ? POLICY_WAY_ROUNDS_SWITCH : POLICY_WAY_SWITCH]);
	}
}

/*
 * Before the first round ends, the guest's writes were seen for a moment only, and what they come
 * to in a round is a guess: the working set may be no more than what was written in that moment, or
 * all there is. Going on with a round that turns out not to pay costs little; giving up one that
 * would have paid costs much. So the mean of the two (of their logarithms) is what is reckoned
 * with, unless much of it was seen to be written.
 */
static void temper(const struct policy_input *input, struct policy_input *tempered)
{
	*tempered = *input;
	if (input->round_ended || input->dirty_rate <= 0 || input->horizon_ns <= 0)
		return;
	double left_ns = (double)input->left_bytes / predict_bandwidth(input) * 1e9;
	if (left_ns < HORIZONS * input->horizon_ns)
		return;
	double seen = predict_dirtied(input, 0, 0, HORIZONS * input->horizon_ns);
	double most = input->working_set > seen ? input->working_set : seen;
	if (seen > 0 && seen < most * SEEN)
		tempered->working_set = sqrt(seen * most);
}

/* --- Choosing
 * ---------------------------------------------------------------------------------------------- */

static bool finishes(enum policy_way way)
{
	return way == POLICY_WAY_FINISH || way == POLICY_WAY_ROUNDS_FINISH;
}

static bool ends_now(enum policy_way way)
{
	return way == POLICY_WAY_FINISH || way == POLICY_WAY_SWITCH;
}

/* Without a round a hybrid would be post-copy. */
static bool may_end(const struct policy_input *input)
{
	return input->mode != POLICY_HYBRID || input->round > 0 || input->round_ended ||
	       !may_rounds(input);
}

/* The cheapest within the limits; POLICY_WAYS: there is none. */
static enum policy_way choose(const struct policy_input *input,
			      const struct policy_prediction ways[POLICY_WAYS])
{
	enum policy_way best = POLICY_WAYS;
	double least = 0;
	bool sent = input->bandwidth_confidence > 0; /* something, so there was a plan */
	bool shaky = !input->round_ended && input->dirty_confidence < CHANGE_CONFIDENCE &&
		     (sent || !input->watched);

	for (unsigned i = 0; i < POLICY_WAYS; i++) {
		const struct policy_prediction *way = &ways[i];
		if (!way->allowed || !way->in_limits ||
		    (ends_now((enum policy_way)i) && !may_end(input)))
			continue;
		double cost = way->cost_ns;
		if (!finishes((enum policy_way)i))
			cost *= PREFERENCE;
		if (ends_now((enum policy_way)i) && !input->round_ended && may_rounds(input))
			cost = shaky ? cost + 1e18 : sent ? cost * CHANGE_GAIN : cost;
		if (!ends_now((enum policy_way)i))
			cost *= ROUND_GAIN;
		if (best == POLICY_WAYS || cost < least) {
			best = (enum policy_way)i;
			least = cost;
		}
	}
	return best;
}

static void say(struct policy_decision *decision, enum policy_action action, const char *code,
		const char *reason)
{
	decision->action = action;
	snprintf(decision->code, sizeof(decision->code), "%s", code);
	snprintf(decision->reason, sizeof(decision->reason), "%s", reason);
}

/* Steps of throttling: the first that the model says would do; if it was wrong, the next. */
static unsigned throttle_step(const struct policy_input *input)
{
	struct policy_prediction ways[POLICY_WAYS];

	for (unsigned percent = input->throttle + 10; percent < 99; percent += 10) {
		predict_ways(input, percent, ways);
		if (ways[POLICY_WAY_ROUNDS_FINISH].in_limits)
			return percent;
	}
	return 99;
}

static bool may_throttle(const struct policy_input *input)
{
	return input->limits.throttle && input->can_throttle && may_rounds(input) &&
	       (input->mode == POLICY_PRECOPY ||
		(input->mode == POLICY_AUTO && input->limits.no_postcopy));
}

/* What would have to be otherwise for a finish within the downtime limit: where the rounds come to
 * a standstill, the rest is what the guest dirties while it is sent. */
static void say_needs(const struct policy_input *input, char *text, size_t bytes)
{
	struct policy_prediction end;
	struct predict at;
	double bandwidth = predict_bandwidth(input), affordable;

	predict_init(&at, input);
	for (unsigned i = 0; i < LOOKAHEAD; i++)
		predict_round(&at);
	predict_finish(&at, &end);
	if (input->limits.total_ns && end.total_ns > (double)input->limits.total_ns &&
	    (!input->limits.downtime_ns || end.downtime_ns <= (double)input->limits.downtime_ns)) {
		snprintf(text, bytes,
			 "needed: a total limit of %.0f ms (it is %.0f), or more bandwidth than "
			 "%.0f MB/s",
			 ceil(end.total_ns / MS_NS), (double)input->limits.total_ns / MS_NS,
			 bandwidth / 1e6);
		return;
	}
	affordable = predict_affordable(input, (double)input->limits.downtime_ns);
	/* Slow enough that a round over what is affordable dirties no more than that. */
	double rate = affordable > 0 ? bandwidth : 0;
	snprintf(text, bytes,
		 "needed: a downtime limit of %.0f ms (it is %.0f), or a guest that writes less "
		 "than %.0f MB/s (it writes %.0f), or so much more bandwidth than %.0f MB/s",
		 ceil(end.downtime_ns / MS_NS), (double)input->limits.downtime_ns / MS_NS,
		 rate / 1e6, input->dirty_rate / 1e6, bandwidth / 1e6);
}

/* Time or rounds are over and nothing keeps the limits. */
static void end_without(const struct policy_input *input, struct policy_decision *decision,
			const char *code, const char *what)
{
	char needs[200];

	if (!input->limits.timeout_aborts && !input->limits.no_postcopy) {
		say(decision, POLICY_SWITCH, code, what);
		decision->way = POLICY_WAY_SWITCH;
		return;
	}
	say_needs(input, needs, sizeof(needs));
	say(decision, POLICY_ABORT, code, "");
	snprintf(decision->reason, sizeof(decision->reason), "%s; %s", what, needs);
}

static void decide_among(enum policy_way way, struct policy_decision *decision,
			 const struct policy_prediction *best)
{
	decision->way = way;
	if (ends_now(way)) {
		bool finish = finishes(way);
		say(decision, finish ? POLICY_FINISH : POLICY_SWITCH,
		    finish ? "fits" : "rounds-do-not-pay", "");
		snprintf(decision->reason, sizeof(decision->reason),
			 "%s now: downtime %.1f ms, stall %.1f ms, total %.0f ms",
			 finish ? "finish" : "switch", best->downtime_ns / MS_NS,
			 best->stall_ns / MS_NS, best->total_ns / MS_NS);
		return;
	}
	say(decision, POLICY_CONTINUE, finishes(way) ? "converges" : "shrinks", "");
	snprintf(decision->reason, sizeof(decision->reason),
		 "%u more round%s, then %s: downtime %.1f ms, stall %.1f ms, total %.0f ms",
		 best->rounds, best->rounds == 1 ? "" : "s", finishes(way) ? "finish" : "switch",
		 best->downtime_ns / MS_NS, best->stall_ns / MS_NS, best->total_ns / MS_NS);
}

/* What no number of further rounds changes: how long the pause is with nothing left to send in it,
 * and how long it takes to send what is left. `relaxed` is the input without such limits; false:
 * there are none. */
static bool relax(const struct policy_input *input, struct policy_input *relaxed, char *missed,
		  size_t bytes)
{
	struct policy_limits *limits = &relaxed->limits;
	struct policy_prediction end;
	struct predict at;

	*relaxed = *input;
	predict_init(&at, input);
	predict_finish(&at, &end);
	double least_ns =
		may_switch(input) ? predict_fixed_ns(input) : predict_finish_fixed_ns(input);
	bool downtime = limits->downtime_ns && least_ns > (double)limits->downtime_ns;
	bool total = limits->total_ns && end.total_ns > (double)limits->total_ns;
	snprintf(missed, bytes, "no rounds can keep %s%.0f ms",
		 downtime ? "the downtime limit of " : "the total limit of ",
		 (double)(downtime ? limits->downtime_ns : limits->total_ns) / MS_NS);
	if (downtime)
		limits->downtime_ns = (uint64_t)(2 * least_ns);
	if (total)
		limits->total_ns = 0;
	return downtime || total;
}

/* Where a limit cannot be kept whatever is done, rounds for its sake would never end. True:
 * decided. */
static bool decide_beyond(const struct policy_input *input, struct policy_decision *decision)
{
	struct policy_prediction ways[POLICY_WAYS];
	struct policy_input relaxed;
	char missed[80], reason[POLICY_REASON_BYTES];

	if (!relax(input, &relaxed, missed, sizeof(missed)))
		return false;
	if (may_switch(input)) {
		predict_ways(&relaxed, input->throttle, ways);
		enum policy_way way = choose(&relaxed, ways);
		if (way == POLICY_WAYS) /* a hybrid before its first round does not switch */
			way = ways[POLICY_WAY_ROUNDS_SWITCH].allowed && !may_end(input)
				      ? POLICY_WAY_ROUNDS_SWITCH
				      : POLICY_WAY_SWITCH;
		decide_among(way, decision, &ways[way]);
		snprintf(reason, sizeof(reason), "%s; %.150s", missed, decision->reason);
		memcpy(decision->reason, reason, sizeof(reason));
		snprintf(decision->code, sizeof(decision->code), "beyond-limits");
		return true;
	}
	if (!input->round_ended)
		return false;
	end_without(input, decision, "limits", missed);
	return true;
}

static void decide_without(const struct policy_input *input, struct policy_decision *decision)
{
	char needs[200];

	if (!may_rounds(input) || rounds_left(input) == 0) {
		end_without(input, decision, may_rounds(input) ? "max-rounds" : "limits",
			    may_rounds(input) ? "the rounds allowed are over"
					      : "no way of this mode keeps the limits");
		return;
	}
	if (decide_beyond(input, decision))
		return;
	if (may_throttle(input) && input->round_ended && input->round >= 1) {
		decision->throttle = throttle_step(input);
		say(decision, POLICY_CONTINUE, "throttle", "");
		snprintf(decision->reason, sizeof(decision->reason),
			 "the guest dirties faster than the link carries: vCPUs held %u %% of the "
			 "time",
			 decision->throttle);
		return;
	}
	say_needs(input, needs, sizeof(needs));
	say(decision, POLICY_CONTINUE, "not-converging", "");
	snprintf(decision->reason, sizeof(decision->reason), "no way keeps the limits yet; %s",
		 needs);
}

void policy_decide(const struct policy_input *input, struct policy_decision *decision)
{
	const struct policy_limits *limits = &input->limits;
	struct policy_input tempered;

	memset(decision, 0, sizeof(*decision));
	decision->throttle = input->throttle;
	decision->way = POLICY_WAYS;
	temper(input, &tempered);
	predict_ways(&tempered, input->throttle, decision->ways);
	if (input->switch_requested && !limits->no_postcopy) {
		decision->way = POLICY_WAY_SWITCH;
		say(decision, POLICY_SWITCH, "requested", "an operator asked for the switch");
		return;
	}
	enum policy_way way = choose(input, decision->ways);
	bool late = limits->timeout_ns && input->elapsed_ns >= limits->timeout_ns;
	if (way != POLICY_WAYS && (!late || ends_now(way)))
		decide_among(way, decision, &decision->ways[way]);
	else if (late && decision->ways[POLICY_WAY_FINISH].in_limits)
		decide_among(POLICY_WAY_FINISH, decision, &decision->ways[POLICY_WAY_FINISH]);
	else if (late)
		end_without(input, decision, "timeout", "the time for rounds is over");
	else
		decide_without(input, decision);
}

/* --- Whether to look longer
 * ---------------------------------------------------------------------------------------- */

/* What the guest may turn out to be: its rate, of which a count of so many tells no more, and its
 * working set, which is at least what was seen of it, and at most everything, unless it was seen
 * for some time that writes to other pages come to an end. */
static void vary(const struct policy_input *input, unsigned which, double noted,
		 struct policy_input *varied)
{
	double off = 1 + 2 / sqrt(noted + 1);
	double seen = predict_dirtied(input, 0, 0, input->horizon_ns);

	*varied = *input;
	varied->dirty_confidence = 1;
	varied->horizon_ns = 0; /* it is what it is: nothing to be careful about */
	varied->dirty_rate = which & 1 ? input->dirty_rate * off : input->dirty_rate / off;
	if (which & 2)
		varied->working_set = seen;
	else if (seen < input->working_set * SATURATED || input->horizon_ns < STILL_NS)
		varied->working_set =
			(double)(input->data_bytes ? input->data_bytes : input->ram_bytes);
}

enum policy_watch policy_watch(const struct policy_input *input, double noted)
{
	double vcpus = input->vcpus ? (double)input->vcpus : 1, most = 0;
	double spent = noted * input->costs.tracking_ns / vcpus +
		       input->limits.total_weight * input->horizon_ns;
	enum policy_action first = POLICY_ACTIONS;
	bool same = true;

	for (unsigned which = 0; which < 4; which++) {
		struct policy_decision decision;
		struct policy_input varied;
		vary(input, which, noted, &varied);
		policy_decide(&varied, &decision);
		same &= first == POLICY_ACTIONS || decision.action == first;
		first = decision.action;
		if (decision.way < POLICY_WAYS)
			most = fmax(most, decision.ways[decision.way].cost_ns);
	}
	if (same)
		return POLICY_WATCH_CLEAR;
	return spent < WATCH_SHARE * most ? POLICY_WATCH_ON : POLICY_WATCH_DEAR;
}
