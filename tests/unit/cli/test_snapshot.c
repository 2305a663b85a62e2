/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/report.h"
#include "cli/snapshot.h"

static struct jaunt_status example(void)
{
	return (struct jaunt_status){
		.phase = JAUNT_PHASE_POSTCOPY,
		.vm_is_at = JAUNT_AT_TARGET,
		.reason = "why",
		.error = "what",
		.vm = "web",
		.peer = "tcp:[::1]:7420",
		.mode = "post-copy",
		.ram_bytes = UINT64_C(1) << 40,
		.total_ms = 12.5,
		.switchover_us = 901,
		.downtime_us = 456.5,
		.downtime_floor_us = 200,
		.pages = {.total = 1000,
			  .missing = 250,
			  .zero = 1,
			  .hole = 2,
			  .pushed = 3,
			  .demanded = 4,
			  .duplicate = 5,
			  .discarded = 6,
			  .read = 14},
		.read_bytes = 15,
		.registered_bytes = 16,
		.registered_hole_bytes = 17,
		.registered_wanted_bytes = 21,
		.registered_stale = 20,
		.register_ms = 18.5,
		.register_estimate_ms = 19.5,
		.register_error = "limit",
		.device = "mlx5_0 port 1",
		.wire_bytes = 7,
		.payload_bytes = 8,
		.throughput_bytes_per_s = 1e9,
		.verified_pages = 9,
		.mismatched_pages = 10,
		.install_conflicts = 11,
		.fault_latency_us = {12, 1.5, 2.5, 3.5, 4.5, 5.5},
		.engine_bytes = 13,
		.eta_ms = 21.5,
		.eta_error_percent = {-22.5, NAN, 0},
		.limited_by = "link",
		.source_busy_percent = 23.5,
		.target_busy_percent = 24.5,
		.again_bytes = 25,
	};
}

Test(snapshot, a_status_comes_back_as_it_was)
{
	struct jaunt_status status = example(), back;
	json_t *object = snapshot_json(&status);

	snapshot_parse(&back, object);
	json_decref(object);
	cr_assert_eq(back.phase, status.phase);
	cr_assert_eq(back.vm_is_at, status.vm_is_at);
	cr_assert_str_eq(back.error, status.error);
	cr_assert_str_eq(back.peer, status.peer);
	cr_assert_eq(back.ram_bytes, status.ram_bytes);
	cr_assert_eq(back.downtime_us, status.downtime_us);
	cr_assert_eq(memcmp(&back.pages, &status.pages, sizeof(back.pages)), 0);
	cr_assert_eq(back.wire_bytes, 7);
	cr_assert_eq(back.payload_bytes, 8);
	cr_assert_eq(back.read_bytes, 15);
	cr_assert_eq(back.registered_bytes, 16);
	cr_assert_eq(back.registered_hole_bytes, 17);
	cr_assert_eq(back.registered_wanted_bytes, 21);
	cr_assert_eq(back.registered_stale, 20);
	cr_assert_eq(back.register_ms, 18.5);
	cr_assert_eq(back.register_estimate_ms, 19.5);
	cr_assert_str_eq(back.register_error, "limit");
	cr_assert_str_eq(back.device, "mlx5_0 port 1");
	cr_assert_eq(memcmp(&back.fault_latency_us, &status.fault_latency_us,
			    sizeof(back.fault_latency_us)),
		     0);
	cr_assert_eq(back.engine_bytes, 13);
	cr_assert_eq(back.eta_ms, 21.5);
	cr_assert_eq(back.eta_error_percent[0], -22.5);
	cr_assert(isnan(back.eta_error_percent[1]));
	cr_assert_eq(back.eta_error_percent[2], 0);
	cr_assert_str_eq(back.limited_by, "link");
	cr_assert_eq(back.source_busy_percent, 23.5);
	cr_assert_eq(back.target_busy_percent, 24.5);
	cr_assert_eq(back.again_bytes, 25);
}

Test(snapshot, every_phase_and_place_survives)
{
	for (int phase = JAUNT_PHASE_IDLE; phase <= JAUNT_PHASE_FAILED; phase++) {
		struct jaunt_status status = {.phase = (enum jaunt_phase)phase}, back;
		json_t *object = snapshot_json(&status);
		snapshot_parse(&back, object);
		json_decref(object);
		cr_expect_eq(back.phase, status.phase);
	}
	for (int place = JAUNT_AT_SOURCE; place <= JAUNT_AT_UNKNOWN; place++) {
		struct jaunt_status status = {.vm_is_at = (enum jaunt_place)place}, back;
		json_t *object = snapshot_json(&status);
		snapshot_parse(&back, object);
		json_decref(object);
		cr_expect_eq(back.vm_is_at, status.vm_is_at);
	}
}

Test(snapshot, fields_of_another_version_do_no_harm)
{
	struct jaunt_status back;
	json_t *object = json_pack("{s:s, s:i, s:s, s:[], s:s}", "phase", "teleporting", "error", 5,
				   "pages", "many", "bytes", "vm_is_at", "moon");

	snapshot_parse(&back, object);
	json_decref(object);
	cr_assert_eq(back.phase, JAUNT_PHASE_IDLE);
	cr_assert_eq(back.vm_is_at, JAUNT_AT_UNKNOWN);
	cr_assert_str_eq(back.error, "");
	cr_assert_eq(back.pages.total, 0);
	snapshot_parse(&back, NULL);
	cr_assert_eq(back.vm_is_at, JAUNT_AT_UNKNOWN);
}

Test(snapshot, numbers_are_finite_and_texts_clean)
{
	struct jaunt_status status = {.downtime_us = NAN, .error = "\xff\033"}, back;
	json_t *object = snapshot_json(&status);
	char *text = json_dumps(object, 0);

	cr_assert_not_null(text);
	snapshot_parse(&back, object);
	cr_assert_eq(back.downtime_us, 0);
	cr_assert_str_eq(back.error, "? ");
	free(text);
	json_decref(object);
}

Test(snapshot, per_cent_counts_pages_that_are_there)
{
	struct jaunt_status status = example();

	cr_assert_eq(snapshot_percent(&status), 75);
	status.phase = JAUNT_PHASE_PREPARING;
	cr_assert_eq(snapshot_percent(&status), 0);
	status.phase = JAUNT_PHASE_COMPLETED;
	cr_assert_eq(snapshot_percent(&status), 100);
	status = (struct jaunt_status){.phase = JAUNT_PHASE_POSTCOPY};
	cr_assert_eq(snapshot_percent(&status), 0);
}

static const char *const promised[] = {
	"schema", "result",         "vm_is_at",         "reason",
	"error",  "mode",           "ram_bytes",        "total_ms",
	"pages",  "bytes",          "downtime_us",      "throughput_bytes_per_s",
	"host",   "verified_pages", "mismatched_pages", "kernel",
	"build",  "exit_code",
};

Test(report, the_object_has_every_field_that_is_promised)
{
	struct jaunt_status status = example();
	json_t *object = report_json("jaunt.migrate/1", &status, JAUNT_DONE);

	for (size_t i = 0; i < sizeof(promised) / sizeof(promised[0]); i++)
		cr_expect(json_object_get(object, promised[i]), "%s", promised[i]);
	static const char *const pages[] = {"total",  "zero",     "hole",
					    "pushed", "demanded", "duplicate"};
	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
		cr_expect(json_is_integer(
			json_object_get(json_object_get(object, "pages"), pages[i])));
	cr_assert_str_eq(json_string_value(json_object_get(object, "result")), "completed");
	json_decref(object);
}

Test(report, every_outcome_has_its_word)
{
	cr_assert_str_eq(report_result(JAUNT_DONE), "completed");
	cr_assert_str_eq(report_result(JAUNT_FAILED), "failed");
	cr_assert_str_eq(report_result(JAUNT_CANCELLED), "cancelled");
	cr_assert_str_eq(report_result(JAUNT_INCOMPLETE), "incomplete");
	cr_assert_str_eq(report_result(JAUNT_UNKNOWN), "unknown");
}

static char *words(enum jaunt_outcome outcome, bool dry_run)
{
	static char text[4096];
	struct jaunt_status status = example();
	FILE *out = fmemopen(text, sizeof(text), "w");

	report_print(out, "web", &status, outcome, dry_run);
	fclose(out);
	return text;
}

Test(report, people_are_told_where_the_vm_is)
{
	cr_assert(strstr(words(JAUNT_DONE, false), "runs at tcp:[::1]:7420 now"));
	cr_assert(strstr(words(JAUNT_DONE, true), "nothing was moved"));
	cr_assert(strstr(words(JAUNT_FAILED, false), "runs on where it was"));
	cr_assert(strstr(words(JAUNT_CANCELLED, false), "runs on where it was"));
	cr_assert(strstr(words(JAUNT_INCOMPLETE, false), "INCOMPLETE"));
	cr_assert(strstr(words(JAUNT_UNKNOWN, false), "fence"));
	cr_assert(strstr(words(JAUNT_DONE, false), "MISMATCHED"));
	cr_assert(strstr(words(JAUNT_DONE, false), "limited by  the link"));
	cr_assert(strstr(words(JAUNT_DONE, false), "off by  -22 % at 25 %, +0 % at 75 % of the"));
}
