/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/explain.h"

#include <stdlib.h>
#include <string.h>

#include "cli/text.h"

#define MB 1e6

static json_t *way_json(const struct jaunt_prediction *way)
{
	return json_pack("{s:b, s:i, s:o, s:o, s:o, s:o}", "in_limits", way->in_limits, "rounds",
			 (int)way->rounds, "downtime_ms", text_real(way->downtime_ms), "stall_ms",
			 text_real(way->stall_ms), "total_ms", text_real(way->total_ms), "cost_ms",
			 text_real(way->cost_ms));
}

json_t *explain_decision_json(const struct jaunt_decision *decision)
{
	json_t *object = json_pack(
		"{s:o, s:i, s:b, s:I, s:I, s:o, s:o, s:o, s:o, s:s, s:s, s:i, s:o}", "at_ms",
		text_real(decision->at_ms), "round", (int)decision->round, "round_ended",
		decision->round_ended, "left_bytes", (json_int_t)decision->left_bytes,
		"dirty_bytes", (json_int_t)decision->dirty_bytes, "dirty_bytes_per_s",
		text_real(decision->dirty_bytes_per_s), "dirty_confidence",
		text_real(decision->dirty_confidence), "working_set_bytes",
		text_real(decision->working_set_bytes), "bandwidth_bytes_per_s",
		text_real(decision->bandwidth_bytes_per_s), "action", decision->action, "way",
		decision->way, "throttle", (int)decision->throttle, "reason",
		text_json(decision->reason));
	json_t *ways = json_object();

	for (unsigned i = 0; i < JAUNT_WAYS; i++)
		if (decision->ways[i].allowed)
			json_object_set_new(ways, decision->ways[i].way,
					    way_json(&decision->ways[i]));
	json_object_set_new(object, "ways", ways);
	return object;
}

json_t *explain_json(struct jaunt_migration *migration)
{
	struct jaunt_decision *decisions = calloc(JAUNT_DECISIONS_MAX, sizeof(*decisions));
	json_t *array = json_array();
	size_t count = 0;

	if (decisions && migration)
		count = jaunt_migration_decisions(migration, 0, decisions, JAUNT_DECISIONS_MAX);
	for (size_t i = 0; i < count; i++)
		json_array_append_new(array, explain_decision_json(&decisions[i]));
	free(decisions);
	return array;
}

static double number(const json_t *object, const char *name)
{
	return json_number_value(json_object_get(object, name));
}

/* What a way would cost, or a dash where the mode does not allow it. */
static void print_way(FILE *out, const json_t *decision, const char *way, const char *figure)
{
	const json_t *prediction = json_object_get(json_object_get(decision, "ways"), way);

	if (prediction)
		fprintf(out, " %9.1f%c", number(prediction, figure),
			json_is_true(json_object_get(prediction, "in_limits")) ? ' ' : '!');
	else
		fprintf(out, " %9s ", "-");
}

static const char *text(const json_t *object, const char *name)
{
	const char *value = json_string_value(json_object_get(object, name));
	return value ? value : "";
}

void explain_print(FILE *out, const json_t *decisions)
{
	const json_t *decision;
	size_t i;

	if (!json_array_size(decisions)) {
		fprintf(out, "nothing was decided: this mode has no choice\n");
		return;
	}
	fprintf(out, "%9s %5s %9s %9s %9s %5s %9s %9s %10s %10s %10s  %s\n", "", "", "left",
		"dirty", "writes", "", "of", "link", "finish now", "switch now", "rounds", "");
	fprintf(out, "%9s %5s %9s %9s %9s %5s %9s %9s %10s %10s %10s  %s\n", "at ms", "round", "MB",
		"MB", "MB/s", "sure", "MB", "MB/s", "down, ms", "stall, ms", "cost, ms",
		"decision");
	json_array_foreach ((json_t *)decisions, i, decision) {
		bool ended = json_is_true(json_object_get(decision, "round_ended"));
		const json_t *finish =
			json_object_get(json_object_get(decision, "ways"), "rounds+finish");
		fprintf(out, "%9.1f %4.0f%c %9.1f %9.1f %9.1f %4.0f%% %9.1f %9.1f",
			number(decision, "at_ms"), number(decision, "round"), ended ? '.' : ' ',
			number(decision, "left_bytes") / MB, number(decision, "dirty_bytes") / MB,
			number(decision, "dirty_bytes_per_s") / MB,
			number(decision, "dirty_confidence") * 100,
			number(decision, "working_set_bytes") / MB,
			number(decision, "bandwidth_bytes_per_s") / MB);
		print_way(out, decision, "finish", "downtime_ms");
		print_way(out, decision, "switch", "stall_ms");
		print_way(out, decision, finish ? "rounds+finish" : "rounds+switch", "cost_ms");
		fprintf(out, "  %s: %s\n", text(decision, "action"), text(decision, "reason"));
	}
	fprintf(out, "A dot: the round has ended. An exclamation mark: a limit would be broken.\n");
}
