/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "engine/source/eta.h"

#define MS UINT64_C(1000000)

static struct eta eta;
static double errors[ETA_MARKS];

Test(eta, what_was_expected_last_before_a_mark_counts)
{
	memset(&eta, 0, sizeof(eta));
	eta_expect(&eta, 10 * MS, 2000 * MS);
	eta_expect(&eta, 260 * MS, 500 * MS);
	eta_expect(&eta, 500 * MS, 1100 * MS);
	eta_expect(&eta, 700 * MS, 900 * MS);
	cr_assert_eq(eta_left_ns(&eta, 750 * MS), 150 * MS);
	cr_assert_eq(eta_left_ns(&eta, 901 * MS), 0);
	eta_errors(&eta, 1000 * MS, errors);
	cr_assert_float_eq(errors[0], 100, 1e-9);
	cr_assert_float_eq(errors[1], 10, 1e-9);
	cr_assert_float_eq(errors[2], -10, 1e-9);
}

Test(eta, where_no_end_was_in_sight_there_is_no_error)
{
	memset(&eta, 0, sizeof(eta));
	eta_expect(&eta, 300 * MS, 0);
	cr_assert_eq(eta_left_ns(&eta, 300 * MS), 0);
	eta_expect(&eta, 700 * MS, 1000 * MS);
	eta_errors(&eta, 1000 * MS, errors);
	cr_assert(isnan(errors[0]));
	cr_assert(isnan(errors[1]));
	cr_assert_float_eq(errors[2], 0, 1e-9);
}

Test(eta, pages_that_arrive_evenly_tell_the_end)
{
	memset(&eta, 0, sizeof(eta));
	eta_expect(&eta, 100 * MS,
		   200 * MS); /* far too early, and forgotten with the first pages */
	eta_switch(&eta, 1000 * MS);
	for (uint64_t t = 100; t <= 5000; t += 100)
		eta_arrived(&eta, (1000 + t) * MS, t, 10000 - t);
	cr_assert_float_eq((double)eta_left_ns(&eta, 6000 * MS), 5e9, 1e6);
	eta_errors(&eta, 11000 * MS, errors);
	cr_assert_float_eq(errors[0], 0, 0.1);
}

Test(eta, a_new_rate_is_believed_within_some_seconds)
{
	memset(&eta, 0, sizeof(eta));
	eta_switch(&eta, 0);
	uint64_t arrived = 0;
	for (uint64_t t = 100; t <= 5000; t += 100)
		eta_arrived(&eta, t * MS, arrived += t <= 1000 ? 1000 : 100, 10000);
	/* 1000 pages a second; it was ten times as much in the first second. */
	cr_assert_gt(eta_left_ns(&eta, 5000 * MS), 8000 * MS);
	cr_assert_lt(eta_left_ns(&eta, 5000 * MS), 10000 * MS);
}

Test(eta, pages_that_do_not_arrive_promise_nothing)
{
	memset(&eta, 0, sizeof(eta));
	eta_switch(&eta, 0);
	eta_arrived(&eta, 100 * MS, 0, 1000);
	cr_assert_eq(eta_left_ns(&eta, 100 * MS), 0);
	eta_arrived(&eta, 200 * MS, 0, 0);
	cr_assert_eq(eta_left_ns(&eta, 200 * MS), 0);
	eta_errors(&eta, 200 * MS, errors);
	cr_assert(isnan(errors[2]));
}

Test(eta, more_samples_than_there_is_room_for_thin_out)
{
	memset(&eta, 0, sizeof(eta));
	/* Expected each time: ten times as much as has passed. */
	for (uint64_t t = 1; t <= 100000; t++)
		eta_expect(&eta, t * MS, 10 * t * MS);
	cr_assert_leq(eta.count, ETA_SAMPLES);
	eta_errors(&eta, 100000 * MS, errors);
	for (unsigned i = 0; i < ETA_MARKS; i++)
		cr_assert_float_eq(errors[i], 100 * (2.5 * (i + 1) - 1), 30, "%g", errors[i]);
}
