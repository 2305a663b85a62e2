/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/decision.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/trace.h"

static struct policy_input input;
static struct policy_decision decision;

static void fill_input(void)
{
	memset(&input, 0, sizeof(input));
	policy_limits_init(&input.limits);
	policy_costs_init(&input.costs);
	input.can_track = true;
	input.ram_bytes = input.data_bytes = 1 << 30;
	input.left_bytes = 1 << 30;
	input.vcpus = 2;
	input.bandwidth = 1e9;
	input.dirty_rate = 1e8;
	input.dirty_confidence = 0.75;
	input.working_set = 2e8;
}

TestSuite(decision, .init = fill_input, .timeout = 60);

Test(decision, its_members_are_those_of_a_json_object_with_all_that_went_in)
{
	char text[TRACE_MEMBERS_MAX], object[TRACE_MEMBERS_MAX + 4];
	const char *action, *mode;
	json_int_t left;
	double rate, stall;

	input.round_count = POLICY_ROUNDS_KEPT;
	for (unsigned i = 0; i < POLICY_ROUNDS_KEPT; i++)
		input.rounds[i] = (struct policy_round){INT64_MAX, INT64_MAX, INT64_MAX};
	policy_decide(&input, &decision);
	cr_assert_gt(decision_members(&input, &decision, text, sizeof(text)), 0);
	snprintf(object, sizeof(object), "{%s}", text);
	json_t *parsed = json_loads(object, 0, NULL);
	cr_assert_not_null(parsed, "%s", object);
	cr_assert_eq(json_unpack(parsed, "{s:s, s:{s:s, s:I, s:F}, s:{s:{s:F}}}", "action", &action,
				 "input", "mode", &mode, "left_bytes", &left, "dirty_rate", &rate,
				 "ways", "switch", "stall_ns", &stall),
		     0, "%s", object);
	cr_assert_str_eq(action, policy_action_name(decision.action));
	cr_assert_str_eq(mode, "auto");
	cr_assert_eq(left, 1 << 30);
	cr_assert_float_eq(rate, 1e8, 1);
	cr_assert_float_eq(stall, decision.ways[POLICY_WAY_SWITCH].stall_ns, 1);
	json_decref(parsed);
	cr_assert_eq(decision_members(&input, &decision, text, 100), 0, "there was no room");
}

Test(decision, only_what_says_something_new_is_kept)
{
	struct jaunt_migration migration = {.lane = NULL};
	struct decisions decisions = {0};
	struct jaunt_decision kept[8];

	pthread_mutex_init(&migration.mutex, NULL);
	for (unsigned i = 0; i < 5; i++) {
		decisions_make(&decisions, &migration, &input, &decision);
		input.left_bytes -= 1 << 20;
	}
	cr_assert_eq(jaunt_migration_decisions(&migration, 0, kept, 8), 1);
	input.left_bytes = 0;
	input.round_ended = true;
	decisions_make(&decisions, &migration, &input, &decision);
	cr_assert_eq(jaunt_migration_decisions(&migration, 1, kept, 8), 1);
	cr_assert(kept[0].round_ended);
	cr_assert_str_eq(kept[0].action, policy_action_name(decision.action));
	cr_assert_str_eq(kept[0].reason, decision.reason);
	for (unsigned i = 0; i < 2 * JAUNT_DECISIONS_MAX; i++)
		decisions_make(&decisions, &migration, &input, &decision);
	cr_assert_eq(jaunt_migration_decisions(&migration, JAUNT_DECISIONS_MAX - 1, kept, 8), 1);
	cr_assert_eq(jaunt_migration_decisions(&migration, JAUNT_DECISIONS_MAX, kept, 8), 0);
	pthread_mutex_destroy(&migration.mutex);
	free(migration.decisions);
}
