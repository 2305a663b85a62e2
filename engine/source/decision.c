/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/decision.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/trace.h"

#define MS_NS 1e6

/* Text that grows; `at` is past `bytes` when there was no room. */
struct text {
	char *start;
	size_t at, bytes;
};

static void __attribute__((format(printf, 2, 3))) add(struct text *text, const char *format, ...)
{
	va_list arguments;

	if (text->at >= text->bytes)
		return;
	va_start(arguments, format);
	int count = vsnprintf(text->start + text->at, text->bytes - text->at, format, arguments);
	va_end(arguments);
	text->at = count < 0 ? text->bytes : text->at + (size_t)count;
}

static const char *yes_no(bool value)
{
	return value ? "true" : "false";
}

static void add_limits(struct text *text, const struct policy_limits *limits)
{
	add(text,
	    "\"limits\":{\"downtime_ns\":%" PRIu64 ",\"total_ns\":%" PRIu64
	    ",\"timeout_ns\":%" PRIu64 ",\"timeout_aborts\":%s,\"max_rounds\":%u,"
	    "\"no_postcopy\":%s,\"throttle\":%s,\"bandwidth\":%.0f,\"total_weight\":%g},",
	    limits->downtime_ns, limits->total_ns, limits->timeout_ns,
	    yes_no(limits->timeout_aborts), limits->max_rounds, yes_no(limits->no_postcopy),
	    yes_no(limits->throttle), limits->bandwidth, limits->total_weight);
}

static void add_costs(struct text *text, const struct policy_costs *costs)
{
	add(text,
	    "\"costs\":{\"fault_ns\":%.0f,\"tracking_ns\":%.0f,\"round_ns\":%.0f,\"run_ns\":%g,"
	    "\"touches\":%g,\"paused_speedup\":%g},",
	    costs->fault_ns, costs->tracking_ns, costs->round_ns, costs->run_ns, costs->touches,
	    costs->paused_speedup);
}

static void add_state(struct text *text, const struct policy_input *input)
{
	add(text,
	    "\"elapsed_ns\":%" PRIu64 ",\"round\":%u,\"round_ended\":%s,\"switch_requested\":%s,"
	    "\"can_track\":%s,\"can_throttle\":%s,\"throttle\":%u,\"ram_bytes\":%" PRIu64
	    ",\"data_bytes\":%" PRIu64 ",\"page_bytes\":%" PRIu64
	    ",\"vcpus\":%u,\"left_bytes\":%" PRIu64 ",\"dirty_bytes\":%" PRIu64 ",",
	    input->elapsed_ns, input->round, yes_no(input->round_ended),
	    yes_no(input->switch_requested), yes_no(input->can_track), yes_no(input->can_throttle),
	    input->throttle, input->ram_bytes, input->data_bytes, input->page_bytes, input->vcpus,
	    input->left_bytes, input->dirty_bytes);
	add(text,
	    "\"bandwidth\":%.9g,\"bandwidth_confidence\":%.9g,\"dirty_rate\":%.9g,"
	    "\"dirty_confidence\":%.9g,\"working_set\":%.9g,\"round_trip_ns\":%.0f,"
	    "\"device_ns\":%.0f,\"horizon_ns\":%.0f,\"watched\":%s,\"since_collect_ns\":%" PRIu64
	    ",\"rounds\":[",
	    input->bandwidth, input->bandwidth_confidence, input->dirty_rate,
	    input->dirty_confidence, input->working_set, input->round_trip_ns, input->device_ns,
	    input->horizon_ns, yes_no(input->watched), input->since_collect_ns);
	for (unsigned i = 0; i < input->round_count && i < POLICY_ROUNDS_KEPT; i++)
		add(text, "%s[%" PRIu64 ",%" PRIu64 ",%" PRIu64 "]", i ? "," : "",
		    input->rounds[i].duration_ns, input->rounds[i].sent_bytes,
		    input->rounds[i].dirtied_bytes);
	add(text, "]");
}

static void add_ways(struct text *text, const struct policy_decision *decision)
{
	bool first = true;

	add(text, ",\"ways\":{");
	for (unsigned i = 0; i < POLICY_WAYS; i++) {
		const struct policy_prediction *way = &decision->ways[i];
		if (!way->allowed)
			continue;
		add(text,
		    "%s\"%s\":{\"in_limits\":%s,\"rounds\":%u,\"downtime_ns\":%.0f,\"stall_ns\":"
		    "%.0f,\"total_ns\":%.0f,\"cost_ns\":%.0f}",
		    first ? "" : ",", policy_way_name((enum policy_way)i), yes_no(way->in_limits),
		    way->rounds, way->downtime_ns, way->stall_ns, way->total_ns, way->cost_ns);
		first = false;
	}
	add(text, "}");
}

size_t decision_members(const struct policy_input *input, const struct policy_decision *decision,
			char *text, size_t bytes)
{
	struct text to = {.start = text, .bytes = bytes};

	/* Reasons and names are ours: nothing in them needs an escape. */
	add(&to, "\"action\":\"%s\",\"way\":\"%s\",\"code\":\"%s\",\"reason\":\"%s\",",
	    policy_action_name(decision->action),
	    decision->way < POLICY_WAYS ? policy_way_name(decision->way) : "", decision->code,
	    decision->reason);
	add(&to, "\"throttle_to\":%u", decision->throttle);
	add_ways(&to, decision);
	add(&to, ",\"input\":{\"mode\":\"%s\",", policy_mode_name(input->mode));
	add_limits(&to, &input->limits);
	add_costs(&to, &input->costs);
	add_state(&to, input);
	add(&to, "}");
	return to.at < to.bytes ? to.at : 0;
}

void decision_publish(const struct policy_input *input, const struct policy_decision *decision,
		      struct jaunt_decision *out)
{
	_Static_assert((int)JAUNT_WAYS == (int)POLICY_WAYS, "the same ways");
	_Static_assert(sizeof(out->reason) == POLICY_REASON_BYTES, "the same room");
	*out = (struct jaunt_decision){
		.at_ms = (double)input->elapsed_ns / MS_NS,
		.round = input->round,
		.round_ended = input->round_ended,
		.left_bytes = input->left_bytes,
		.dirty_bytes = input->dirty_bytes,
		.dirty_bytes_per_s = input->dirty_rate,
		.dirty_confidence = input->dirty_confidence,
		.working_set_bytes = input->working_set,
		.bandwidth_bytes_per_s = input->bandwidth,
		.action = policy_action_name(decision->action),
		.way = decision->way < POLICY_WAYS ? policy_way_name(decision->way) : "",
		.throttle = decision->throttle,
	};
	memcpy(out->reason, decision->reason, sizeof(out->reason));
	for (unsigned i = 0; i < POLICY_WAYS; i++) {
		const struct policy_prediction *way = &decision->ways[i];
		out->ways[i] = (struct jaunt_prediction){
			.way = policy_way_name((enum policy_way)i),
			.allowed = way->allowed,
			.in_limits = way->in_limits,
			.rounds = way->rounds,
			.downtime_ms = way->downtime_ns / MS_NS,
			.stall_ms = way->stall_ns / MS_NS,
			.total_ms = way->total_ns / MS_NS,
			.cost_ms = way->cost_ns / MS_NS,
		};
	}
}

static void trace_decision(struct trace_lane *lane, const struct policy_input *input,
			   const struct policy_decision *decision)
{
	char text[TRACE_MEMBERS_MAX];

	if (lane && decision_members(input, decision, text, sizeof(text)))
		trace_put_object(lane, "decision", text);
}

void decisions_make(struct decisions *decisions, struct jaunt_migration *migration,
		    const struct policy_input *input, struct policy_decision *decision)
{
	struct jaunt_decision published;

	policy_decide(input, decision);
	trace_decision(migration->lane, input, decision);
	if (decisions->any && !input->round_ended && decision->action == decisions->action &&
	    decision->way == decisions->way && decision->throttle == decisions->throttle)
		return;
	*decisions = (struct decisions){.any = true,
					.action = decision->action,
					.way = decision->way,
					.throttle = decision->throttle};
	decision_publish(input, decision, &published);
	migration_decided(migration, &published);
}
