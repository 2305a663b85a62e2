/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/bottleneck.h"

/* From here on a thread has no time to spare: what it waits for otherwise is a share of each
 * system call's way, not the link. */
#define BUSY 0.8
/* So near to the limit that was given, pauses of single streams included. */
#define NEAR 0.8

const char *bottleneck_name(const struct bottleneck_facts *facts)
{
	double busiest =
		facts->source_busy > facts->target_busy ? facts->source_busy : facts->target_busy;

	if (!facts->moving_ns || !facts->wire_bytes)
		return "";
	if (!facts->push)
		return "demand";
	if (facts->throttled || facts->again_bytes > facts->sent_bytes / 2)
		return "dirty-rate";
	double rate = (double)facts->wire_bytes * 1e9 / (double)facts->moving_ns;
	if (facts->limit > 0 && rate >= NEAR * facts->limit)
		return "bandwidth-limit";
	if (busiest < BUSY)
		return "link";
	return facts->source_busy > facts->target_busy ? "source-cpu" : "target-cpu";
}
