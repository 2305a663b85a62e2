/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/predict.h"

#include <math.h>

#define SECOND 1e9
/* Until something is known: a link of 10 Gbit/s. */
#define BANDWIDTH_PRIOR 1.25e9

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

double predict_dirtied(const struct policy_input *input, unsigned throttle, double dirty, double ns)
{
	double set = larger(working_set(input), dirty);
	double rate = input->dirty_rate * (1 - throttle / 100.0);

	if (set <= 0 || rate <= 0)
		return dirty;
	return set - (set - dirty) * exp(-rate * (ns / SECOND) / set);
}

/* The pause without what is copied in it: state there, LOADED back, COMMIT there. */
static double fixed_ns(const struct policy_input *input)
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
}

void predict_round(struct predict *at)
{
	const struct policy_input *input = at->input;

	/* At the end of a round the next one begins. */
	if (at->left <= 0 || (at->rounds == 0 && input->round_ended)) {
		at->left += at->dirty;
		at->dirty = 0;
	}
	double ns = at->left / predict_bandwidth(input) * SECOND + input->round_trip_ns +
		    input->costs.round_ns;
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

double predict_affordable(const struct policy_input *input, double limit_ns)
{
	double ns = limit_ns - fixed_ns(input);
	double per_byte =
		SECOND / predict_paused_bandwidth(input) + input->costs.run_ns / page_bytes(input);
	return ns > 0 ? ns / per_byte : 0;
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
	double downtime_ns = fixed_ns(input) + bytes / predict_paused_bandwidth(input) * SECOND +
			     bytes / page_bytes(input) * input->costs.run_ns;

	fill(at, downtime_ns, 0, 0, out);
}

/*
 * Waits for outstanding pages while they are pushed, of the mean vCPU. It touches `rate` pages a
 * second when nothing keeps it; a touch finds its page outstanding with probability f, and then
 * costs a fault. Of each moment the share a f / (1 + a f) is waiting, with a = rate * fault. The
 * push lets f fall from f0 to 0 in a straight line over push_ns, so the waits add up to
 *
 *	push_ns * (1 - ln(1 + a f0) / (a f0))
 */
static double waits_ns(const struct predict *at, double push_ns)
{
	const struct policy_input *input = at->input;
	double rate = input->dirty_rate / page_bytes(input) * input->costs.touches / vcpus(input);
	double a = rate * (input->costs.fault_ns + input->round_trip_ns) / SECOND;
	/* Of what is dirty all is in the working set; of the rest its share. */
	double data = larger(data_bytes(input), 1);
	double f0 = smaller(at->left / data + at->dirty / larger(working_set(input), at->dirty), 1);
	double x = a * f0;

	if (at->left + at->dirty <= 0 || x < 1e-9)
		return 0;
	return push_ns * (1 - log1p(x) / x);
}

void predict_switch(const struct predict *at, struct policy_prediction *out)
{
	const struct policy_input *input = at->input;
	double push_ns = outstanding(at) / predict_bandwidth(input) * SECOND;
	double downtime_ns = fixed_ns(input) + at->dirty / page_bytes(input) * input->costs.run_ns;

	fill(at, downtime_ns, waits_ns(at, push_ns), push_ns, out);
}
