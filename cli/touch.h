/* SPDX-License-Identifier: Apache-2.0 */
/* Which of the guest's slow touches waited for a page from the other host, and how long. */
#ifndef CLI_TOUCH_H
#define CLI_TOUCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"

struct touch {
	uint64_t page; /* of the region */
	uint64_t when; /* any clock that grows */
	double latency_us;
};

/* Sorts `touches` and fills `out` with the first touch of every page that `demanded` says yes to:
 * later touches of it were slow for other reasons. They are then the first out->count of `touches`.
 */
void touch_percentiles(struct touch *touches, size_t count,
		       bool (*demanded)(const void *context, uint64_t page), const void *context,
		       struct jaunt_percentiles *out);

#endif
