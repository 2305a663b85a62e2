/* SPDX-License-Identifier: Apache-2.0 */
/* What kept a migration from being faster: a word for it from what was measured, a pure function.
 */
#ifndef ENGINE_SOURCE_BOTTLENECK_H
#define ENGINE_SOURCE_BOTTLENECK_H

#include <stdbool.h>
#include <stdint.h>

struct bottleneck_facts {
	uint64_t moving_ns;   /* in which memory was moved */
	uint64_t wire_bytes;  /* sent in it */
	uint64_t sent_bytes;  /* of pages */
	uint64_t again_bytes; /* of those, pages that had been sent before */
	/* Of the time that memory was moved: the share in which the mean thread of a stream ran, or
	 * waited for a CPU. */
	double source_busy, target_busy;
	double limit; /* of the streams, bytes a second; 0: none */
	bool throttled;
	bool push; /* missing pages were streamed; else they came as the guest touched them */
};

/* "dirty-rate", "bandwidth-limit", "source-cpu", "target-cpu", "link" or "demand"; "": nothing was
 * moved. */
const char *bottleneck_name(const struct bottleneck_facts *facts);

#endif
