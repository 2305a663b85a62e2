/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/received.h"

#include <stdio.h>

#include "cli/report.h"
#include "cli/snapshot.h"
#include "cli/text.h"

void received_print_json(const struct host *host, const struct jaunt_error *error,
			 enum jaunt_place place, enum jaunt_outcome outcome)
{
	struct jaunt_status status = host->arrived;
	/* A VM that came and was stopped, or moved on, was received all the same. */
	bool arrived = host->has_arrived && status.phase == JAUNT_PHASE_COMPLETED;

	if (error->code) {
		status = (struct jaunt_status){.phase = JAUNT_PHASE_FAILED, .vm_is_at = place};
		snprintf(status.reason, sizeof(status.reason), "%s", error->reason);
		snprintf(status.error, sizeof(status.error), "%s", error->text);
	}
	json_t *object = report_json("jaunt.receive/1", &status, arrived ? JAUNT_DONE : outcome);
	json_object_set_new(object, "exit_code", json_integer((json_int_t)outcome));
	json_object_set_new(object, "name", text_json(host_name(host)));
	bool account = arrived && !host->kind->separate;
	json_t *guest =
		account ? guest_account_json(&host->account,
					     host->has_touches ? &host->touches : NULL, host->check)
			: json_null();
	if (account)
		json_object_set_new(guest, "waited_us", text_real(host->waited_us));
	json_object_set_new(object, "guest", guest);
	json_object_set_new(
		object, "onward",
		host->has_left ? report_json("jaunt.migrate/1", &host->left, host->left_outcome)
			       : json_null());
	text_print_json(object);
}

void received_print(const struct host *host)
{
	char p50[TEXT_ROOM], p99[TEXT_ROOM], most[TEXT_ROOM];
	const struct jaunt_percentiles *faults = &host->arrived.fault_latency_us;

	if (!host->has_arrived || host->arrived.phase != JAUNT_PHASE_COMPLETED)
		return;
	report_print_arrival(stdout, host_name(host), &host->arrived);
	if (faults->count)
		printf("  faults      %llu, p50 %s, p99 %s, max %s\n",
		       (unsigned long long)faults->count,
		       text_microseconds(p50, sizeof(p50), faults->p50),
		       text_microseconds(p99, sizeof(p99), faults->p99),
		       text_microseconds(most, sizeof(most), faults->max));
	if (host->check != GUEST_NOT_CHECKED)
		host_print_account(host, stdout);
}
