/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/identity.h"
#include "cli/snapshot.h"
#include "cli/text.h"

const char *report_result(enum jaunt_outcome outcome)
{
	switch (outcome) {
	case JAUNT_DONE:
		return "completed";
	case JAUNT_FAILED:
	case JAUNT_USAGE:
		return "failed";
	case JAUNT_CANCELLED:
		return "cancelled";
	case JAUNT_INCOMPLETE:
		return "incomplete";
	case JAUNT_UNKNOWN:
		break;
	}
	return "unknown";
}

json_t *report_json(const char *schema, const struct jaunt_status *status,
		    enum jaunt_outcome outcome)
{
	json_t *object = json_pack("{s:s, s:s, s:i}", "schema", schema, "result",
				   report_result(outcome), "exit_code", (int)outcome);
	json_t *body = snapshot_json(status);

	json_object_update(object, body);
	json_decref(body);
	identity_add(object);
	return object;
}

static void print_pages(FILE *out, const struct jaunt_pages *pages)
{
	fprintf(out,
		"  pages       %" PRIu64 ": %" PRIu64 " pushed, %" PRIu64 " demanded, %" PRIu64
		" zero, %" PRIu64 " holes",
		pages->total, pages->pushed, pages->demanded, pages->zero, pages->hole);
	if (pages->copied)
		fprintf(out, ", %" PRIu64 " before the switch", pages->copied);
	if (pages->kept)
		fprintf(out, ", %" PRIu64 " by the process before", pages->kept);
	if (pages->read)
		fprintf(out, "; %" PRIu64 " by READ", pages->read);
	if (pages->duplicate)
		fprintf(out, "; %" PRIu64 " came twice", pages->duplicate);
	if (pages->missing)
		fprintf(out, "; %" PRIu64 " MISSING", pages->missing);
	fputc('\n', out);
}

static const char *limit_words(const char *limited_by)
{
	static const char *const words[][2] = {
		{"dirty-rate", "what the guest wrote meanwhile"},
		{"bandwidth-limit", "the bandwidth limit that was given"},
		{"link", "the link"},
		{"source-cpu", "the CPU of this host"},
		{"target-cpu", "the CPU of the target"},
		{"demand", "what the guest touched: nothing was pushed"},
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(words[i][0], limited_by) == 0)
			return words[i][1];
	return limited_by;
}

static void print_eta_errors(FILE *out, const double percent[3])
{
	static const char *const when[] = {"25 %", "50 %", "75 %"};
	const char *before = "  eta off by  ";

	for (unsigned i = 0; i < 3; i++) {
		if (!isfinite(percent[i]))
			continue;
		fprintf(out, "%s%+.0f %% at %s", before, percent[i], when[i]);
		before = ", ";
	}
	if (before[0] == ',')
		fprintf(out, " of the time\n");
}

static void print_figures(FILE *out, const struct jaunt_status *status)
{
	char a[TEXT_ROOM], b[TEXT_ROOM], c[TEXT_ROOM], d[TEXT_ROOM];

	if (status->downtime_us > 0) {
		fprintf(out, "  downtime    %s",
			text_microseconds(a, sizeof(a), status->downtime_us));
		if (status->downtime_floor_us > 0)
			fprintf(out, " (floor in this run: %s)",
				text_microseconds(b, sizeof(b), status->downtime_floor_us));
		fputc('\n', out);
	}
	fprintf(out, "  total       %s\n",
		text_microseconds(a, sizeof(a), status->total_ms * 1000));
	print_eta_errors(out, status->eta_error_percent);
	if (status->limited_by[0])
		fprintf(out, "  limited by  %s (streams busy %.0f %% here, %.0f %% there)\n",
			limit_words(status->limited_by), status->source_busy_percent,
			status->target_busy_percent);
	if (status->trace_error[0])
		fprintf(out, "  trace       %s\n", status->trace_error);
	if (!status->pages.total)
		return;
	print_pages(out, &status->pages);
	fprintf(out, "  bytes       %s on the wire, %s of pages, %s\n",
		text_bytes(a, sizeof(a), status->wire_bytes),
		text_bytes(b, sizeof(b), status->payload_bytes),
		text_rate(c, sizeof(c), status->throughput_bytes_per_s));
	if (status->device[0])
		fprintf(out, "  device      %s\n", status->device);
	if (status->registered_bytes)
		fprintf(out, "  registered  %s in %s (estimated: %s), %s of it were holes\n",
			text_bytes(a, sizeof(a), status->registered_bytes),
			text_microseconds(b, sizeof(b), status->register_ms * 1000),
			text_microseconds(c, sizeof(c), status->register_estimate_ms * 1000),
			text_bytes(d, sizeof(d), status->registered_hole_bytes));
	if (status->register_error[0])
		fprintf(out, "  registered  not all: %s\n", status->register_error);
	if (status->mismatched_pages)
		fprintf(out, "  verified    %" PRIu64 " pages, %" PRIu64 " MISMATCHED\n",
			status->verified_pages, status->mismatched_pages);
	else if (status->verified_pages)
		fprintf(out, "  verified    %" PRIu64 " pages, all as they were at the source\n",
			status->verified_pages);
}

void report_print(FILE *out, const char *name, const struct jaunt_status *status,
		  enum jaunt_outcome outcome, bool dry_run)
{
	char memory[TEXT_ROOM];

	text_bytes(memory, sizeof(memory), status->ram_bytes);
	switch (outcome) {
	case JAUNT_DONE:
		if (dry_run) {
			fprintf(out, "%s (%s) can move to %s; nothing was moved\n", name, memory,
				status->peer);
			return;
		}
		fprintf(out, "%s (%s) runs at %s now, complete\n", name, memory, status->peer);
		break;
	case JAUNT_FAILED:
	case JAUNT_USAGE:
	case JAUNT_CANCELLED:
		fprintf(out, "%s was not moved; it runs on where it was\n", name);
		return;
	case JAUNT_INCOMPLETE:
		fprintf(out, "%s is committed to %s and INCOMPLETE; do not start it elsewhere\n",
			name, status->peer);
		break;
	case JAUNT_UNKNOWN:
		fprintf(out,
			"it is UNKNOWN whether %s runs at %s; fence one host before you go on\n",
			name, status->peer);
		break;
	}
	print_figures(out, status);
}

void report_print_arrival(FILE *out, const char *name, const struct jaunt_status *status)
{
	char memory[TEXT_ROOM];

	fprintf(out, "%s (%s) came here, complete\n", name,
		text_bytes(memory, sizeof(memory), status->ram_bytes));
	print_figures(out, status);
}
