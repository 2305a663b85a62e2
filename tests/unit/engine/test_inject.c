/* SPDX-License-Identifier: Apache-2.0 */
/* Built with JAUNT_INJECT whatever the option says: this file includes what it tests. */
#ifndef JAUNT_INJECT
#define JAUNT_INJECT
#endif
#include "engine/inject.c"

#include <criterion/criterion.h>
#include <sys/wait.h>

static void configure(const char *text)
{
	struct jaunt_error error = {0};
	cr_assert_eq(inject_configure(text, &error), 0, "%s", error.text);
}

/* Which of the first 16 passes fire, the first in the lowest bit. */
static unsigned pattern(enum inject_point point)
{
	unsigned fired = 0;
	for (unsigned pass = 0; pass < 16; pass++)
		fired |= (unsigned)inject_fires(point) << pass;
	return fired;
}

Test(inject, nothing_fires_when_nothing_is_asked_for)
{
	configure(NULL);
	for (int point = 0; point < INJECT_POINTS; point++) {
		cr_assert_not(inject_armed(point));
		cr_assert_eq(pattern(point), 0);
	}
	configure("");
	cr_assert_eq(pattern(INJECT_DATA_FLIP), 0);
}

Test(inject, a_bare_point_fires_once_on_its_first_pass_and_no_other_point_does)
{
	configure("data.flip");
	cr_assert(inject_armed(INJECT_DATA_FLIP));
	cr_assert_eq(pattern(INJECT_DATA_FLIP), 0x0001);
	cr_assert_eq(pattern(INJECT_DATA_TEAR), 0);
	cr_assert_eq(inject_fired(INJECT_DATA_FLIP), 1);
}

Test(inject, nth_every_and_count_choose_the_passes)
{
	const struct {
		const char *keys;
		unsigned passes;
	} cases[] = {
		{"nth=5", 0x0010},
		{"every=4", 0x8888},
		{"count=3", 0x0007},
		{"nth=3,count=2", 0x000c},
		{"nth=2,every=4", 0x2222},
		{"every=4,count=2", 0x0088},
		{"nth=1,every=8,count=9", 0x0101},
		{"every=1", 0xffff},
		{"nth=17", 0x0000},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[64];
		snprintf(text, sizeof(text), "data.lose:%s", cases[i].keys);
		configure(text);
		cr_assert_eq(pattern(INJECT_DATA_LOSE), cases[i].passes, "%s", cases[i].keys);
	}
}

Test(inject, several_points_are_independent)
{
	configure("data.flip:nth=2;reply.delay:delay_us=1500,every=3;side.kill.postcopy:nth=9;");
	cr_assert_eq(pattern(INJECT_DATA_FLIP), 0x0002);
	cr_assert_eq(pattern(INJECT_REPLY_DELAY), 0x4924);
	cr_assert_eq(inject_value(INJECT_REPLY_DELAY, INJECT_DELAY_US), 1500);
	cr_assert_eq(inject_value(INJECT_DATA_FLIP, INJECT_DELAY_US), 0);
	cr_assert(inject_armed(INJECT_KILL_POSTCOPY));
	cr_assert_not(inject_armed(INJECT_KILL_PREPARE));
}

Test(inject, a_point_for_the_other_side_never_fires)
{
	configure("source.data.flip:every=1;target.channel.cut:every=1;data.twice:every=1");
	inject_side(INJECT_TARGET);
	cr_assert_eq(pattern(INJECT_DATA_FLIP), 0);
	cr_assert_eq(pattern(INJECT_CHANNEL_CUT), 0xffff);
	cr_assert_eq(pattern(INJECT_DATA_TWICE), 0xffff);
	inject_side(INJECT_SOURCE);
	cr_assert_eq(pattern(INJECT_DATA_FLIP), 0xffff);
	cr_assert_eq(pattern(INJECT_CHANNEL_CUT), 0);
	inject_side(INJECT_ANY_SIDE);
	cr_assert_eq(pattern(INJECT_CHANNEL_CUT), 0xffff);
}

Test(inject, a_hold_ends_at_its_time_or_never)
{
	configure("side.hold.prepare:nth=2;side.hold.switchover:delay_us=1000000");
	cr_assert_eq(inject_hold_until_ns(INJECT_HOLD_PREPARE), 0);
	cr_assert_eq(inject_hold_until_ns(INJECT_HOLD_PREPARE), UINT64_MAX);
	cr_assert_eq(inject_hold_until_ns(INJECT_HOLD_PREPARE), 0);
	uint64_t before = clock_ns(), until = inject_hold_until_ns(INJECT_HOLD_SWITCHOVER);
	cr_assert_geq(until, before + 1000000000);
	cr_assert_leq(until, clock_ns() + 1000000000);
	cr_assert_eq(inject_hold_until_ns(INJECT_HOLD_BEFORE_COMMIT), 0);
}

Test(inject, an_unknown_point_is_refused_with_the_known_ones)
{
	struct jaunt_error error = {0};
	cr_assert_eq(inject_configure("data.flop:nth=1", &error), -EINVAL);
	cr_assert(strstr(error.text, "\"data.flop\""));
	for (int point = 0; point < INJECT_POINTS; point++)
		cr_assert(strstr(error.text, point_names[point]), "%s", point_names[point]);
	cr_assert_eq(inject_configure("source.", &error), -EINVAL);
	cr_assert_eq(inject_configure(":nth=1", &error), -EINVAL);
}

Test(inject, an_unknown_key_is_refused_with_the_known_ones)
{
	struct jaunt_error error = {0};
	cr_assert_eq(inject_configure("data.flip:nht=1", &error), -EINVAL);
	cr_assert(strstr(error.text, "\"nht\""));
	for (int key = 0; key < INJECT_KEYS; key++)
		cr_assert(strstr(error.text, key_names[key]), "%s", key_names[key]);
}

Test(inject, a_value_that_is_no_number_is_refused)
{
	const char *wrong[] = {"nth",
			       "nth=",
			       "nth=x",
			       "nth=1x",
			       "nth=-1",
			       "nth= 1",
			       "nth=99999999999999999999999"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct jaunt_error error = {0};
		char text[64];
		snprintf(text, sizeof(text), "data.flip:%s", wrong[i]);
		cr_assert_eq(inject_configure(text, &error), -EINVAL, "%s", wrong[i]);
		cr_assert_str_eq(error.reason, "usage");
	}
}

Test(inject, a_refused_text_leaves_what_was_armed)
{
	configure("data.flip:every=1");
	cr_assert_eq(inject_configure("data.tear;nonsense", NULL), -EINVAL);
	cr_assert_eq(pattern(INJECT_DATA_FLIP), 0xffff);
	cr_assert_not(inject_armed(INJECT_DATA_TEAR));
}

Test(inject, is_configured_by_the_environment_once)
{
	setenv("JAUNT_INJECT", "data.twice:nth=2", 1);
	cr_assert_eq(inject_init(NULL), 0);
	cr_assert_eq(pattern(INJECT_DATA_TWICE), 0x0002);
	setenv("JAUNT_INJECT", "nonsense", 1);
	cr_assert_eq(inject_init(NULL), 0);
}

Test(inject, tells_of_a_wrong_environment_every_time)
{
	struct jaunt_error error = {0};
	setenv("JAUNT_INJECT", "nonsense", 1);
	cr_assert_eq(inject_init(NULL), -EINVAL);
	cr_assert_eq(inject_init(&error), -EINVAL);
	cr_assert(strstr(error.text, "nonsense"));
}

Test(inject, the_same_seed_gives_the_same_numbers_and_another_one_others)
{
	uint64_t first[4], again[4], other[4];
	uint64_t *into[] = {first, again, other};
	const char *texts[] = {"data.flip:every=1,seed=7", "data.flip:every=1,seed=7",
			       "data.flip:every=1,seed=8"};
	for (int i = 0; i < 3; i++) {
		configure(texts[i]);
		for (int k = 0; k < 4; k++) {
			inject_fires(INJECT_DATA_FLIP);
			into[i][k] = inject_random(INJECT_DATA_FLIP);
		}
	}
	cr_assert_arr_eq(first, again, sizeof(first));
	cr_assert_arr_neq(first, other, sizeof(first));
	cr_assert_neq(first[0], first[1]);
}

Test(inject, kill_ends_the_process_on_the_pass_that_fires)
{
	int status;
	configure("side.kill.before-commit:nth=2");
	pid_t child = fork();
	if (!child) {
		inject_kill(INJECT_KILL_BEFORE_COMMIT);
		inject_kill(INJECT_KILL_AFTER_COMMIT);
		if (inject_fired(INJECT_KILL_BEFORE_COMMIT))
			_exit(1);
		inject_kill(INJECT_KILL_BEFORE_COMMIT);
		_exit(2);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFSIGNALED(status));
	cr_assert_eq(WTERMSIG(status), SIGKILL);
}

struct racer {
	pthread_t thread;
	unsigned fired;
};

static void *race(void *argument)
{
	struct racer *racer = argument;
	for (int i = 0; i < 10000; i++)
		racer->fired += inject_fires(INJECT_DATA_FLIP);
	return NULL;
}

Test(inject, exactly_one_of_many_threads_is_the_nth)
{
	struct racer racers[4] = {0};
	unsigned fired = 0;

	configure("data.flip:nth=20000");
	for (int i = 0; i < 4; i++)
		pthread_create(&racers[i].thread, NULL, race, &racers[i]);
	for (int i = 0; i < 4; i++) {
		pthread_join(racers[i].thread, NULL);
		fired += racers[i].fired;
	}
	cr_assert_eq(fired, 1);
}
