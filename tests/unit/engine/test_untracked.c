/* SPDX-License-Identifier: Apache-2.0 */
/* A driver that shows a sample of the guest's writes, and then finds that it cannot track them.
 * Both sides are in this process; neither has a vCPU. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "fault/soft_dirty.h"
#include "jaunt.h"

TestSuite(untracked, .timeout = 60);

enum { PAGE = 4096, PAGES = 8192 };

struct vm {
	struct jaunt_region region;
	unsigned resumed;
};

static struct vm source, target;
static struct jaunt_migration *departure, *arrival;
static unsigned looks, starts;
static bool sampling;

static void vm_open(struct vm *vm)
{
	struct jaunt_region ram = {
		.name = "ram", .bytes = (uint64_t)PAGES * PAGE, .page_bytes = PAGE};

	ram.fd = memfd_create("untracked", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(ram.fd, (off_t)ram.bytes), 0);
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

static int stand_still(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	(void)context, (void)error;
	*when_ns = clock_ns();
	return 0;
}

static int save(void *context, void **state, size_t *bytes, struct jaunt_error *error)
{
	(void)context, (void)error;
	*state = malloc(1);
	*bytes = 0;
	return 0;
}

static int load(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	(void)context, (void)state, (void)bytes, (void)error;
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

static int sample(void *context, unsigned every)
{
	(void)context, (void)every;
	sampling = true;
	return 0;
}

static int64_t sampled(void *context)
{
	(void)context;
	looks++;
	return 0;
}

static int start(void *context, struct jaunt_error *error)
{
	(void)context;
	starts++;
	return error_set(error, ENOTSUP, "no-tracker", "this VM's writes are not noted");
}

static int collect(void *context, jaunt_dirty_run *emit, void *user, struct jaunt_error *error)
{
	(void)context, (void)emit, (void)user;
	return error_set(error, EPROTO, "bug", "what was not started is collected");
}

static int stop(void *context, struct jaunt_error *error)
{
	(void)context, (void)error;
	sampling = false;
	return 0;
}

static int no_userfaultfd(void *context, struct jaunt_error *error)
{
	(void)context;
	return error_set(error, ENOTSUP, "no-userfaultfd", "there is none");
}

static const struct jaunt_vm_ops here = {.driver = "untracked",
					 .describe = describe,
					 .pause = stand_still,
					 .save = save,
					 .load = load,
					 .resume = run,
					 .userfaultfd = no_userfaultfd,
					 .track_start = start,
					 .track_collect = collect,
					 .track_stop = stop,
					 .track_sample = sample,
					 .track_sampled = sampled};

static const struct jaunt_vm_ops there = {.driver = "untracked",
					  .describe = describe,
					  .pause = stand_still,
					  .save = save,
					  .load = load,
					  .resume = run};

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

static void *arrive(void *ignored)
{
	struct jaunt_error error = {0};

	(void)ignored;
	arrived = jaunt_migration_run(arrival, &error);
	return NULL;
}

/* The source's outcome. */
static int move(const char *mode, bool no_post_copy, struct jaunt_error *error)
{
	const struct jaunt_vm_factory factory = {
		.ops = &there, .create = create, .destroy = destroy};
	struct jaunt_options options;
	pthread_t thread;
	char peer[64];

	if (soft_dirty_supported())
		cr_skip_test("this kernel has soft-dirty bits: the VM can be tracked");
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
	options.no_post_copy = no_post_copy;
	cr_assert_eq(jaunt_source_open(&departure, &here, &source, &options, error), 0, "%s",
		     error->text);
	int outcome = jaunt_migration_run(departure, error);
	pthread_join(thread, NULL);
	jaunt_migration_close(departure);
	jaunt_migration_close(arrival);
	cr_assert_gt(looks, 0, "no sample was looked at: nothing is tested");
	cr_assert_eq(starts, 1);
	cr_assert_not(sampling, "the sample is to be off");
	return outcome;
}

static void close_both(void)
{
	vm_close(&source);
	vm_close(&target);
}

static void check_stays(const char *mode, bool no_post_copy, const char *reason)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(mode, no_post_copy, &error), JAUNT_FAILED);
	cr_assert_str_eq(error.reason, reason, "%s: %s", error.reason, error.text);
	cr_assert_neq(arrived, JAUNT_DONE);
	cr_assert_eq(target.resumed, 0);
	close_both();
}

Test(untracked, a_mode_that_is_free_does_without_rounds)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move("auto", false, &error), JAUNT_DONE, "%s", error.text);
	cr_assert_eq(arrived, JAUNT_DONE);
	cr_assert_eq(target.resumed, 1);
	cr_assert_eq(source.resumed, 0);
	cr_assert_arr_eq(source.region.view, target.region.view, source.region.bytes);
	close_both();
}

Test(untracked, a_mode_of_rounds_fails_and_says_why)
{
	check_stays("pre-copy", false, "no-tracker");
}

Test(untracked, so_does_one_that_ends_with_a_switch)
{
	check_stays("hybrid", false, "no-tracker");
}
