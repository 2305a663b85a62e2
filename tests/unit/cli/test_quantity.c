/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "cli/quantity.h"

static uint64_t size_of(const char *text)
{
	struct jaunt_error error = {.code = 0};
	uint64_t bytes = 0;
	cr_assert_eq(quantity_size(text, &bytes, &error), 0, "%s: %s", text, error.text);
	return bytes;
}

static uint64_t rate_of(const char *text)
{
	struct jaunt_error error = {.code = 0};
	uint64_t rate = 0;
	cr_assert_eq(quantity_rate(text, &rate, &error), 0, "%s: %s", text, error.text);
	return rate;
}

Test(quantity, sizes_are_in_powers_of_1024_whatever_the_spelling)
{
	cr_assert_eq(size_of("4096"), 4096);
	cr_assert_eq(size_of("4096B"), 4096);
	cr_assert_eq(size_of("4k"), 4096);
	cr_assert_eq(size_of("512M"), UINT64_C(512) << 20);
	cr_assert_eq(size_of("512MiB"), UINT64_C(512) << 20);
	cr_assert_eq(size_of("512mb"), UINT64_C(512) << 20);
	cr_assert_eq(size_of("1.5G"), UINT64_C(1536) << 20);
	cr_assert_eq(size_of("0.25T"), UINT64_C(256) << 30);
}

Test(quantity, sizes_are_exact_where_a_double_would_round)
{
	cr_assert_eq(size_of("9007199254740993"), UINT64_C(9007199254740993));
}

Test(quantity, nonsense_is_no_size_and_the_error_gives_examples)
{
	static const char *const wrong[] = {"",
					    " 1G",
					    "1G ",
					    "-1G",
					    "+1",
					    "0",
					    "0G",
					    "G",
					    "1.",
					    ".5G",
					    "1..5G",
					    "1X",
					    "1GG",
					    "1Gi",
					    "inf",
					    "nan",
					    "0x10",
					    "1e9",
					    "1iB",
					    "pig",
					    "1,5G",
					    "1 G",
					    "8388608T",
					    "99999999999999999999",
					    "1.0000000000000000000x"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct jaunt_error error = {.code = 0};
		uint64_t bytes;
		cr_expect_lt(quantity_size(wrong[i], &bytes, &error), 0, "\"%s\"", wrong[i]);
		cr_expect(strstr(error.text, "512M"), "%s", error.text);
		cr_expect_str_eq(error.reason, "bad-size");
	}
}

Test(quantity, rates_count_in_thousands_and_a_bit_is_an_eighth)
{
	cr_assert_eq(rate_of("250000"), 250000);
	cr_assert_eq(rate_of("125MB/s"), 125000000);
	cr_assert_eq(rate_of("1Gbit"), 125000000);
	cr_assert_eq(rate_of("1Gbit/s"), 125000000);
	cr_assert_eq(rate_of("1Gbps"), 125000000);
	cr_assert_eq(rate_of("100MiB/s"), UINT64_C(100) << 20);
	cr_assert_eq(rate_of("10M"), 10000000);
	cr_assert_eq(rate_of("2.5Gbit"), 312500000);
}

Test(quantity, nonsense_is_no_rate_and_the_error_gives_examples)
{
	static const char *const wrong[] = {"",     "0",    "fast",      "-1M",  "1Mbyte", "1MB/h",
					    "1M/s", "7bit", "1Gbit/s/s", "1 MB", "1Gbb"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct jaunt_error error = {.code = 0};
		uint64_t rate;
		cr_expect_lt(quantity_rate(wrong[i], &rate, &error), 0, "\"%s\"", wrong[i]);
		cr_expect(strstr(error.text, "125MB/s"), "%s", error.text);
	}
}

Test(quantity, a_count_outside_its_limits_is_refused_and_named)
{
	struct jaunt_error error = {.code = 0};
	uint64_t count;

	cr_assert_eq(quantity_count("streams", "64", 1, 64, &count, &error), 0);
	cr_assert_eq(count, 64);
	cr_assert_eq(quantity_count("streams", "65", 1, 64, &count, &error), -ERANGE);
	cr_assert(strstr(error.text, "streams") && strstr(error.text, "64"));
	cr_assert_lt(quantity_count("streams", "0", 1, 64, &count, &error), 0);
	cr_assert_lt(quantity_count("streams", "1.0", 1, 64, &count, &error), 0);
	cr_assert_lt(quantity_count("streams", "4x", 1, 64, &count, &error), 0);
	cr_assert_lt(quantity_count("streams", "", 1, 64, &count, &error), 0);
}

Test(quantity, times_are_seconds_unless_they_say_milliseconds)
{
	struct jaunt_error error = {.code = 0};
	uint32_t ms;

	cr_assert_eq(quantity_time_ms("10", &ms, &error), 0);
	cr_assert_eq(ms, 10000);
	cr_assert_eq(quantity_time_ms("0.5s", &ms, &error), 0);
	cr_assert_eq(ms, 500);
	cr_assert_eq(quantity_time_ms("250ms", &ms, &error), 0);
	cr_assert_eq(ms, 250);
	cr_assert_lt(quantity_time_ms("0", &ms, &error), 0);
	cr_assert_lt(quantity_time_ms("3601", &ms, &error), 0);
	cr_assert_lt(quantity_time_ms("1min", &ms, &error), 0);
}

Test(quantity, a_switch_is_on_or_off_and_nothing_else)
{
	struct jaunt_error error = {.code = 0};
	bool on = false;

	cr_assert_eq(quantity_switch("--push", "on", &on, &error), 0);
	cr_assert(on);
	cr_assert_eq(quantity_switch("--push", "off", &on, &error), 0);
	cr_assert_not(on);
	cr_assert_lt(quantity_switch("--push", "yes", &on, &error), 0);
	cr_assert(strstr(error.text, "--push"));
}
