/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "cli/progress.h"

#define SECOND UINT64_C(1000000000)

static char text[65536];
static FILE *out;
static struct progress progress;

static void begin(bool terminal, unsigned columns)
{
	memset(text, 0, sizeof(text));
	out = fmemopen(text, sizeof(text), "w");
	cr_assert(out);
	progress_init(&progress, out, terminal, columns);
}

static struct jaunt_status postcopy(uint64_t missing)
{
	return (struct jaunt_status){.phase = JAUNT_PHASE_POSTCOPY,
				     .ram_bytes = 4096 * 10000,
				     .payload_bytes = 4096 * (10000 - missing),
				     .eta_ms = (double)missing,
				     .pages = {.total = 10000, .missing = missing}};
}

static unsigned lines_of(const char *from)
{
	unsigned count = 0;
	for (; *from; from++)
		count += *from == '\n';
	return count;
}

Test(progress, plain_lines_come_once_a_second_and_on_every_change_of_phase)
{
	struct jaunt_status status = {.phase = JAUNT_PHASE_PREPARING};

	begin(false, 80);
	for (uint64_t t = 0; t < 10; t++)
		progress_update(&progress, &status, true, SECOND + t * SECOND / 10);
	cr_assert_eq(lines_of(text), 1);
	status.phase = JAUNT_PHASE_SWITCHOVER;
	progress_update(&progress, &status, true, 2 * SECOND);
	cr_assert_eq(lines_of(text), 2);
	for (uint64_t t = 0; t <= 30; t++) {
		status = postcopy(10000 - t * 100);
		progress_update(&progress, &status, true, 3 * SECOND + t * SECOND / 10);
	}
	cr_assert_eq(lines_of(text), 2 + 1 + 3);
	cr_assert_not(strchr(text, '\r'));
	cr_assert_not(strchr(text, '\033'));
}

Test(progress, memory_that_is_being_registered_is_told_with_the_time_that_is_left)
{
	struct jaunt_status status = {.phase = JAUNT_PHASE_PREPARING,
				      .registered_wanted_bytes = UINT64_C(8) << 30,
				      .register_estimate_ms = 8500};

	begin(true, 160);
	progress_update(&progress, &status, true, SECOND);
	cr_assert(strstr(text, "about 9 s left"), "%s", text);
	size_t seen = strlen(text);
	status.registered_bytes = UINT64_C(6) << 30;
	status.register_ms = 9000;
	progress_update(&progress, &status, true, 3 * SECOND);
	cr_assert(strstr(text + seen, "6.00 GiB of 8.00 GiB, about 3 s left"), "%s", text);
	seen = strlen(text);
	status.registered_bytes = UINT64_C(8) << 30;
	progress_update(&progress, &status, true, 5 * SECOND);
	cr_assert_null(strstr(text + seen, "registering"), "%s", text);
}

Test(progress, a_terminal_gets_one_line_redrawn_that_never_wraps)
{
	begin(true, 60);
	for (uint64_t t = 0; t < 20; t++) {
		struct jaunt_status status = postcopy(10000 - t * 500);
		progress_update(&progress, &status, true, SECOND + t * SECOND / 10);
	}
	cr_assert_eq(lines_of(text), 0);
	for (char *line = strtok(text, "\r"); line; line = strtok(NULL, "\r"))
		cr_assert_lt(strlen(line) - strlen("\033[K"), 60);
	progress_finish(&progress);
}

Test(progress, the_time_left_is_told_and_the_rate)
{
	begin(false, 80);
	/* 100 pages a tenth of a second; 8 s are left at the end. */
	for (uint64_t t = 0; t <= 20; t++) {
		struct jaunt_status status = postcopy(10000 - t * 100);
		progress_update(&progress, &status, true, SECOND + t * SECOND / 10);
	}
	cr_assert(strstr(text, "about 8 s left"), "%s", text);
	cr_assert(strstr(text, "4.10 MB/s"), "%s", text);
}

Test(progress, without_push_there_is_no_promise_of_an_end)
{
	begin(false, 80);
	for (uint64_t t = 0; t <= 20; t++) {
		struct jaunt_status status = postcopy(10000 - t * 100);
		progress_update(&progress, &status, false, SECOND + t * SECOND / 10);
	}
	cr_assert_not(strstr(text, " left"), "%s", text);
	cr_assert(strstr(text, "on demand only"), "%s", text);
}

Test(progress, rounds_tell_what_is_left_of_them_and_the_time)
{
	struct jaunt_status status = {
		.phase = JAUNT_PHASE_PRECOPY, .round = 3, .remaining_bytes = 7 << 20};

	begin(false, 80);
	for (uint64_t t = 0; t <= 20; t++) {
		status.payload_bytes = t * 4096 * 100;
		status.eta_ms = 5000 - (double)t * 100;
		progress_update(&progress, &status, true, SECOND + t * SECOND / 10);
	}
	cr_assert(strstr(text, "round 3, 7.00 MiB left of it, 4.10 MB/s, about 3 s left"), "%s",
		  text);
	status.eta_ms = 0; /* no end in sight */
	progress_update(&progress, &status, true, 5 * SECOND);
	cr_assert_not(strstr(strrchr(text, 'M'), " left"), "%s", text);
}

Test(progress, where_no_end_is_in_sight_none_is_promised)
{
	begin(false, 80);
	for (uint64_t t = 0; t <= 20; t++) {
		struct jaunt_status status = postcopy(10000);
		status.eta_ms = 0;
		progress_update(&progress, &status, true, SECOND + t * SECOND / 10);
	}
	cr_assert_not(strstr(text, " left"), "%s", text);
}

Test(progress, hundred_per_cent_is_not_said_before_the_last_page)
{
	struct jaunt_status status = postcopy(1);

	begin(false, 80);
	progress_update(&progress, &status, true, SECOND);
	cr_assert(strstr(text, " 99 %"), "%s", text);
	cr_assert_not(strstr(text, "100 %"), "%s", text);
}

Test(progress, a_blocked_vm_says_how_many_pages_and_why)
{
	struct jaunt_status status = postcopy(123);

	begin(false, 80);
	status.phase = JAUNT_PHASE_BLOCKED;
	snprintf(status.reason, sizeof(status.reason), "link-lost");
	progress_update(&progress, &status, true, SECOND);
	const char *said = strstr(text, "blocked");
	cr_assert(said && strstr(text, "blocked, 123 pages missing: link-lost"), "%s", text);
	cr_expect_null(strstr(said + 1, "blocked"), "said twice: %s", text);
}

Test(progress, more_missing_than_there_are_does_no_harm)
{
	struct jaunt_status status = postcopy(0);

	begin(true, 80);
	status.pages.missing = 20000;
	progress_update(&progress, &status, true, SECOND);
	progress_update(&progress, &status, true, 2 * SECOND);
	status = (struct jaunt_status){.phase = JAUNT_PHASE_POSTCOPY};
	progress_update(&progress, &status, true, 3 * SECOND);
	cr_assert(strstr(text, "  0 %"), "%s", text);
}
