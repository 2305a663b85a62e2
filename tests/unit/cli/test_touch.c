/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>

#include "cli/touch.h"

static bool all(const void *context, uint64_t page)
{
	return true;
}

static bool none(const void *context, uint64_t page)
{
	return false;
}

static bool even(const void *context, uint64_t page)
{
	return page % 2 == 0;
}

Test(touch, only_the_first_touch_of_a_page_counts)
{
	struct touch touches[] = {{7, 300, 50}, {7, 100, 10}, {7, 200, 90}};
	struct jaunt_percentiles out;

	touch_percentiles(touches, 3, all, NULL, &out);
	cr_assert_eq(out.count, 1);
	cr_assert_eq(out.max, 10);
}

Test(touch, pages_that_were_not_demanded_do_not_count)
{
	struct touch touches[] = {{1, 1, 500}, {2, 1, 20}, {3, 1, 600}, {0, 1, 30}};
	struct jaunt_percentiles out;

	touch_percentiles(touches, 4, even, NULL, &out);
	cr_assert_eq(out.count, 2);
	cr_assert_eq(out.p50, 20);
	cr_assert_eq(out.max, 30);
}

Test(touch, percentiles_are_values_that_occurred)
{
	struct touch touches[1000];
	struct jaunt_percentiles out;

	for (unsigned i = 0; i < 1000; i++)
		touches[i] = (struct touch){.page = (i * 7) % 1000, .latency_us = i + 1};
	touch_percentiles(touches, 1000, all, NULL, &out);
	cr_assert_eq(out.count, 1000);
	cr_assert_eq(out.p50, 500);
	cr_assert_eq(out.p90, 900);
	cr_assert_eq(out.p99, 990);
	cr_assert_eq(out.p999, 999);
	cr_assert_eq(out.max, 1000);
}

Test(touch, without_touches_everything_is_zero)
{
	struct touch touches[] = {{1, 1, 5}};
	struct jaunt_percentiles out = {.count = 9, .max = 9};

	touch_percentiles(touches, 1, none, NULL, &out);
	cr_assert_eq(out.count, 0);
	cr_assert_eq(out.max, 0);
	out.count = 9;
	touch_percentiles(NULL, 0, all, NULL, &out);
	cr_assert_eq(out.count, 0);
}
