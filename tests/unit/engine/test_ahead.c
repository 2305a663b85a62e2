/* SPDX-License-Identifier: Apache-2.0 */
/* A driver that saves a part of its VM's state while the VM runs. Both sides are in this process;
 * neither has a vCPU. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/source/source.h"
#include "moving.h"

TestSuite(ahead, .timeout = 60);

enum { PAGES = 4096, CHUNK = 1 << 20, FULL = 64 << 20 };

enum step { NOTHING, BEGIN, AHEAD, LOAD_AHEAD };

static enum step fails, cancels;
static size_t wanted;           /* bytes that are to be saved ahead */
static size_t rest;             /* and in the pause */
static size_t told;             /* bytes given to the engine */
static _Atomic size_t ahead;    /* loaded while the VM ran */
static _Atomic size_t taken;    /* checked, in all */
static _Atomic bool stands;     /* the VM, at the source */
static size_t taken_when_still; /* of it, when pause() was called */
static bool began, right;
/* Of a VM that writes meanwhile: its first page again and again, and each of the others once. */
static bool writes;
static _Atomic uint64_t written, collected; /* of the others */
static unsigned looks;                      /* collects while state went ahead that told of any */
static uint64_t left_for_it;                /* of the others, told by the one in the pause */
static unsigned starts, stops, stop_fails;  /* of tracking */
/* The target takes the first state only when what was written since it came is collected. */
static bool waits, seen_waiting;

/* What the state has at that place. */
static uint8_t byte_at(size_t at)
{
	return (uint8_t)(at * 2654435761u >> 11 ^ at);
}

/* --- As a driver has it ------------------------------------------------------------------------
 */

static int fail(struct jaunt_error *error)
{
	return error_set(error, EIO, "no-luck", "it went wrong");
}

static void maybe_cancel(enum step step)
{
	if (cancels == step)
		cr_expect_eq(jaunt_migration_cancel(moving.departure, NULL), 0);
}

static int save_begin(void *context, struct jaunt_error *error)
{
	(void)context;
	began = true;
	maybe_cancel(BEGIN);
	return fails == BEGIN ? fail(error) : 0;
}

static void tell(uint8_t *to, size_t count)
{
	for (size_t i = 0; i < count; i++)
		to[i] = byte_at(told + i);
	told += count;
}

enum { LOOKS = 5 };

/* Writes some pages, and takes its time. */
static void write_some(void)
{
	char *ram = moving.source.region.view;

	for (unsigned i = 0; i < 3 && written + 1 < PAGES; i++) {
		memset(ram + (written + 1) * MOVING_PAGE, (int)(written % 251), MOVING_PAGE);
		memset(ram, (int)(written % 241), MOVING_PAGE);
		written++;
	}
	usleep(2000);
}

static int track_start(void *context, struct jaunt_error *error)
{
	(void)context, (void)error;
	starts++;
	return 0;
}

static int track_collect(void *context, jaunt_dirty_run *emit, void *to, struct jaunt_error *error)
{
	uint64_t until = written;

	(void)context, (void)error;
	looks += began && !stands && collected < until;
	if (stands)
		left_for_it = until - collected;
	if (collected < until) {
		emit(to, 0, 0, 1);
		emit(to, 0, collected + 1, until - collected);
	}
	collected = until;
	return 0;
}

static int track_stop(void *context, struct jaunt_error *error)
{
	(void)context;
	stops++;
	return stops <= stop_fails ? error_set(error, ENOMEM, "no-memory", "no memory to stop it")
				   : 0;
}

static int save_ahead(void *context, void *buffer, size_t room, size_t *bytes,
		      struct jaunt_error *error)
{
	(void)context;
	*bytes = 0;
	right &= began && !stands;
	if (fails == AHEAD && told)
		return fail(error);
	if (told)
		maybe_cancel(AHEAD);
	if (writes && !waits && looks < LOOKS) {
		write_some();
		return 1;
	}
	if (writes) /* between the last look and the pause */
		write_some();
	if (told == wanted)
		return 0;
	*bytes = wanted - told < room ? wanted - told : room;
	tell(buffer, *bytes);
	return 1;
}

static int stand_still(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	(void)context, (void)error;
	stands = true;
	taken_when_still = taken;
	*when_ns = clock_ns();
	return 0;
}

static int save(void *context, void **state, size_t *bytes, struct jaunt_error *error)
{
	(void)context, (void)error;
	right &= stands;
	*state = malloc(rest + 1);
	*bytes = rest;
	tell(*state, rest);
	return 0;
}

static void take(const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		right &= bytes[i] == byte_at(taken + i);
	taken += count;
}

/* Not longer than some looks may take on a slow machine. */
static void wait_for_a_look(void)
{
	uint64_t until = clock_ns() + 20 * UINT64_C(1000000000);

	write_some();
	while (collected < written && clock_ns() < until)
		usleep(1000);
	seen_waiting = collected == written;
}

static int load_ahead(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	(void)context;
	if (waits && !ahead)
		wait_for_a_look();
	right &= bytes > 0;
	take(state, bytes);
	ahead += bytes;
	maybe_cancel(LOAD_AHEAD);
	return fails == LOAD_AHEAD ? fail(error) : 0;
}

static int load(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	(void)context, (void)error;
	right &= stands;
	if (bytes)
		take(state, bytes);
	return 0;
}

static struct jaunt_vm_ops there = {.driver = "ahead",
				    .describe = moving_describe,
				    .pause = stand_still,
				    .save = save,
				    .load = load,
				    .resume = moving_resume,
				    .save_begin = save_begin,
				    .save_ahead = save_ahead,
				    .load_ahead = load_ahead};

/* --- Moving it ---------------------------------------------------------------------------------
 */

static char trace[64]; /* a path; "": none */

/* The source's outcome. */
static int move(size_t bytes_ahead, size_t bytes_rest, const char *mode, struct jaunt_error *error)
{
	struct jaunt_options options;

	wanted = bytes_ahead;
	rest = bytes_rest;
	right = true;
	jaunt_options_init(&options);
	options.mode = mode;
	options.trace_path = trace[0] ? trace : NULL;
	return moving_move(&there, &there, PAGES, &options, error);
}

/* The first number of the text of an event in the trace that follows `behind`. */
static uint64_t traced(const char *event, const char *behind)
{
	char name[64], line[4096];
	uint64_t found = UINT64_MAX;
	FILE *file = fopen(trace, "r");

	cr_assert_not_null(file);
	snprintf(name, sizeof(name), "\"%s\"", event);
	while (fgets(line, sizeof(line), file)) {
		const char *text = strstr(line, name) ? strstr(line, "\"text\":") : NULL;
		text = text ? strstr(text, behind) : NULL;
		if (text)
			found = strtoull(text + strlen(behind), NULL, 10);
	}
	fclose(file);
	cr_assert_neq(found, UINT64_MAX, "%s is not in the trace", event);
	return found;
}

static void check_arrived(size_t bytes_ahead, size_t bytes_rest, const char *mode)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(bytes_ahead, bytes_rest, mode, &error), JAUNT_DONE, "%s", error.text);
	cr_assert_eq(moving.arrived, JAUNT_DONE, "%s", moving.arrived_with.text);
	cr_assert(right, "the state is not what was saved, or was asked for out of turn");
	cr_assert_eq(taken, bytes_ahead + bytes_rest);
	cr_assert_eq(moving.target.resumed, 1);
	cr_assert_eq(moving.source.resumed, 0);
}

static void check_stays_in(const char *mode, enum jaunt_outcome outcome, const char *reason,
			   struct jaunt_error *error)
{
	cr_assert_eq(move(5 * CHUNK, 100, mode, error), outcome, "%s", error->text);
	cr_assert_str_eq(error->reason, reason);
	cr_assert_eq(moving.arrived, outcome, "%s", moving.arrived_with.text);
	cr_assert_not(stands, "it was stopped for nothing");
	cr_assert_eq(moving.source.resumed, 1, "what was begun is to be taken back");
	cr_assert_eq(moving.target.resumed, 0);
}

static void check_stays(enum jaunt_outcome outcome, const char *reason)
{
	struct jaunt_error error = {0};

	check_stays_in("post-copy", outcome, reason, &error);
}

static void is_tracked(void)
{
	writes = true;
	there.track_start = track_start;
	there.track_collect = track_collect;
	there.track_stop = track_stop;
}

Test(ahead, is_loaded_while_the_vm_runs)
{
	check_arrived(5 * CHUNK + 12345, 100, "post-copy");
	cr_assert_eq(ahead, 5 * CHUNK + 12345);
	/* But for the last, which nobody waits for. */
	cr_assert_geq(taken_when_still, 5 * CHUNK);
}

Test(ahead, may_be_all_of_it)
{
	check_arrived(3, 0, "stop-and-copy");
	cr_assert_eq(ahead, 3);
}

Test(ahead, may_be_nothing)
{
	check_arrived(0, 2 * CHUNK + 1, "post-copy");
	cr_assert(began);
	cr_assert_eq(ahead, 0);
}

Test(ahead, what_is_written_meanwhile_is_told_meanwhile_and_once)
{
	is_tracked();
	strcpy(trace, "/tmp/jaunt-ahead-XXXXXX");
	int fd = mkstemp(trace);
	cr_assert_geq(fd, 0);
	close(fd);
	check_arrived(3 * CHUNK, 100, "hybrid");
	cr_assert(moving.same, "the target has other bytes than the source");
	cr_assert_geq(looks, LOOKS);
	cr_assert_gt(left_for_it, 0, "what was written last is told in the pause");
	/* Beside the state: the first page, which was written all the time, and the others. */
	cr_assert_eq(traced("state-ahead", "bytes; "), 1 + written - left_for_it);
	cr_assert_geq(traced("looks-ahead", "\"text\":\""), LOOKS);
	cr_assert_eq(traced("last-stale", "\"text\":\""), left_for_it);
	unlink(trace);
}

Test(ahead, what_is_written_is_told_while_the_target_is_waited_for)
{
	is_tracked();
	waits = true;
	check_arrived(3 * CHUNK, 100, "hybrid");
	cr_assert(moving.same, "the target has other bytes than the source");
	cr_assert(seen_waiting, "nothing was collected as long as the target took its time");
}

Test(ahead, looks_for_what_is_written_cost_the_vm_little)
{
	const double fault_ns = 6500;

	cr_assert_geq(source_stale_rest_ns(0, 0, fault_ns, 1), 1000000);
	cr_assert_lt(source_stale_rest_ns(0, 0, fault_ns, 1), 10000000);
	cr_assert_geq(source_stale_rest_ns(10000000, 0, fault_ns, 1), 80000000);
	/* Faults of 65 ms, on one vCPU or spread over four. */
	cr_assert_geq(source_stale_rest_ns(0, 10000, fault_ns, 1), 650000000);
	cr_assert_geq(source_stale_rest_ns(0, 10000, fault_ns, 4), 162000000);
	cr_assert_lt(source_stale_rest_ns(0, 10000, fault_ns, 4), 200000000);
}

Test(ahead, tracking_ends_with_a_cancel)
{
	struct jaunt_error error = {0};

	is_tracked();
	cancels = AHEAD;
	check_stays_in("hybrid", JAUNT_CANCELLED, "cancelled", &error);
	cr_assert_eq(starts, 1);
	cr_assert_eq(stops, 1);
	cr_assert_null(strstr(error.text, "tracking"), "%s", error.text);
}

Test(ahead, tracking_ends_with_a_failure)
{
	struct jaunt_error error = {0};

	is_tracked();
	fails = LOAD_AHEAD;
	check_stays_in("hybrid", JAUNT_FAILED, "no-luck", &error);
	cr_assert_eq(starts, 1);
	cr_assert_eq(stops, 1);
}

Test(ahead, whoever_cancels_hears_that_tracking_could_not_be_ended)
{
	struct jaunt_error error = {0};

	is_tracked();
	cancels = AHEAD;
	stop_fails = 1;
	check_stays_in("hybrid", JAUNT_CANCELLED, "cancelled", &error);
	cr_assert(strstr(error.text, "cancelled; "), "%s", error.text);
	cr_assert(strstr(error.text, "no memory to stop it"), "%s", error.text);
	cr_assert_eq(stops, 2, "it is tried again");
}

Test(ahead, is_kept_for_a_driver_that_loads_all_at_once)
{
	there.load_ahead = NULL;
	check_arrived(2 * CHUNK + 5, CHUNK + 6, "stop-and-copy");
}

Test(ahead, that_does_not_end_is_ended)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(2 * (size_t)FULL, 10, "post-copy", &error), JAUNT_DONE, "%s", error.text);
	cr_assert(right);
	cr_assert_leq(ahead, FULL);
	cr_assert_geq(ahead, FULL - 2 * CHUNK);
}

Test(ahead, that_cannot_begin_ends_the_migration)
{
	fails = BEGIN;
	check_stays(JAUNT_FAILED, "no-luck");
}

Test(ahead, that_cannot_be_saved_ends_the_migration)
{
	fails = AHEAD;
	check_stays(JAUNT_FAILED, "no-luck");
}

Test(ahead, that_cannot_be_loaded_ends_the_migration)
{
	fails = LOAD_AHEAD;
	check_stays(JAUNT_FAILED, "no-luck");
}

Test(ahead, is_given_up_with_the_migration_while_it_is_saved)
{
	cancels = AHEAD;
	check_stays(JAUNT_CANCELLED, "cancelled");
}

Test(ahead, is_given_up_with_the_migration_while_it_is_loaded)
{
	cancels = LOAD_AHEAD;
	check_stays(JAUNT_CANCELLED, "cancelled");
}
