/* SPDX-License-Identifier: Apache-2.0 */
/* The policy in simulated worlds. */
#include "bench/simulate/sweep.h"

#include <criterion/criterion.h>

#define GB UINT64_C(1000000000)

static struct sweep_cell cell;
static struct world_result result;

static void open_cell(void)
{
	sweep_cell(0, 0, &cell);
	cell.world.ram_bytes = cell.world.data_bytes = 2 * GB;
	cell.world.bandwidth = 1e9;
	cell.world.set_count = 1;
	cell.world.sets[0].bytes = 100e6;
	cell.world.sets[0].rate = 50e6;
}

static void run(enum policy_mode mode)
{
	world_run(&cell.world, mode, &cell.limits, NULL, NULL, &result);
}

TestSuite(simulate, .init = open_cell, .timeout = 300);

Test(simulate, pre_copy_of_a_guest_that_does_not_write_sends_everything_once)
{
	cell.world.sets[0].rate = 0;
	run(POLICY_PRECOPY);
	cr_assert_eq(result.end, POLICY_FINISH);
	cr_assert_float_eq(result.sent_bytes, 2e9, 1e6);
	cr_assert_eq(result.rounds, 1);
}

Test(simulate, post_copy_stalls_more_the_more_the_guest_touches_and_never_longer_than_the_push)
{
	double last = 0;

	for (double rate = 1e6; rate < 1e11; rate *= 10) {
		cell.world.sets[0].rate = rate;
		run(POLICY_POSTCOPY);
		cr_assert_eq(result.end, POLICY_SWITCH);
		cr_assert_gt(result.stall_ns, last);
		cr_assert_leq(result.stall_ns, result.total_ns);
		last = result.stall_ns;
	}
}

Test(simulate, what_is_predicted_at_the_last_decision_is_what_comes)
{
	static const enum policy_mode modes[] = {POLICY_AUTO, POLICY_HYBRID, POLICY_PRECOPY};

	for (unsigned i = 0; i < 3; i++) {
		run(modes[i]);
		cr_assert_float_eq(result.predicted.total_ns, result.total_ns,
				   0.1 * result.total_ns);
		cr_assert_float_eq(result.predicted.cost_ns, result.cost_ns, 0.25 * result.cost_ns,
				   "%s: %g for %g", policy_mode_name(modes[i]),
				   result.predicted.cost_ns, result.cost_ns);
	}
}

static void keeps_its_promises(double noise)
{
	struct sweep_count count;

	sweep_all(noise, NULL, &count);
	cr_assert_gt(count.reachable, 100);
	cr_assert_eq(count.missed, 0, "in %u of %u cells", count.missed, count.reachable);
	cr_assert_eq(count.forbidden, 0);
	cr_assert_leq(count.dearer * 10, count.reachable, "%u of %u cells", count.dearer,
		      count.reachable);
}

Test(simulate, auto_keeps_the_limits_wherever_any_mode_could_and_is_among_the_cheapest)
{
	keeps_its_promises(0);
}

Test(simulate, and_so_it_does_where_rates_vary_by_a_fifth)
{
	keeps_its_promises(0.2);
}
