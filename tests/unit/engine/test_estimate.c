/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/estimate.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#define MB UINT64_C(1000000)
#define GB (1000 * MB)
#define MS UINT64_C(1000000)

static struct estimate estimate;
static struct policy_input told;

static void open_estimate(void)
{
	estimate_init(&estimate, 8 * GB);
}

TestSuite(estimate, .init = open_estimate, .timeout = 60);

/* What a guest of that rate and working set dirties. */
static void collect(double rate, double set, uint64_t ns)
{
	estimate_collected(&estimate, ns, (uint64_t)(set * -expm1(-rate * (double)ns / 1e9 / set)),
			   0);
	estimate_tell(&estimate, &told);
}

static bool within(double value, double wanted, double share)
{
	return value >= wanted * (1 - share) && value <= wanted * (1 + share);
}

Test(estimate, nothing_is_known_at_first)
{
	estimate_tell(&estimate, &told);
	cr_assert_eq(told.bandwidth, 0);
	cr_assert_eq(told.bandwidth_confidence, 0);
	cr_assert_eq(told.dirty_rate, 0);
	cr_assert_eq(told.dirty_confidence, 0);
	cr_assert_gt(estimate_device_ns(2), estimate_device_ns(1));
}

/* What a guest of the rate and working set that were told would dirty. */
static double foretold(double ns)
{
	return told.working_set * -expm1(-told.dirty_rate * ns / 1e9 / told.working_set);
}

Test(estimate, rate_and_working_set_are_found_from_collects_of_different_times)
{
	static const double rates[] = {20e6, 300e6, 4e9}, sets[] = {50e6, 200e6, 500e6};

	for (unsigned i = 0; i < 9; i++) {
		double rate = rates[i / 3], set = sets[i % 3];
		open_estimate();
		collect(rate, set, 10 * MS);
		collect(rate, set, 100 * MS);
		collect(rate, set, 1000 * MS);
		collect(rate, set, 50000 * MS);
		cr_assert(within(told.dirty_rate, rate, 0.1), "%g for %g of %g", told.dirty_rate,
			  rate, set);
		cr_assert(within(told.working_set, set, 0.1), "%g for %g at %g", told.working_set,
			  set, rate);
		cr_assert_gt(told.dirty_confidence, 0.7);
	}
}

Test(estimate, where_rate_and_working_set_cannot_be_told_apart_what_was_seen_is_foretold)
{
	/* Saturated long before. */
	for (unsigned i = 0; i < 4; i++)
		collect(50e9, 400e6, (500 + 500 * i) * MS);
	cr_assert(within(foretold(500e6), 400e6, 0.05), "%g", foretold(500e6));
	cr_assert(within(foretold(2000e6), 400e6, 0.05), "%g", foretold(2000e6));
	/* Far from saturated. */
	open_estimate();
	for (unsigned i = 0; i < 4; i++)
		collect(100e6, 4e9, (10 + 30 * i) * MS);
	cr_assert(within(told.dirty_rate, 100e6, 0.05), "%g", told.dirty_rate);
}

Test(estimate, noise_of_a_fifth_moves_what_is_foretold_by_less_and_lowers_the_confidence)
{
	double exact, noisy;

	srand(7);
	for (unsigned i = 0; i < 10; i++)
		collect(200e6, 600e6, (10 + 200 * i) * MS);
	exact = told.dirty_confidence;
	open_estimate();
	for (unsigned i = 0; i < 10; i++) {
		double noise = 0.8 + 0.4 * rand() / (double)RAND_MAX;
		double ns = (10 + 200.0 * i) * 1e6;
		double bytes = 600e6 * -expm1(-200e6 * ns / 1e9 / 600e6);
		estimate_collected(&estimate, (uint64_t)ns, (uint64_t)(bytes * noise), 0);
	}
	estimate_tell(&estimate, &told);
	noisy = told.dirty_confidence;
	cr_assert_lt(noisy, exact);
	for (double ns = 200e6; ns < 2000e6; ns += 200e6) {
		double wanted = 600e6 * -expm1(-200e6 * ns / 1e9 / 600e6);
		cr_assert(within(foretold(ns), wanted, 0.2), "%g for %g at %g", foretold(ns),
			  wanted, ns);
	}
}

Test(estimate, looks_at_a_sample_tell_the_working_set_when_much_of_it_is_written)
{
	for (uint64_t ns = 5 * MS; ns <= 160 * MS; ns *= 2) {
		double bytes = 134e6 * -expm1(-2e9 * (double)ns / 1e9 / 134e6);
		estimate_sampled(&estimate, ns, (uint64_t)(bytes / 65536), 65536);
	}
	estimate_tell(&estimate, &told);
	cr_assert(within(told.working_set, 134e6, 0.05), "%g", told.working_set);
	cr_assert(within(told.dirty_rate, 2e9, 0.05), "%g", told.dirty_rate);
	cr_assert_eq(told.horizon_ns, 160e6);
}

Test(estimate, a_sample_of_few_written_pages_says_less_than_a_collect)
{
	estimate_sampled(&estimate, 10 * MS, 1, 16 * 4096);
	estimate_tell(&estimate, &told);
	double alone = told.dirty_confidence;
	estimate_collected(&estimate, 1000 * MS, 8 * MB, 0);
	estimate_tell(&estimate, &told);
	cr_assert(within(foretold(1e9), 8e6, 0.1), "%g", foretold(1e9));
	cr_assert_gt(told.dirty_confidence, alone);
	open_estimate();
	estimate_sampled(&estimate, 10 * MS, 300, 16 * 4096);
	estimate_tell(&estimate, &told);
	cr_assert_gt(told.dirty_confidence, 1.5 * alone);
}

Test(estimate, a_guest_that_changes_is_followed)
{
	for (unsigned i = 0; i < 8; i++)
		collect(10e6, 100e6, (50 + 50 * i) * MS);
	for (unsigned i = 0; i < ESTIMATE_COLLECTS; i++)
		collect(1e9, 1e9, (50 + 50 * i) * MS);
	cr_assert(within(told.dirty_rate, 1e9, 0.1), "%g", told.dirty_rate);
}

Test(estimate, an_idle_guest_has_next_to_no_rate)
{
	for (unsigned i = 0; i < 4; i++)
		estimate_collected(&estimate, 100 * MS, 0, 0);
	estimate_tell(&estimate, &told);
	cr_assert_lt(told.dirty_rate, 1e5);
	cr_assert_gt(told.dirty_confidence, 0.5);
}

Test(estimate, the_rate_is_that_of_a_guest_that_is_not_held)
{
	estimate_collected(&estimate, 1000 * MS, 50 * MB, 50);
	estimate_collected(&estimate, 200 * MS, 10 * MB, 50);
	estimate_tell(&estimate, &told);
	cr_assert(within(told.dirty_rate, 100e6, 0.1), "%g", told.dirty_rate);
}

Test(estimate, bandwidth_is_that_of_the_time_in_which_there_was_something_to_send)
{
	uint64_t now = 1000 * MS, sent = 0;

	for (unsigned round = 0; round < 5; round++) {
		for (unsigned i = 0; i < 100; i++) {
			estimate_sent(&estimate, now, sent);
			now += MS;
			sent += 2 * MB;
		}
		estimate_idle(&estimate, now, sent);
		now += 500 * MS;
	}
	estimate_tell(&estimate, &told);
	cr_assert(within(told.bandwidth, 2e9, 0.05), "%g", told.bandwidth);
	cr_assert_gt(told.bandwidth_confidence, 0.9);
}

Test(estimate, a_link_that_becomes_slower_is_followed_within_a_second)
{
	uint64_t now = MS, sent = 0;

	for (unsigned i = 0; i < 2000; i++) {
		estimate_sent(&estimate, now, sent);
		now += MS;
		sent += i < 1000 ? 2 * MB : MB / 10;
	}
	estimate_tell(&estimate, &told);
	cr_assert(within(told.bandwidth, 100e6, 0.5), "%g", told.bandwidth);
}

Test(estimate, stretches_too_short_to_measure_change_nothing)
{
	uint64_t now = MS;

	for (unsigned i = 0; i < 100; i++) {
		estimate_sent(&estimate, now, i * MB);
		now += MS / 10;
		estimate_idle(&estimate, now, i * MB + MB);
		now += MS;
	}
	estimate_tell(&estimate, &told);
	cr_assert_eq(told.bandwidth, 0);
}
