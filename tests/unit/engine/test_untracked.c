/* SPDX-License-Identifier: Apache-2.0 */
/* A driver that shows a sample of the guest's writes, and then finds that it cannot track them.
 * Both sides are in this process; neither has a vCPU. */
#include <criterion/criterion.h>
#include <errno.h>

#include "base/error.h"
#include "fault/soft_dirty.h"
#include "moving.h"

TestSuite(untracked, .timeout = 60);

enum { PAGES = 8192 };

static unsigned looks, starts;
static bool sampling;

/* --- As a driver has it ------------------------------------------------------------------------
 */

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
					 .describe = moving_describe,
					 .pause = moving_pause,
					 .save = moving_save,
					 .load = moving_load,
					 .resume = moving_resume,
					 .userfaultfd = no_userfaultfd,
					 .track_start = start,
					 .track_collect = collect,
					 .track_stop = stop,
					 .track_sample = sample,
					 .track_sampled = sampled};

static const struct jaunt_vm_ops there = {.driver = "untracked",
					  .describe = moving_describe,
					  .pause = moving_pause,
					  .save = moving_save,
					  .load = moving_load,
					  .resume = moving_resume};

/* --- Moving it ---------------------------------------------------------------------------------
 */

/* The source's outcome. */
static int move(const struct jaunt_options *options, struct jaunt_error *error)
{
	if (soft_dirty_supported())
		cr_skip_test("this kernel has soft-dirty bits: the VM can be tracked");
	int outcome = moving_move(&here, &there, PAGES, options, error);
	cr_assert_gt(looks, 0, "no sample was looked at: nothing is tested");
	cr_assert_not(sampling, "the sample is to be off");
	return outcome;
}

static void check_moves(const struct jaunt_options *options)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(options, &error), JAUNT_DONE, "%s", error.text);
	cr_assert_eq(moving.arrived, JAUNT_DONE, "%s", moving.arrived_with.text);
	cr_assert_eq(moving.target.resumed, 1);
	cr_assert_eq(moving.source.resumed, 0);
	cr_assert(moving.same, "the target has other bytes than the source");
}

static void check_stays(const struct jaunt_options *options, const char *reason)
{
	struct jaunt_error error = {0};

	cr_assert_eq(move(options, &error), JAUNT_FAILED);
	cr_assert_str_eq(error.reason, reason, "%s: %s", error.reason, error.text);
	cr_assert_neq(moving.arrived, JAUNT_DONE);
	cr_assert_eq(moving.target.resumed, 0);
}

static struct jaunt_options in_mode(const char *mode)
{
	struct jaunt_options options;

	jaunt_options_init(&options);
	options.mode = mode;
	return options;
}

Test(untracked, a_mode_that_is_free_does_without_rounds)
{
	struct jaunt_options options = in_mode("auto");

	check_moves(&options);
	cr_assert_eq(starts, 1);
}

Test(untracked, so_it_does_where_post_copy_is_forbidden_and_a_stop_is_short)
{
	struct jaunt_options options = in_mode("auto");

	options.no_post_copy = true;
	options.downtime_limit_ms = 60000;
	check_moves(&options);
}

Test(untracked, where_it_would_be_long_the_vm_stays)
{
	struct jaunt_options options = in_mode("auto");

	options.no_post_copy = true;
	options.downtime_limit_ms = 10;
	options.bandwidth_bytes_per_s = 10000000;
	check_stays(&options, "limits");
	cr_assert_eq(starts, 1);
}

Test(untracked, a_mode_of_rounds_fails_and_says_why)
{
	struct jaunt_options options = in_mode("pre-copy");

	check_stays(&options, "no-tracker");
	cr_assert_eq(starts, 1);
}

Test(untracked, so_does_one_that_ends_with_a_switch)
{
	struct jaunt_options options = in_mode("hybrid");

	check_stays(&options, "no-tracker");
	cr_assert_eq(starts, 1);
}
