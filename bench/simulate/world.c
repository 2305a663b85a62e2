/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/simulate/world.h"

#include <math.h>
#include <string.h>

#include "engine/source/estimate.h"

#define SECOND      1e9
#define MS_NS       1e6
#define PROBE_NS    (10 * MS_NS)
#define WATCH_NS    (5 * MS_NS) /* as in precopy.c */
#define WATCH_LEAST (10 * MS_NS)
#define WATCH_MOST  (160 * MS_NS)
#define LOOK_LEAST  (50 * MS_NS)
#define LOOKS       8 /* at a round, at most */
#define PUSH_STEPS  400
#define ROUNDS_MOST 200 /* whoever has not decided by then never will */

/* A run in progress. */
struct run {
	const struct world *world;
	const struct policy_limits *limits;
	uint64_t random,
		sampling; /* states of generators, of their own so that worlds stay alike */
	struct estimate estimate;
	struct policy_input input;
	double now_ns, left, sent, stall_ns;
	double since_ns;              /* the last collect */
	double dirty[WORLD_SETS_MAX]; /* bytes of each set that the next round must send */
};

static double uniform(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return (double)((x * UINT64_C(0x2545f4914f6cdd1d)) >> 11) / (double)(UINT64_C(1) << 53);
}

static double noisy(struct run *run, double value)
{
	return value * (1 + run->world->noise * (2 * uniform(&run->random) - 1));
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

/* Distinct bytes of each set that are written in a time without hindrance; the sum. */
static double written(const struct world *world, const double rates[WORLD_SETS_MAX], double ns,
		      double bytes[WORLD_SETS_MAX])
{
	double sum = 0;

	for (unsigned i = 0; i < world->set_count; i++) {
		double set = world->sets[i].bytes;
		bytes[i] = set * -expm1(-rates[i] * (ns / SECOND) / set);
		sum += bytes[i];
	}
	return sum;
}

static double first_writes_ns(const struct world *world, double bytes)
{
	return bytes / (double)world->page_bytes * world->costs.tracking_ns;
}

/* The part of a time in which the guest writes on: the rest goes into first writes. */
static double unhindered(const struct world *world, const double rates[WORLD_SETS_MAX], double ns)
{
	double cpus = world->cpus && world->cpus < world->vcpus ? world->cpus : world->vcpus;
	double low = 0, high = ns, bytes[WORLD_SETS_MAX];

	if (world->paced && first_writes_ns(world, written(world, rates, ns, bytes)) / cpus < ns)
		return ns;
	for (unsigned i = 0; i < 30; i++) {
		double half = (low + high) / 2;
		double takes = first_writes_ns(world, written(world, rates, half, bytes)) / cpus;
		if (half + takes > ns)
			high = half;
		else
			low = half;
	}
	return low;
}

static void draw_rates(struct run *run, double rates[WORLD_SETS_MAX])
{
	for (unsigned i = 0; i < run->world->set_count; i++)
		rates[i] = noisy(run, run->world->sets[i].rate);
}

/* What the guest wrote since the last collect becomes the next round's. */
static void collect(struct run *run)
{
	const struct world *world = run->world;
	double ran = run->since_ns * (1 - run->input.throttle / 100.0), rates[WORLD_SETS_MAX];

	draw_rates(run, rates);
	double sum = written(world, rates, unhindered(world, rates, ran), run->dirty);
	run->stall_ns += first_writes_ns(world, sum) / world->vcpus;
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

/* A sample of the guest's writes, until they are clear enough. */
static void watch(struct run *run)
{
	const struct world *world = run->world;
	double bytes[WORLD_SETS_MAX], rates[WORLD_SETS_MAX], pages = 0, last = 0;
	double of_each = (double)world->page_bytes * world->every;
	enum policy_watch on = POLICY_WATCH_ON;
	uint64_t at = WATCH_NS;

	draw_rates(run, rates);
	for (; on == POLICY_WATCH_ON && at <= (uint64_t)WATCH_MOST; at *= 2) {
		double ns = (double)at;
		guest_runs(run, ns - run->since_ns);
		pages = floor(written(world, rates, ns, bytes) / of_each + uniform(&run->sampling));
		run->stall_ns += (pages - last) * world->costs.tracking_ns / world->vcpus;
		last = pages;
		estimate_sampled(&run->estimate, (uint64_t)ns, (uint64_t)pages, (uint64_t)of_each);
		estimate_tell(&run->estimate, &run->input);
		run->input.left_bytes = (uint64_t)run->left;
		run->input.elapsed_ns = (uint64_t)run->now_ns;
		if (ns >= WATCH_LEAST)
			on = policy_watch(&run->input, pages);
	}
	run->input.watched = on == POLICY_WATCH_CLEAR || at > (uint64_t)WATCH_MOST;
	run->since_ns = 0;
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
	double touches = 0; /* a second, of a vCPU that nothing keeps */
	double hits = 0; /* touches a second of a vCPU that nothing keeps, of outstanding pages */

	for (unsigned i = 0; i < world->set_count; i++) {
		double left = run->left / (double)world->data_bytes;
		double share = left + run->dirty[i] / world->sets[i].bytes;
		double rate = world->sets[i].rate / (double)world->page_bytes *
			      world->costs.touches / world->vcpus;
		touches += rate;
		hits += rate * (share < 1 ? share : 1);
	}
	while (rest > all * 1e-6 && rest > 1) {
		double found = hits * rest / all * fault_ns / SECOND,
		       a = touches * fault_ns / SECOND;
		double waiting = a > 1 ? found / (1 + found - found / a) : found;
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
	run->sampling = ~run->random;
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
		if (world->every) {
			watch(&run);
		} else {
			guest_runs(&run, PROBE_NS);
			collect(&run);
			memset(run.dirty, 0, sizeof(run.dirty)); /* all is to be sent anyway */
		}
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

void world_split(struct world *world, double bytes, double writes)
{
	struct world_set *all = &world->sets[0];

	world->set_count = 2;
	world->sets[1].bytes = all->bytes * (1 - bytes);
	world->sets[1].rate = all->rate * (1 - writes);
	all->bytes *= bytes;
	all->rate *= writes;
}
