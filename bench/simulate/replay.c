/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/simulate/replay.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/source/policy.h"

static double number(const json_t *object, const char *name)
{
	return json_number_value(json_object_get(object, name));
}

static uint64_t whole(const json_t *object, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(object, name));
}

static bool truth(const json_t *object, const char *name)
{
	return json_is_true(json_object_get(object, name));
}

static void read_limits(const json_t *object, struct policy_limits *limits)
{
	limits->downtime_ns = whole(object, "downtime_ns");
	limits->total_ns = whole(object, "total_ns");
	limits->timeout_ns = whole(object, "timeout_ns");
	limits->timeout_aborts = truth(object, "timeout_aborts");
	limits->max_rounds = (unsigned)whole(object, "max_rounds");
	limits->no_postcopy = truth(object, "no_postcopy");
	limits->throttle = truth(object, "throttle");
	limits->bandwidth = number(object, "bandwidth");
	limits->total_weight = number(object, "total_weight");
}

static void read_costs(const json_t *object, struct policy_costs *costs)
{
	costs->fault_ns = number(object, "fault_ns");
	costs->tracking_ns = number(object, "tracking_ns");
	costs->round_ns = number(object, "round_ns");
	costs->run_ns = number(object, "run_ns");
	costs->touches = number(object, "touches");
	costs->paused_speedup = number(object, "paused_speedup");
}

static void read_rounds(const json_t *array, struct policy_input *input)
{
	for (size_t i = 0; i < json_array_size(array) && i < POLICY_ROUNDS_KEPT; i++) {
		const json_t *round = json_array_get(array, i);
		struct policy_round *to = &input->rounds[input->round_count++];
		to->duration_ns = (uint64_t)json_integer_value(json_array_get(round, 0));
		to->sent_bytes = (uint64_t)json_integer_value(json_array_get(round, 1));
		to->dirtied_bytes = (uint64_t)json_integer_value(json_array_get(round, 2));
	}
}

static bool read_input(const json_t *object, struct policy_input *input)
{
	const char *mode = json_string_value(json_object_get(object, "mode"));

	memset(input, 0, sizeof(*input));
	if (!mode || !policy_mode_parse(mode, &input->mode))
		return false;
	read_limits(json_object_get(object, "limits"), &input->limits);
	read_costs(json_object_get(object, "costs"), &input->costs);
	input->elapsed_ns = whole(object, "elapsed_ns");
	input->round = (unsigned)whole(object, "round");
	input->round_ended = truth(object, "round_ended");
	input->switch_requested = truth(object, "switch_requested");
	input->can_track = truth(object, "can_track");
	input->can_throttle = truth(object, "can_throttle");
	input->throttle = (unsigned)whole(object, "throttle");
	input->ram_bytes = whole(object, "ram_bytes");
	input->data_bytes = whole(object, "data_bytes");
	input->page_bytes = whole(object, "page_bytes");
	input->vcpus = (unsigned)whole(object, "vcpus");
	input->left_bytes = whole(object, "left_bytes");
	input->dirty_bytes = whole(object, "dirty_bytes");
	input->bandwidth = number(object, "bandwidth");
	input->bandwidth_confidence = number(object, "bandwidth_confidence");
	input->dirty_rate = number(object, "dirty_rate");
	input->dirty_confidence = number(object, "dirty_confidence");
	input->working_set = number(object, "working_set");
	input->round_trip_ns = number(object, "round_trip_ns");
	input->device_ns = number(object, "device_ns");
	input->horizon_ns = number(object, "horizon_ns");
	input->watched = truth(object, "watched");
	input->since_collect_ns = whole(object, "since_collect_ns");
	read_rounds(json_object_get(object, "rounds"), input);
	return true;
}

static void replay_line(const json_t *line, FILE *out, struct replay_count *count)
{
	struct policy_input input;
	struct policy_decision decision;
	const char *what = json_string_value(json_object_get(line, "what"));
	const char *action = json_string_value(json_object_get(line, "action"));
	const char *reason = json_string_value(json_object_get(line, "reason"));

	if (!what || strcmp(what, "decision") != 0)
		return;
	if (!action || !reason || !read_input(json_object_get(line, "input"), &input)) {
		count->broken++;
		return;
	}
	count->decisions++;
	policy_decide(&input, &decision);
	bool same = strcmp(action, policy_action_name(decision.action)) == 0;
	count->different += !same;
	fprintf(out, "%10.1f ms  round %2u%c  %-8s  %s\n", (double)input.elapsed_ns / 1e6,
		input.round, input.round_ended ? '.' : ' ', policy_action_name(decision.action),
		decision.reason);
	if (!same)
		fprintf(out, "%34s%-8s  %s\n", "recorded: ", action, reason);
}

int replay_file(const char *path, FILE *out, struct replay_count *count)
{
	FILE *file = fopen(path, "re");
	char *line = NULL;
	size_t room = 0;

	memset(count, 0, sizeof(*count));
	if (!file)
		return -errno;
	while (getline(&line, &room, file) > 0) {
		json_t *object = json_loads(line, 0, NULL);
		if (json_is_object(object))
			replay_line(object, out, count);
		else
			count->broken++;
		json_decref(object);
	}
	int result = ferror(file) ? -EIO : 0;
	free(line);
	fclose(file);
	return result;
}
