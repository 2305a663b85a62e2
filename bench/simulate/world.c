/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/simulate/world.h"

#include <math.h>
#include <string.h>

#include "engine/source/estimate.h"

#define SECOND      1e9
#define MS_NS       1e6
#define PROBE_NS    (10 * MS_NS)
#define LOOK_LEAST  (50 * MS_NS)
#define LOOKS       8 /* at a round, at most */
#define PUSH_STEPS  400
#define ROUNDS_MOST 200 /* whoever has not decided by then never will */

/* A run in progress. */
struct run {
	const struct world *world;
	const struct policy_limits *limits;
	uint64_t random;
	struct estimate estimate;
	struct policy_input input;
	double now_ns, left, sent, stall_ns;
	double since_ns;              /* the last collect */
	double dirty[WORLD_SETS_MAX]; /* bytes of each set that the next round must send */
};

static double uniform(struct run *run)
{
	uint64_t x = run->random;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	run->random = x;
	return (double)((x * UINT64_C(0x2545f4914f6cdd1d)) >> 11) / (double)(UINT64_C(1) << 53);
}

static double noisy(struct run *run, double value)
{
	return value * (1 + run->world->noise * (2 * uniform(run) - 1));
}

static double link_rate(struct run *run)
{
	double cap = run->limits->bandwidth;
	double rate = noisy(run, run->world->bandwidth);
	return cap > 0 && cap < rate ? cap : rate;
}

static double dirty_bytes(const struct run *run)
{
	double sum = 0;
	for (unsigned i = 0; i < run->world->set_count; i++)
		sum += run->dirty[i];
	return sum;
}

/* The guest runs; what it writes is not known before the next collect. */
static void guest_runs(struct run *run, double ns)
{
	run->now_ns += ns;
	run->since_ns += ns;
	run->stall_ns += ns * run->input.throttle / 100.0;
}

/* What the guest wrote since the last collect becomes the next round's. */
static void collect(struct run *run)
{
	const struct world *world = run->world;
	double ran = run->since_ns * (1 - run->input.throttle / 100.0), sum = 0;

	for (unsigned i = 0; i < world->set_count; i++) {
		double set = world->sets[i].bytes, rate = noisy(run, world->sets[i].rate);
		run->dirty[i] = set * -expm1(-rate * (ran / SECOND) / set);
		sum += run->dirty[i];
	}
	run->stall_ns += sum / (double)world->page_bytes * world->costs.tracking_ns / world->vcpus;
	estimate_collected(&run->estimate, (uint64_t)run->since_ns, (uint64_t)sum,
			   run->input.throttle);
	run->since_ns = 0;
}

static void look(struct run *run, bool round_ended, struct policy_decision *decision)
{
	struct policy_input *input = &run->input;

	input->elapsed_ns = (uint64_t)run->now_ns;
	input->round_ended = round_ended;
	input->left_bytes = (uint64_t)run->left;
	input->dirty_bytes = round_ended ? (uint64_t)dirty_bytes(run) : 0;
	input->since_collect_ns = (uint64_t)run->since_ns;
	estimate_tell(&run->estimate, input);
	policy_decide(input, decision);
}

static double outstanding(const struct run *run)
{
	double bytes = run->left + dirty_bytes(run);
	return bytes < (double)run->world->data_bytes ? bytes : (double)run->world->data_bytes;
}

static double fixed_ns(const struct world *world)
{
	return world->device_ns + 1.5 * world->round_trip_ns;
}

/* What is stale is told ahead, and what was written in that time within the pause. */
static double stale_ns(struct run *run)
{
	const struct world *world = run->world;
	double page = (double)world->page_bytes, late = 0;
	double told_ns = MS_NS + dirty_bytes(run) / page * world->costs.run_ns;

	for (unsigned i = 0; i < world->set_count; i++) {
		double set = world->sets[i].bytes, rate = noisy(run, world->sets[i].rate);
		late += run->dirty[i] * -expm1(-rate * (told_ns / SECOND) / set);
	}
	return late / page * world->costs.run_ns;
}

static void finish(struct run *run, struct world_result *result)
{
	const struct world *world = run->world;
	double rate = link_rate(run) * world->costs.paused_speedup, cap = run->limits->bandwidth;
	double bytes = outstanding(run);

	if (cap > 0 && rate > cap)
		rate = cap;
	result->downtime_ns =
		fixed_ns(world) + world->round_trip_ns + bytes / rate * SECOND + stale_ns(run);
	run->sent += bytes;
	run->now_ns += result->downtime_ns + world->round_trip_ns;
	run->stall_ns += result->downtime_ns;
}

/* Post-copy, step by step. Each touch of what is outstanding waits for a fetch, which no limit of
 * bandwidth holds back; the push takes from all sets alike. */
static void push(struct run *run)
{
	const struct world *world = run->world;
	double all = outstanding(run), rest = all;
	double fault_ns = world->costs.fault_ns + world->round_trip_ns;
	double hits = 0; /* touches a second of a vCPU that nothing keeps, of outstanding pages */

	for (unsigned i = 0; i < world->set_count; i++) {
		double left = run->left / (double)world->data_bytes;
		double share = left + run->dirty[i] / world->sets[i].bytes;
		double rate = world->sets[i].rate / (double)world->page_bytes *
			      world->costs.touches / world->vcpus;
		hits += rate * (share < 1 ? share : 1);
	}
	while (rest > all * 1e-6 && rest > 1) {
		double waiting = hits * rest / all * fault_ns / SECOND;
		waiting = waiting < 1 ? waiting : 1;
		double fetched =
			waiting / fault_ns * SECOND * world->vcpus * (double)world->page_bytes;
		double rate = link_rate(run) + fetched;
		rate = rate < world->bandwidth ? rate : world->bandwidth;
		double bytes = rest < all / PUSH_STEPS ? rest : all / PUSH_STEPS;
		double ns = bytes / rate * SECOND;
		run->now_ns += ns;
		run->stall_ns += waiting * ns;
		rest -= bytes;
	}
	run->sent += all;
}

static void switch_now(struct run *run, struct world_result *result)
{
	const struct world *world = run->world;

	result->downtime_ns = fixed_ns(world) + stale_ns(run);
	run->now_ns += result->downtime_ns;
	run->stall_ns += result->downtime_ns;
	push(run);
	run->now_ns += world->round_trip_ns;
}

/* Sends until the round ends or something else is decided. */
static void run_round(struct run *run, world_tell *tell, void *context,
		      struct policy_decision *decision)
{
	const struct world *world = run->world;
	double step = run->left / world->bandwidth * SECOND / LOOKS;

	step = step < LOOK_LEAST ? LOOK_LEAST : step;
	for (;;) {
		double rate = link_rate(run), ns = run->left / rate * SECOND;
		bool ends = ns <= step;
		double bytes = ends ? run->left : rate * step / SECOND;
		estimate_sent(&run->estimate, (uint64_t)run->now_ns + 1, (uint64_t)run->sent);
		guest_runs(run, ends ? ns : step);
		run->left -= bytes;
		run->sent += bytes;
		if (ends)
			break;
		estimate_sent(&run->estimate, (uint64_t)run->now_ns + 1, (uint64_t)run->sent);
		look(run, false, decision);
		if (tell)
			tell(context, &run->input, decision);
		if (decision->action != POLICY_CONTINUE)
			return;
	}
	estimate_idle(&run->estimate, (uint64_t)run->now_ns + 1, (uint64_t)run->sent);
	guest_runs(run, world->round_trip_ns + world->costs.round_ns);
}

static void note_round(struct run *run, double ns, double sent)
{
	struct policy_input *input = &run->input;

	if (input->round_count == POLICY_ROUNDS_KEPT) {
		memmove(&input->rounds[0], &input->rounds[1],
			(POLICY_ROUNDS_KEPT - 1) * sizeof(input->rounds[0]));
		input->round_count--;
	}
	input->rounds[input->round_count++] =
		(struct policy_round){.duration_ns = (uint64_t)ns,
				      .sent_bytes = (uint64_t)sent,
				      .dirtied_bytes = (uint64_t)dirty_bytes(run)};
}

static void begin(struct run *run, const struct world *world, enum policy_mode mode,
		  const struct policy_limits *limits)
{
	memset(run, 0, sizeof(*run));
	run->world = world;
	run->limits = limits;
	run->random = world->seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	run->left = (double)world->data_bytes;
	estimate_init(&run->estimate, world->data_bytes);
	run->input = (struct policy_input){.mode = mode,
					   .limits = *limits,
					   .can_track = true,
					   .can_throttle = true,
					   .ram_bytes = world->ram_bytes,
					   .data_bytes = world->data_bytes,
					   .page_bytes = world->page_bytes,
					   .vcpus = world->vcpus,
					   .round_trip_ns = world->round_trip_ns,
					   .device_ns = estimate_device_ns(world->vcpus)};
	policy_costs_init(&run->input.costs);
}

void world_run(const struct world *world, enum policy_mode mode, const struct policy_limits *limits,
	       world_tell *tell, void *context, struct world_result *result)
{
	struct run run;
	struct policy_decision decision;

	memset(result, 0, sizeof(*result));
	begin(&run, world, mode, limits);
	if (mode != POLICY_POSTCOPY && mode != POLICY_STOP_AND_COPY) {
		guest_runs(&run, PROBE_NS);
		collect(&run);
		memset(run.dirty, 0, sizeof(run.dirty)); /* all is to be sent anyway */
	}
	look(&run, false, &decision);
	if (tell)
		tell(context, &run.input, &decision);
	while (decision.action == POLICY_CONTINUE && run.input.round < ROUNDS_MOST) {
		double sent = run.sent, since = run.now_ns;
		run_round(&run, tell, context, &decision);
		collect(&run);
		if (decision.action != POLICY_CONTINUE)
			break;
		note_round(&run, run.now_ns - since, run.sent - sent);
		look(&run, true, &decision);
		if (tell)
			tell(context, &run.input, &decision);
		run.input.throttle = decision.throttle;
		if (decision.action == POLICY_CONTINUE) {
			run.input.round++;
			run.left = dirty_bytes(&run);
			memset(run.dirty, 0, sizeof(run.dirty));
		}
	}
	if (decision.action == POLICY_CONTINUE)
		decision.action = POLICY_ABORT;
	result->rounds = run.input.round + (run.input.round_ended ? 1 : 0);
	result->end = decision.action;
	if (decision.way < POLICY_WAYS)
		result->predicted = decision.ways[decision.way];
	result->predicted.stall_ns += run.stall_ns;
	if (decision.action == POLICY_FINISH)
		finish(&run, result);
	else if (decision.action == POLICY_SWITCH)
		switch_now(&run, result);
	result->stall_ns = run.stall_ns;
	result->total_ns = run.now_ns;
	result->sent_bytes = run.sent;
	result->cost_ns = result->stall_ns + limits->total_weight * result->total_ns;
	result->predicted.cost_ns =
		result->predicted.stall_ns + limits->total_weight * result->predicted.total_ns;
}
