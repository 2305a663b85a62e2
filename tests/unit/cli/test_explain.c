/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/explain.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static struct jaunt_decision decision;

static void fill(void)
{
	decision = (struct jaunt_decision){
		.at_ms = 1234.5,
		.round = 3,
		.round_ended = true,
		.dirty_bytes = 7000000,
		.dirty_bytes_per_s = 50e6,
		.dirty_confidence = 0.75,
		.action = "switch",
		.way = "switch",
		.reason = "it does not pay",
		.ways = {{.way = "finish", .allowed = true, .downtime_ms = 900},
			 {.way = "rounds+finish"},
			 {.way = "switch", .allowed = true, .in_limits = true, .stall_ms = 42.5},
			 {.way = "rounds+switch"}},
	};
}

static char *table_of(json_t *decisions)
{
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	explain_print(out, decisions);
	fclose(out);
	return text;
}

TestSuite(explain, .init = fill, .timeout = 60);

Test(explain, a_decision_is_a_line_with_its_inputs_and_its_reason)
{
	json_t *decisions = json_array();

	json_array_append_new(decisions, explain_decision_json(&decision));
	char *text = table_of(decisions);
	cr_assert(strstr(text, "1234.5    3."), "%s", text);
	cr_assert(strstr(text, "900.0!"), "the limit is broken: %s", text);
	cr_assert(strstr(text, "42.5 "), "%s", text);
	cr_assert(strstr(text, "switch: it does not pay"), "%s", text);
	cr_assert(strstr(text, " - "), "what is not allowed: %s", text);
	free(text);
	json_decref(decisions);
}

Test(explain, without_a_migration_there_is_nothing_to_explain)
{
	json_t *decisions = explain_json(NULL);

	cr_assert_eq(json_array_size(decisions), 0);
	char *text = table_of(decisions);
	cr_assert(strstr(text, "no choice"), "%s", text);
	free(text);
	json_decref(decisions);
}

Test(explain, a_table_of_nonsense_is_printed_without_harm)
{
	json_t *decisions = json_pack("[{s:i}, i, {s:{s:i}}]", "at_ms", 1, 3, "ways", "finish", 2);

	cr_assert_not_null(decisions);
	free(table_of(decisions));
	json_decref(decisions);
	free(table_of(NULL));
}
