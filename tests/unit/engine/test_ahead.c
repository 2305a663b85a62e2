/* SPDX-License-Identifier: Apache-2.0 */
/* A driver that saves a part of its VM's state while the VM runs. Both sides are in this process;
 * neither has a vCPU. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "jaunt.h"

TestSuite(ahead, .timeout = 60);

enum { PAGE = 4096, PAGES = 64, CHUNK = 1 << 20, FULL = 64 << 20 };

enum step { NOTHING, BEGIN, AHEAD, LOAD_AHEAD };

struct vm {
	struct jaunt_region region;
	unsigned resumed;
};

static struct vm source, target;
static struct jaunt_migration *departure, *arrival;
static enum step fails, cancels;
static size_t wanted;           /* bytes that are to be saved ahead */
static size_t rest;             /* and in the pause */
static size_t told;             /* bytes given to the engine */
static _Atomic size_t ahead;    /* loaded while the VM ran */
static _Atomic size_t taken;    /* checked, in all */
static _Atomic bool stands;     /* the VM, at the source */
static size_t taken_when_still; /* of it, when pause() was called */
static bool began, right;
/* Of a VM that writes page after page meanwhile. */
static bool writes;
static uint64_t written;     /* pages, since the start */
static uint64_t collected;   /* of them */
static unsigned looks;       /* collects while state went ahead that told of any */
static uint64_t left_for_it; /* pages told by the one in the pause */

/* What the state has at that place. */
static uint8_t byte_at(size_t at)
{
	return (uint8_t)(at * 2654435761u >> 11 ^ at);
}

static void vm_open(struct vm *vm)
{
	struct jaunt_region ram = {.name = "ram", .bytes = PAGES * PAGE, .page_bytes = PAGE};

	ram.fd = memfd_create("ahead", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(ram.fd, PAGES * PAGE), 0);
	ram.view = mmap(NULL, ram.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	cr_assert_neq(ram.view, MAP_FAILED);
	*vm = (struct vm){.region = ram};
}

static void vm_close(struct vm *vm)
{
	munmap(vm->region.view, vm->region.bytes);
	close(vm->region.fd);
}

/* --- As a driver has it ------------------------------------------------------------------------
 */

static int describe(void *context, struct jaunt_description *out, struct jaunt_error *error)
{
	struct vm *vm = context;

	(void)error;
	*out = (struct jaunt_description){.name = "vm", .regions = &vm->region, .region_count = 1};
	return 0;
}

static int fail(struct jaunt_error *error)
{
	return error_set(error, EIO, "no-luck", "it went wrong");
}

static void maybe_cancel(enum step step)
{
	if (cancels == step)
		cr_expect_eq(jaunt_migration_cancel(departure, NULL), 0);
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
	for (unsigned i = 0; i < 3; i++, written++)
		memset((char *)source.region.view + written % PAGES * PAGE, (int)(written % 251),
		       PAGE);
	usleep(2000);
}

static int track_start(void *context, struct jaunt_error *error)
{
	(void)context, (void)error;
	return 0;
}

static int track_collect(void *context, jaunt_dirty_run *emit, void *to, struct jaunt_error *error)
{
	(void)context, (void)error;
	looks += began && !stands && collected < written;
	if (stands)
		left_for_it = written - collected;
	for (; collected < written; collected++)
		emit(to, 0, collected % PAGES, 1);
	return 0;
}

static int track_stop(void *context, struct jaunt_error *error)
{
	(void)context, (void)error;
	return 0;
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
	if (writes && looks < LOOKS) {
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

static int load_ahead(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	(void)context;
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

static int run(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	struct vm *vm = context;

	(void)error;
	*when_ns = clock_ns();
	vm->resumed++;
	return 0;
}

static struct jaunt_vm_ops there = {.driver = "ahead",
				    .describe = describe,
				    .pause = stand_still,
				    .save = save,
				    .load = load,
				    .resume = run,
				    .save_begin = save_begin,
				    .save_ahead = save_ahead,
				    .load_ahead = load_ahead};

static int create(void *context, const struct jaunt_description *asked, void **vm,
		  struct jaunt_error *error)
{
	(void)asked, (void)error;
	*vm = context;
	return 0;
}

static void destroy(void *context, void *vm)
{
	(void)context, (void)vm;
}

/* --- Moving it ---------------------------------------------------------------------------------
 */

static int arrived;
static bool same; /* the memory of both, in the end */
static struct jaunt_error arrived_with;

static void *arrive(void *ignored)
{
	(void)ignored;
	arrived = jaunt_migration_run(arrival, &arrived_with);
	return NULL;
}

/* The source's outcome. */
static int move(size_t bytes_ahead, size_t bytes_rest, const char *mode, struct jaunt_error *error)
{
	const struct jaunt_vm_factory factory = {
		.ops = &there, .create = create, .destroy = destroy};
	struct jaunt_options options;
	pthread_t thread;
	char peer[64];

	wanted = bytes_ahead;
	rest = bytes_rest;
	right = true;
	vm_open(&source);
	vm_open(&target);
	memset(source.region.view, 7, source.region.bytes);
	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0";
	cr_assert_eq(jaunt_target_open(&arrival, &factory, &target, &options, error), 0, "%s",
		     error->text);
	pthread_create(&thread, NULL, arrive, NULL);
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(arrival));
	options.peer = peer;
	options.mode = mode;
	cr_assert_eq(jaunt_source_open(&departure, &there, &source, &options, error), 0, "%s",
		     error->text);
	int outcome = jaunt_migration_run(departure, error);
	pthread_join(thread, NULL);
	same = memcmp(source.region.view, target.region.view, source.region.bytes) == 0;
	jaunt_migration_close(departure);
	jaunt_migration_close(arrival);
	vm_close(&source);
	vm_close(&target);
	return outcome;
}

static void check_arrived(size_t bytes_ahead, size_t bytes_rest, const char *mode)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(bytes_ahead, bytes_rest, mode, &error), JAUNT_DONE, "%s", error.text);
	cr_assert_eq(arrived, JAUNT_DONE, "%s", arrived_with.text);
	cr_assert(right, "the state is not what was saved, or was asked for out of turn");
	cr_assert_eq(taken, bytes_ahead + bytes_rest);
	cr_assert_eq(target.resumed, 1);
	cr_assert_eq(source.resumed, 0);
}

static void check_stays(enum jaunt_outcome outcome, const char *reason)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(5 * CHUNK, 100, "post-copy", &error), outcome, "%s", error.text);
	cr_assert_str_eq(error.reason, reason);
	cr_assert_eq(arrived, outcome, "%s", arrived_with.text);
	cr_assert_not(stands, "it was stopped for nothing");
	cr_assert_eq(source.resumed, 1, "what was begun is to be taken back");
	cr_assert_eq(target.resumed, 0);
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

Test(ahead, what_is_written_meanwhile_is_told_meanwhile)
{
	writes = true;
	there.track_start = track_start;
	there.track_collect = track_collect;
	there.track_stop = track_stop;
	check_arrived(3 * CHUNK, 100, "hybrid");
	cr_assert(same, "the target has other bytes than the source");
	cr_assert_geq(looks, LOOKS);
	cr_assert_gt(left_for_it, 0, "what was written last is told in the pause");
	cr_assert_lt(left_for_it, written, "all of it was");
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
