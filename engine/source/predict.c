/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/predict.h"

#include <math.h>

#define SECOND 1e9
/* Until something is known: a link of 10 Gbit/s. */
#define BANDWIDTH_PRIOR 1.25e9
#define WAIT_STEPS      24
#define LOOK_NS         1e6 /* a collect, and a message */

static double larger(double a, double b)
{
	return a > b ? a : b;
}

static double smaller(double a, double b)
{
	return a < b ? a : b;
}

static double capped(const struct policy_input *input, double bandwidth)
{
	double cap = input->limits.bandwidth;
	return cap > 0 ? smaller(bandwidth, cap) : bandwidth;
}

double predict_bandwidth(const struct policy_input *input)
{
	return capped(input, input->bandwidth > 0 ? input->bandwidth : BANDWIDTH_PRIOR);
}

double predict_paused_bandwidth(const struct policy_input *input)
{
	return capped(input, predict_bandwidth(input) * input->costs.paused_speedup);
}

static double page_bytes(const struct policy_input *input)
{
	return input->page_bytes ? (double)input->page_bytes : 4096.0;
}

static double vcpus(const struct policy_input *input)
{
	return input->vcpus ? (double)input->vcpus : 1.0;
}

/* Everything that can be dirty at all. */
static double data_bytes(const struct policy_input *input)
{
	return (double)(input->data_bytes ? input->data_bytes : input->ram_bytes);
}

static double working_set(const struct policy_input *input)
{
	return input->working_set > 0 ? input->working_set : larger(data_bytes(input), 1);
}

static const struct policy_round *last_round(const struct policy_input *input)
{
	return input->round_count ? &input->rounds[input->round_count - 1] : NULL;
}

/* What was dirtied in a time t is a concave function of t, whatever the guest does, as long as it
 * goes on doing so: half of the time dirties at least half as much. */
static double at_least(const struct policy_input *input, unsigned throttle, double ns)
{
	const struct policy_round *last = last_round(input);

	if (!last || throttle || !last->duration_ns)
		return 0;
	return (double)last->dirtied_bytes * smaller(ns / (double)last->duration_ns, 1);
}

double predict_dirtied(const struct policy_input *input, unsigned throttle, double dirty, double ns)
{
	double set = larger(working_set(input), dirty);
	double rate = input->dirty_rate * (1 - throttle / 100.0);
	double least = at_least(input, throttle, ns);

	if (set <= 0 || rate <= 0)
		return larger(dirty, least);
	return larger(set - (set - dirty) * exp(-rate * (ns / SECOND) / set), least);
}

/* State there, LOADED back, COMMIT there. */
double predict_fixed_ns(const struct policy_input *input)
{
	return input->device_ns + 1.5 * input->round_trip_ns;
}

void predict_init(struct predict *at, const struct policy_input *input)
{
	*at = (struct predict){.input = input,
			       .left = (double)input->left_bytes,
			       .dirty = (double)input->dirty_bytes,
			       .total_ns = (double)input->elapsed_ns,
			       .throttle = input->throttle};
	if (input->since_collect_ns)
		at->dirty = predict_dirtied(input, at->throttle, at->dirty,
					    (double)input->since_collect_ns);
}

static double bare_round_ns(const struct policy_input *input, double bytes)
{
	return bytes / predict_bandwidth(input) * SECOND + input->round_trip_ns +
	       input->costs.round_ns;
}

/* With what the last one took beside (digests, acknowledgements): else each next round would look
 * better than it turns out. */
static double round_ns(const struct policy_input *input, double bytes)
{
	const struct policy_round *last = last_round(input);
	double ns = bare_round_ns(input, bytes);

	if (!last || !last->sent_bytes)
		return ns;
	double sent = (double)last->sent_bytes;
	double beside = larger((double)last->duration_ns - bare_round_ns(input, sent), 0);
	return ns + beside * smaller(bytes / sent, 1);
}

void predict_round(struct predict *at)
{
	const struct policy_input *input = at->input;

	/* At the end of a round the next one begins. */
	if (at->left <= 0 || (at->rounds == 0 && input->round_ended)) {
		at->left += at->dirty;
		at->dirty = 0;
	}
	double ns = round_ns(input, at->left);
	double dirty = predict_dirtied(input, at->throttle, at->dirty, ns);
	at->stall_ns +=
		(dirty - at->dirty) / page_bytes(input) * input->costs.tracking_ns / vcpus(input) +
		ns * at->throttle / 100.0;
	at->total_ns += ns;
	at->left = 0;
	at->dirty = dirty;
	at->rounds++;
}

static double outstanding(const struct predict *at)
{
	return smaller(at->left + at->dirty, larger(data_bytes(at->input), at->left));
}

/* What is stale is told ahead of the pause; in it, only what was written meanwhile. */
static double stale_ns(const struct policy_input *input, double dirty)
{
	double told_ns = LOOK_NS + dirty / page_bytes(input) * input->costs.run_ns;
	double late = input->dirty_rate * told_ns / SECOND;

	return smaller(late, dirty) / page_bytes(input) * input->costs.run_ns;
}

/* The target asks for what is left. */
double predict_finish_fixed_ns(const struct policy_input *input)
{
	return predict_fixed_ns(input) + input->round_trip_ns;
}

double predict_affordable(const struct policy_input *input, double limit_ns)
{
	double ns = limit_ns - predict_finish_fixed_ns(input);

	return ns > 0 ? ns / SECOND * predict_paused_bandwidth(input) : 0;
}

static void fill(const struct predict *at, double downtime_ns, double wait_ns, double push_ns,
		 struct policy_prediction *out)
{
	out->rounds = at->rounds;
	out->downtime_ns = downtime_ns;
	out->stall_ns = at->stall_ns + downtime_ns + wait_ns;
	/* COMPLETE, RELEASED. */
	out->total_ns = at->total_ns + downtime_ns + push_ns + at->input->round_trip_ns;
	out->cost_ns = out->stall_ns + at->input->limits.total_weight * out->total_ns;
}

void predict_finish(const struct predict *at, struct policy_prediction *out)
{
	const struct policy_input *input = at->input;
	double bytes = outstanding(at);
	double downtime_ns = predict_finish_fixed_ns(input) +
			     bytes / predict_paused_bandwidth(input) * SECOND +
			     stale_ns(input, at->dirty);

	fill(at, downtime_ns, 0, 0, out);
}

/*
 * Waits for outstanding pages while they are pushed, of the mean vCPU. It touches `rate` pages a
 * second when nothing keeps it; a touch finds its page outstanding with probability f, and then
 * costs a fault. Of each moment the share
 *
 *	w = a f / (1 + f max(a - 1, 0)),  a = rate * fault
 *
 * is waiting: a guest that has time to spare (a < 1) does afterwards what it could not do
 * meanwhile; one that has none touches less while it waits. f falls from f0 to 0 as the outstanding
 *bytes do, by the push and, where that is held back by a limit, by what is fetched beside it: w /
 *fault pages a second of each vCPU.
 */
static double waits_ns(const struct predict *at, double *push_ns)
{
	const struct policy_input *input = at->input;
	double page = page_bytes(input), bandwidth = predict_bandwidth(input);
	double fault_ns = input->costs.fault_ns + input->round_trip_ns;
	double rate = input->dirty_rate / page * input->costs.touches / vcpus(input);
	double a = rate * fault_ns / SECOND;
	/* Of what is dirty all is in the working set; of the rest its share. */
	double data = larger(data_bytes(input), 1);
	double f0 = smaller(at->left / data + at->dirty / larger(working_set(input), at->dirty), 1);
	double step = outstanding(at) / WAIT_STEPS, waited_ns = 0;
	bool limited = input->limits.bandwidth > 0;

	*push_ns = 0;
	for (unsigned i = 0; i < WAIT_STEPS; i++) {
		double f = f0 * (WAIT_STEPS - i - 0.5) / WAIT_STEPS;
		double waiting = a * f / (1 + f * larger(a - 1, 0));
		double fetched = limited ? waiting / fault_ns * SECOND * vcpus(input) * page : 0;
		double ns = step / (bandwidth + fetched) * SECOND;
		waited_ns += waiting * ns;
		*push_ns += ns;
	}
	return waited_ns;
}

void predict_switch(const struct predict *at, struct policy_prediction *out)
{
	const struct policy_input *input = at->input;
	double push_ns, waited_ns = waits_ns(at, &push_ns);
	double downtime_ns = predict_fixed_ns(input) + stale_ns(input, at->dirty);

	fill(at, downtime_ns, waited_ns, push_ns, out);
}
