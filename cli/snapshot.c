/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/snapshot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/text.h"

/* One table for both directions, so that they cannot drift apart. */
enum field_kind {
	FIELD_COUNT,
	FIELD_REAL,
	FIELD_MAYBE, /* a real, or NAN: null */
	FIELD_TEXT
};

struct field {
	const char *group; /* NULL: on top */
	const char *name;
	enum field_kind kind;
	size_t offset, room;
};

#define COUNT(group, name, member)                                                                 \
	{                                                                                          \
		group, name, FIELD_COUNT, offsetof(struct jaunt_status, member), 0                 \
	}
#define REAL(group, name, member)                                                                  \
	{                                                                                          \
		group, name, FIELD_REAL, offsetof(struct jaunt_status, member), 0                  \
	}
#define MAYBE(group, name, member)                                                                 \
	{                                                                                          \
		group, name, FIELD_MAYBE, offsetof(struct jaunt_status, member), 0                 \
	}
#define TEXT(name, member)                                                                         \
	{                                                                                          \
		NULL, name, FIELD_TEXT, offsetof(struct jaunt_status, member),                     \
			sizeof(((struct jaunt_status *)0)->member)                                 \
	}

static const struct field fields[] = {
	TEXT("reason", reason),
	TEXT("error", error),
	TEXT("vm", vm),
	TEXT("peer", peer),
	TEXT("mode", mode),
	TEXT("device", device),
	TEXT("register_error", register_error),
	TEXT("trace_error", trace_error),
	COUNT(NULL, "ram_bytes", ram_bytes),
	REAL(NULL, "total_ms", total_ms),
	REAL(NULL, "switchover_us", switchover_us),
	REAL(NULL, "downtime_us", downtime_us),
	REAL(NULL, "downtime_floor_us", downtime_floor_us),
	COUNT("pages", "total", pages.total),
	COUNT("pages", "missing", pages.missing),
	COUNT("pages", "zero", pages.zero),
	COUNT("pages", "hole", pages.hole),
	COUNT("pages", "copied", pages.copied),
	COUNT("pages", "kept", pages.kept),
	COUNT("pages", "pushed", pages.pushed),
	COUNT("pages", "demanded", pages.demanded),
	COUNT("pages", "duplicate", pages.duplicate),
	COUNT("pages", "discarded", pages.discarded),
	COUNT("pages", "read", pages.read),
	COUNT(NULL, "round", round),
	COUNT(NULL, "remaining_bytes", remaining_bytes),
	REAL(NULL, "dirty_bytes_per_s", dirty_bytes_per_s),
	REAL(NULL, "bandwidth_bytes_per_s", bandwidth_bytes_per_s),
	REAL(NULL, "predicted_downtime_ms", predicted_downtime_ms),
	TEXT("decision", decision),
	REAL(NULL, "eta_ms", eta_ms),
	MAYBE("eta_error_percent", "at_25", eta_error_percent[0]),
	MAYBE("eta_error_percent", "at_50", eta_error_percent[1]),
	MAYBE("eta_error_percent", "at_75", eta_error_percent[2]),
	TEXT("limited_by", limited_by),
	REAL("stream_busy_percent", "source", source_busy_percent),
	REAL("stream_busy_percent", "target", target_busy_percent),
	COUNT("bytes", "wire", wire_bytes),
	COUNT("bytes", "payload", payload_bytes),
	COUNT("bytes", "read", read_bytes),
	COUNT("bytes", "again", again_bytes),
	COUNT("registered", "bytes", registered_bytes),
	COUNT("registered", "hole_bytes", registered_hole_bytes),
	COUNT("registered", "wanted_bytes", registered_wanted_bytes),
	COUNT("registered", "stale", registered_stale),
	REAL("registered", "ms", register_ms),
	REAL("registered", "estimate_ms", register_estimate_ms),
	REAL(NULL, "throughput_bytes_per_s", throughput_bytes_per_s),
	COUNT(NULL, "verified_pages", verified_pages),
	COUNT(NULL, "mismatched_pages", mismatched_pages),
	COUNT(NULL, "install_conflicts", install_conflicts),
	COUNT(NULL, "reconnections", reconnections),
	COUNT("fault_latency_us", "count", fault_latency_us.count),
	REAL("fault_latency_us", "p50", fault_latency_us.p50),
	REAL("fault_latency_us", "p90", fault_latency_us.p90),
	REAL("fault_latency_us", "p99", fault_latency_us.p99),
	REAL("fault_latency_us", "p999", fault_latency_us.p999),
	REAL("fault_latency_us", "max", fault_latency_us.max),
	COUNT(NULL, "engine_bytes", engine_bytes),
};
#define FIELDS (sizeof(fields) / sizeof(fields[0]))

json_t *snapshot_percentiles_json(const struct jaunt_percentiles *percentiles)
{
	return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o}", "count", (json_int_t)percentiles->count,
			 "p50", text_real(percentiles->p50), "p90", text_real(percentiles->p90),
			 "p99", text_real(percentiles->p99), "p999", text_real(percentiles->p999),
			 "max", text_real(percentiles->max));
}

json_t *snapshot_json(const struct jaunt_status *status)
{
	json_t *object = json_object();

	json_object_set_new(object, "phase", text_json(jaunt_phase_name(status->phase)));
	json_object_set_new(object, "vm_is_at", text_json(jaunt_place_name(status->vm_is_at)));
	for (size_t i = 0; i < FIELDS; i++) {
		const struct field *field = &fields[i];
		const char *at = (const char *)status + field->offset;
		json_t *target = object, *value = NULL;
		uint64_t count;
		double real;

		if (field->group) {
			target = json_object_get(object, field->group);
			if (!target) {
				json_object_set_new(object, field->group, json_object());
				target = json_object_get(object, field->group);
			}
		}
		switch (field->kind) {
		case FIELD_COUNT:
			memcpy(&count, at, sizeof(count));
			value = json_integer((json_int_t)count);
			break;
		case FIELD_REAL:
			memcpy(&real, at, sizeof(real));
			value = text_real(real);
			break;
		case FIELD_MAYBE:
			memcpy(&real, at, sizeof(real));
			value = isfinite(real) ? json_real(real) : json_null();
			break;
		case FIELD_TEXT:
			value = text_json(at);
			break;
		}
		json_object_set_new(target, field->name, value);
	}
	return object;
}

void snapshot_parse(struct jaunt_status *status, const json_t *object)
{
	const char *name;

	memset(status, 0, sizeof(*status));
	name = json_string_value(json_object_get(object, "phase"));
	for (int phase = JAUNT_PHASE_IDLE; name && phase <= JAUNT_PHASE_FAILED; phase++)
		if (strcmp(name, jaunt_phase_name((enum jaunt_phase)phase)) == 0)
			status->phase = (enum jaunt_phase)phase;
	name = json_string_value(json_object_get(object, "vm_is_at"));
	status->vm_is_at = JAUNT_AT_UNKNOWN;
	for (int place = JAUNT_AT_SOURCE; name && place <= JAUNT_AT_UNKNOWN; place++)
		if (strcmp(name, jaunt_place_name((enum jaunt_place)place)) == 0)
			status->vm_is_at = (enum jaunt_place)place;
	for (size_t i = 0; i < FIELDS; i++) {
		const struct field *field = &fields[i];
		char *at = (char *)status + field->offset;
		const json_t *from = field->group ? json_object_get(object, field->group) : object;
		const json_t *value = json_object_get(from, field->name);
		uint64_t count = (uint64_t)json_integer_value(value);
		double real = json_number_value(value);

		switch (field->kind) {
		case FIELD_COUNT:
			memcpy(at, &count, sizeof(count));
			break;
		case FIELD_REAL:
			memcpy(at, &real, sizeof(real));
			break;
		case FIELD_MAYBE:
			real = json_is_number(value) ? real : (double)NAN;
			memcpy(at, &real, sizeof(real));
			break;
		case FIELD_TEXT:
			text_clean(at, field->room, json_string_value(value));
			break;
		}
	}
}

double snapshot_percent(const struct jaunt_status *status)
{
	if (status->phase == JAUNT_PHASE_COMPLETED)
		return 100;
	if (!status->pages.total || status->pages.missing > status->pages.total ||
	    !snapshot_committed(status))
		return 0;
	return 100.0 * (double)(status->pages.total - status->pages.missing) /
	       (double)status->pages.total;
}

bool snapshot_committed(const struct jaunt_status *status)
{
	return status->phase == JAUNT_PHASE_POSTCOPY || status->phase == JAUNT_PHASE_BLOCKED;
}
