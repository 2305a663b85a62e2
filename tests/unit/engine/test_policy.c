/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/policy.h"

#include <criterion/criterion.h>
#include <string.h>

#define MB UINT64_C(1000000)
#define GB (1000 * MB)
#define MS UINT64_C(1000000)

/* A guest of 1 GB that writes 100 MB of it, beside a link of 1 GB/s. */
static struct policy_input ordinary(void)
{
	struct policy_input input = {.can_track = true,
				     .ram_bytes = GB,
				     .data_bytes = GB,
				     .vcpus = 2,
				     .bandwidth = 1e9,
				     .bandwidth_confidence = 1,
				     .dirty_rate = 50e6,
				     .dirty_confidence = 1,
				     .working_set = 100e6,
				     .round_trip_ns = 1e5,
				     .device_ns = 2e5};

	policy_limits_init(&input.limits);
	policy_costs_init(&input.costs);
	return input;
}

static struct policy_input at_start(void)
{
	struct policy_input input = ordinary();

	input.left_bytes = input.data_bytes;
	return input;
}

static struct policy_input after_round(unsigned round, uint64_t dirty_bytes)
{
	struct policy_input input = ordinary();

	input.round = round;
	input.round_ended = true;
	input.dirty_bytes = dirty_bytes;
	input.elapsed_ns = 1000 * MS;
	return input;
}

static enum policy_action decide(const struct policy_input *input)
{
	struct policy_decision decision;

	policy_decide(input, &decision);
	cr_assert(strlen(decision.reason) > 0);
	cr_assert(strlen(decision.code) > 0);
	return decision.action;
}

TestSuite(policy, .timeout = 60);

Test(policy, post_copy_switches_at_once_and_stop_and_copy_finishes_at_once)
{
	struct policy_input input = at_start();

	input.mode = POLICY_POSTCOPY;
	cr_assert_eq(decide(&input), POLICY_SWITCH);
	input.mode = POLICY_STOP_AND_COPY;
	input.limits.downtime_ns = 0;
	cr_assert_eq(decide(&input), POLICY_FINISH);
}

Test(policy, modes_with_rounds_begin_with_a_round)
{
	struct policy_input input = at_start();
	static const enum policy_mode modes[] = {POLICY_AUTO, POLICY_HYBRID, POLICY_PRECOPY};

	for (unsigned i = 0; i < 3; i++) {
		input.mode = modes[i];
		cr_assert_eq(decide(&input), POLICY_CONTINUE, "%s", policy_mode_name(modes[i]));
	}
}

Test(policy, auto_finishes_a_guest_that_hardly_writes)
{
	struct policy_input input = after_round(1, 100000);

	input.dirty_rate = 1e5;
	input.working_set = 1e6;
	cr_assert_eq(decide(&input), POLICY_FINISH);
}

Test(policy, auto_switches_when_the_guest_writes_faster_than_the_link)
{
	struct policy_input input = after_round(3, 900 * MB);

	input.dirty_rate = 50e9;
	input.working_set = 900e6;
	cr_assert_eq(decide(&input), POLICY_SWITCH);
}

Test(policy, nothing_switches_where_post_copy_is_forbidden)
{
	struct policy_input input = after_round(3, 900 * MB);
	struct policy_decision decision;

	input.dirty_rate = 50e9;
	input.working_set = 900e6;
	input.limits.no_postcopy = true;
	policy_decide(&input, &decision);
	cr_assert_eq(decision.action, POLICY_CONTINUE);
	cr_assert(strstr(decision.reason, "needed"), "%s", decision.reason);
	input.switch_requested = true;
	cr_assert_neq(decide(&input), POLICY_SWITCH);
	input.limits.max_rounds = 4;
	policy_decide(&input, &decision);
	cr_assert_eq(decision.action, POLICY_ABORT);
	cr_assert(strstr(decision.reason, "needed"), "%s", decision.reason);
}

Test(policy, a_request_to_switch_is_followed_at_once)
{
	struct policy_input input = at_start();

	input.switch_requested = true;
	cr_assert_eq(decide(&input), POLICY_SWITCH);
}

Test(policy, pre_copy_that_does_not_converge_ends_as_its_limits_say)
{
	struct policy_input input = after_round(3, 900 * MB);

	input.mode = POLICY_PRECOPY;
	input.dirty_rate = 50e9;
	input.working_set = 900e6;
	cr_assert_eq(decide(&input), POLICY_CONTINUE);
	input.limits.timeout_ns = 1000 * MS;
	cr_assert_eq(decide(&input), POLICY_SWITCH);
	input.limits.timeout_aborts = true;
	cr_assert_eq(decide(&input), POLICY_ABORT);
}

Test(policy, a_limit_that_no_round_can_keep_is_missed_at_once_and_said)
{
	struct policy_decision decision;

	for (unsigned i = 0; i < 2; i++) {
		struct policy_input input = after_round(0, 100 * MB);
		if (i)
			input.limits.total_ns = 1010 * MS; /* sending the rest takes 100 more */
		else
			input.limits.downtime_ns = 100000; /* the pause alone takes longer */
		const char *limit = i ? "the total limit" : "the downtime limit";
		/* It would rather not take this way at all; it takes the cheapest. */
		policy_decide(&input, &decision);
		cr_assert_str_eq(decision.code, "beyond-limits");
		cr_assert(strstr(decision.reason, limit), "%s", decision.reason);
		struct policy_input unlimited = input;
		unlimited.limits.total_ns = 0;
		unlimited.limits.downtime_ns = 1 * MS;
		if (i)
			unlimited.limits.downtime_ns = input.limits.downtime_ns;
		cr_assert_eq(decision.action, decide(&unlimited));
		input.limits.no_postcopy = true;
		policy_decide(&input, &decision);
		cr_assert_eq(decision.action, POLICY_ABORT);
		cr_assert(strstr(decision.reason, limit), "%s", decision.reason);
		cr_assert(strstr(decision.reason, "needed"), "%s", decision.reason);
		input.round_ended = false;
		input.left_bytes = GB;
		cr_assert_eq(decide(&input), POLICY_CONTINUE, "not before the first round ends");
	}
}

Test(policy, throttling_grows_until_the_guest_is_slow_enough)
{
	struct policy_input input = after_round(1, 900 * MB);
	struct policy_decision decision;
	unsigned last = 0;

	input.mode = POLICY_PRECOPY;
	input.dirty_rate = 50e9;
	input.working_set = 900e6;
	input.limits.throttle = true;
	input.can_throttle = true;
	for (unsigned i = 0; i < 10 && last < 99; i++) {
		policy_decide(&input, &decision);
		cr_assert_eq(decision.action, POLICY_CONTINUE);
		cr_assert_gt(decision.throttle, last);
		last = input.throttle = decision.throttle;
	}
	cr_assert_eq(last, 99);
}

Test(policy, what_is_needed_names_the_limit_that_stands_in_the_way)
{
	struct policy_input input = at_start();
	struct policy_decision decision;

	input.limits.no_postcopy = true;
	input.limits.max_rounds = 1;
	input.round_ended = true;
	input.limits.total_ns = 10 * MS;
	input.elapsed_ns = 2000 * MS;
	policy_decide(&input, &decision);
	cr_assert_eq(decision.action, POLICY_ABORT);
	cr_assert(strstr(decision.reason, "a total limit of"), "%s", decision.reason);
	input.limits.total_ns = 0;
	input.dirty_bytes = 900 * MB;
	input.dirty_rate = 50e9;
	input.working_set = 900e6;
	policy_decide(&input, &decision);
	cr_assert_eq(decision.action, POLICY_ABORT);
	cr_assert(strstr(decision.reason, "a downtime limit of"), "%s", decision.reason);
}

Test(policy, without_tracking_auto_has_the_two_modes_without_rounds_to_choose_from)
{
	struct policy_input input = at_start();
	struct policy_decision decision;

	input.can_track = false;
	policy_decide(&input, &decision);
	cr_assert_not(decision.ways[POLICY_WAY_ROUNDS_FINISH].allowed);
	cr_assert_eq(decision.action, POLICY_SWITCH);
	input.limits.no_postcopy = true;
	cr_assert_eq(decide(&input), POLICY_ABORT, "1 GB does not fit into 300 ms");
	input.limits.downtime_ns = 5000 * MS;
	cr_assert_eq(decide(&input), POLICY_FINISH);
}

Test(policy, before_the_first_round_a_moment_of_writes_does_not_rule_rounds_out)
{
	struct policy_input input = at_start();

	input.dirty_rate = 2e9;
	input.working_set = 500e6;
	input.horizon_ns = 10e6;
	input.dirty_confidence = 0.5;
	cr_assert_eq(decide(&input), POLICY_CONTINUE);
	/* But a longer look does, if it has seen much of what is written. */
	input.horizon_ns = 300e6;
	input.working_set = 900e6;
	input.bandwidth_confidence = 0; /* nothing was sent */
	cr_assert_eq(decide(&input), POLICY_SWITCH);
	/* A hybrid without a round would be none. */
	input.mode = POLICY_HYBRID;
	cr_assert_eq(decide(&input), POLICY_CONTINUE);
}

Test(policy, the_guest_is_looked_at_until_it_is_clear_what_it_writes)
{
	struct policy_input input = at_start();

	input.bandwidth_confidence = 0;
	/* 20 MB in 10 ms: they may be all that it writes, or the beginning of everything. */
	input.dirty_rate = 2e9;
	input.working_set = 900e6;
	input.horizon_ns = 10e6;
	cr_assert_eq(policy_watch(&input, 100), POLICY_WATCH_ON);
	/* Most of it was seen: no round gains anything. */
	input.horizon_ns = 160e6;
	input.working_set = 300e6;
	input.data_bytes = input.left_bytes = 320e6;
	cr_assert_eq(policy_watch(&input, 1000), POLICY_WATCH_CLEAR);
	/* So few that nothing depends on it. */
	input = at_start();
	input.dirty_rate = 1e6;
	input.horizon_ns = 10e6;
	cr_assert_eq(policy_watch(&input, 1), POLICY_WATCH_CLEAR);
	/* It has cost too much already. */
	input.dirty_rate = 2e9;
	input.working_set = 900e6;
	input.horizon_ns = 10e6;
	cr_assert_eq(policy_watch(&input, 1e5), POLICY_WATCH_DEAR);
	/* There is only one thing to do. */
	input.mode = POLICY_PRECOPY;
	cr_assert_eq(policy_watch(&input, 100), POLICY_WATCH_CLEAR);
}

Test(policy, a_short_standstill_of_its_writes_is_no_end_of_them)
{
	struct policy_input input = at_start();

	input.bandwidth_confidence = 0;
	/* 10 MB in 10 ms, none in the next 10: a small working set, or a vCPU without a CPU? */
	input.dirty_rate = 5e9;
	input.working_set = 10e6;
	input.horizon_ns = 20e6;
	cr_assert_eq(policy_watch(&input, 150), POLICY_WATCH_ON);
	input.horizon_ns = 40e6;
	cr_assert_eq(policy_watch(&input, 150), POLICY_WATCH_CLEAR);
}

Test(policy, what_was_watched_until_it_was_clear_is_decided_whatever_the_confidence)
{
	struct policy_input input = at_start();

	input.bandwidth_confidence = 0;
	input.dirty_rate = 20e9;
	input.working_set = 900e6;
	input.horizon_ns = 160e6;
	input.dirty_confidence = 0.3;
	cr_assert_eq(decide(&input), POLICY_CONTINUE);
	input.watched = true;
	cr_assert_eq(decide(&input), POLICY_SWITCH);
	/* Within a round it is again worth as much as its confidence. */
	input.bandwidth_confidence = 1;
	cr_assert_eq(decide(&input), POLICY_CONTINUE);
}

Test(policy, a_hybrid_does_not_switch_before_its_round_because_of_a_limit_nobody_can_keep)
{
	struct policy_input input = at_start();
	struct policy_decision decision;

	input.mode = POLICY_HYBRID;
	input.limits.downtime_ns = 1;
	input.limits.total_ns = 10 * MS;
	/* Neither the downtime nor, with the page map to tell, any way to go on. */
	input.costs.run_ns = 1e9;
	input.dirty_rate = 1e9;
	policy_decide(&input, &decision);
	cr_assert_eq(decision.action, POLICY_CONTINUE, "%s", decision.reason);
	cr_assert_str_eq(decision.code, "beyond-limits");
	input.round_ended = true;
	input.left_bytes = 0;
	policy_decide(&input, &decision);
	cr_assert_eq(decision.action, POLICY_SWITCH, "%s", decision.reason);
}

Test(policy, a_round_takes_no_less_than_the_last_one_took)
{
	/* 96 MiB are dirty after each round. By the bandwidth alone each next one would take less
	 * time, and leave less. */
	struct policy_input input = after_round(3, 100663296);

	input.mode = POLICY_PRECOPY;
	input.bandwidth = 3e9;
	input.dirty_rate = 2.5e9;
	input.working_set = 190e6;
	input.data_bytes = 190e6;
	input.page_bytes = 2097152;
	cr_assert_eq(decide(&input), POLICY_CONTINUE);
	input.round_count = 1;
	input.rounds[0] = (struct policy_round){
		.duration_ns = 42 * MS, .sent_bytes = 100663296, .dirtied_bytes = 100663296};
	cr_assert_eq(decide(&input), POLICY_FINISH);
}

Test(policy, names_of_modes_are_parsed_back)
{
	enum policy_mode mode;

	for (unsigned i = 0; i < POLICY_MODES; i++) {
		cr_assert(policy_mode_parse(policy_mode_name((enum policy_mode)i), &mode));
		cr_assert_eq(mode, i);
	}
	cr_assert_not(policy_mode_parse("sideways", &mode));
}
