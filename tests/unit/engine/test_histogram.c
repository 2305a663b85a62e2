/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "engine/histogram.h"

static struct histogram histogram, other;

Test(histogram, an_empty_one_has_zeros_for_percentiles)
{
	struct jaunt_percentiles got = {.count = 9, .p50 = 9, .max = 9};
	histogram_percentiles(&histogram, &got);
	cr_assert_eq(got.count, 0);
	cr_assert_eq(got.p50, 0);
	cr_assert_eq(got.p999, 0);
	cr_assert_eq(got.max, 0);
}

Test(histogram, fits_in_32_kib)
{
	cr_assert_leq(sizeof(struct histogram), 32u << 10);
}

Test(histogram, buckets_follow_each_other_without_gap_or_overlap)
{
	unsigned last = histogram_bucket(0);
	cr_assert_eq(last, 0);
	for (uint64_t value = 1; value < 1u << 20; value++) {
		unsigned bucket = histogram_bucket(value);
		cr_assert(bucket == last || bucket == last + 1, "%lu", value);
		last = bucket;
	}
	for (unsigned bit = 20; bit < 64; bit++) {
		unsigned below = histogram_bucket((UINT64_C(1) << bit) - 1);
		unsigned at = histogram_bucket(UINT64_C(1) << bit);
		cr_assert_eq(at, bit < HISTOGRAM_MAX_BITS ? below + 1 : HISTOGRAM_BUCKETS - 1);
	}
	cr_assert_eq(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
}

Test(histogram, one_value_is_every_percentile_exactly)
{
	struct jaunt_percentiles got;
	histogram_record(&histogram, 123456789);
	histogram_percentiles(&histogram, &got);
	cr_assert_eq(got.count, 1);
	cr_assert_eq(got.p50, 123456.789);
	cr_assert_eq(got.p999, 123456.789);
	cr_assert_eq(got.max, 123456.789);
}

Test(histogram, small_values_are_exact)
{
	for (uint64_t value = 0; value <= 100; value++)
		histogram_record(&histogram, value);
	cr_assert_eq(histogram_percentile_ns(&histogram, 0), 0);
	cr_assert_eq(histogram_percentile_ns(&histogram, 0.5), 50);
	cr_assert_eq(histogram_percentile_ns(&histogram, 0.9), 90);
	cr_assert_eq(histogram_percentile_ns(&histogram, 1), 100);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

Test(histogram, percentiles_of_values_over_nine_decades_are_within_one_percent_of_the_sorted_ones)
{
	enum { COUNT = 100000 };
	static uint64_t values[COUNT];
	const double fractions[] = {0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999};

	srand48(1);
	for (int i = 0; i < COUNT; i++) {
		values[i] = (uint64_t)lrand48() >> (lrand48() % 31);
		histogram_record(&histogram, values[i]);
	}
	qsort(values, COUNT, sizeof(values[0]), compare);
	for (size_t i = 0; i < sizeof(fractions) / sizeof(fractions[0]); i++) {
		uint64_t exact = values[(int)(fractions[i] * COUNT + 0.5) - 1];
		double got = (double)histogram_percentile_ns(&histogram, fractions[i]);
		cr_assert(got >= (double)exact * 0.99 && got <= (double)exact * 1.01,
			  "%g: %g for %lu", fractions[i], got, exact);
	}
	cr_assert_eq(histogram_percentile_ns(&histogram, 1), values[COUNT - 1]);
}

Test(histogram, a_rare_large_value_shows_in_the_last_percentile_and_not_before)
{
	struct jaunt_percentiles got;
	for (int i = 0; i < 998; i++)
		histogram_record(&histogram, 10000);
	histogram_record(&histogram, 5000000);
	histogram_record(&histogram, 9000000);
	histogram_percentiles(&histogram, &got);
	cr_assert_float_eq(got.p99, 10, 0.1);
	cr_assert_float_eq(got.p999, 5000, 50);
	cr_assert_eq(got.max, 9000);
}

Test(histogram, values_beyond_its_range_keep_their_place_and_the_maximum)
{
	histogram_record(&histogram, 5);
	histogram_record(&histogram, UINT64_MAX - 1);
	cr_assert_eq(histogram_count(&histogram), 2);
	cr_assert_eq(histogram_percentile_ns(&histogram, 0.5), 5);
	cr_assert_eq(histogram_percentile_ns(&histogram, 0.99), UINT64_MAX - 1);
}

Test(histogram, a_merge_is_as_if_everything_had_been_recorded_in_one)
{
	static struct histogram both;
	struct jaunt_percentiles merged, direct;

	srand48(2);
	for (int i = 0; i < 20000; i++) {
		uint64_t value = (uint64_t)lrand48();
		histogram_record(i % 3 ? &histogram : &other, value);
		histogram_record(&both, value);
	}
	histogram_merge(&histogram, &other);
	histogram_percentiles(&histogram, &merged);
	histogram_percentiles(&both, &direct);
	cr_assert_eq(merged.count, direct.count);
	cr_assert_eq(merged.p50, direct.p50);
	cr_assert_eq(merged.p90, direct.p90);
	cr_assert_eq(merged.p999, direct.p999);
	cr_assert_eq(merged.max, direct.max);
}
