/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "engine/target/target.h"
#include "engine/trace.h"

static void add_counters(struct jaunt_status *status, const struct page_counters *counters)
{
	status->pages.zero += counter_get(&counters->zero);
	status->pages.hole += counter_get(&counters->hole);
	status->pages.pushed += counter_get(&counters->pushed);
	status->pages.demanded += counter_get(&counters->demanded);
	status->pages.duplicate += counter_get(&counters->duplicate);
	status->pages.copied += counter_get(&counters->copied);
	status->pages.discarded += counter_get(&counters->discarded);
	status->install_conflicts += counter_get(&counters->conflicts);
	status->verified_pages += counter_get(&counters->verified);
	status->mismatched_pages += counter_get(&counters->mismatched);
	status->payload_bytes += counter_get(&counters->payload_bytes);
	status->pages.read += counter_get(&counters->read);
	status->read_bytes += counter_get(&counters->read_bytes);
}

void target_status(struct jaunt_migration *migration, struct jaunt_status *status)
{
	struct target *target = (struct target *)migration;
	struct target_shared *shared = &target->shared;
	uint64_t memory = sizeof(*target) + trace_bytes(migration->trace) + LINK_BUFFER_BYTES;

	if (!target->prepared)
		return;
	memset(&status->pages, 0, sizeof(status->pages));
	status->ram_bytes = shared->memory.bytes;
	status->pages.total = shared->memory.pages;
	status->pages.copied = target->copied;
	status->pages.kept = target->kept;
	status->pages.missing = pagemap_missing(&shared->map);
	status->payload_bytes = status->verified_pages = status->mismatched_pages = 0;
	status->install_conflicts = status->read_bytes = 0;
	memory += shared->map.bytes + atomic_load(&shared->reads.bytes) +
		  install_bytes(&shared->install) + atomic_load(&shared->suspects_bytes);
	for (size_t i = 0; i < shared->map.region_count; i++)
		if (shared->demanded[i])
			memory += shared->map.regions[i].words * sizeof(uint64_t);

	uint64_t checker_bytes = shared->session.verify ? CHECKER_BYTES : 0;
	struct histogram *latency = calloc(1, sizeof(*latency));
	for (unsigned i = 0; i < target->shards; i++) {
		struct demand *demand = target->demands[i];
		if (!demand)
			continue;
		add_counters(status, &demand->counters);
		if (latency)
			histogram_merge(latency, &demand->latency);
		memory += checker_bytes + sizeof(*demand) + counter_get(&demand->memory_bytes) +
			  target_buffer_bytes(shared, DEMAND_BUFFER_BYTES);
	}
	for (unsigned i = 0; i < target->streams; i++) {
		struct fill *fill = target->fills[i];
		if (!fill)
			continue;
		add_counters(status, &fill->counters);
		memory += checker_bytes + sizeof(*fill) + counter_get(&fill->memory_bytes);
	}
	if (latency)
		histogram_percentiles(latency, &status->fault_latency_us);
	free(latency);
	status->engine_bytes = memory;
}

static uint64_t busy_ns(const struct target *target)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < target->streams; i++)
		sum += target->fills[i] ? worker_busy_ns(&target->fills[i]->worker) : 0;
	return target->streams ? sum / target->streams : 0;
}

int target_send_progress(struct target *target, bool complete, const char *blocked)
{
	struct jaunt_status status;
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Progress progress = JAUNT__PROGRESS__INIT;
	Jaunt__Complete completion = JAUNT__COMPLETE__INIT;

	jaunt_migration_status(&target->base, &status);
	progress.missing = status.pages.missing;
	progress.zero = status.pages.zero;
	progress.hole = status.pages.hole;
	progress.copied = status.pages.copied;
	progress.kept = status.pages.kept;
	progress.pushed = status.pages.pushed;
	progress.demanded = status.pages.demanded;
	progress.duplicate = status.pages.duplicate;
	progress.discarded = status.pages.discarded;
	progress.verified = status.verified_pages;
	progress.mismatched = status.mismatched_pages;
	progress.payload_bytes = status.payload_bytes;
	progress.read = status.pages.read;
	progress.read_bytes = status.read_bytes;
	progress.busy_ns = busy_ns(target);
	progress.blocked = (char *)(blocked ? blocked : "");
	if (complete) {
		completion.progress = &progress;
		message.message_case = JAUNT__CONTROL__MESSAGE_COMPLETE;
		message.complete = &completion;
	} else {
		message.message_case = JAUNT__CONTROL__MESSAGE_PROGRESS;
		message.progress = &progress;
	}
	return link_send(&target->link, &message);
}
