/* SPDX-License-Identifier: Apache-2.0 */
/* Which tracker is taken for which memory. */
#include "engine/source/tracker.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

TestSuite(tracker, .timeout = 60);

/* The kernel keeps no soft-dirty bits for it, and says nothing. */
Test(tracker, soft_dirty_is_refused_for_memory_of_huge_pages)
{
	struct guestmem memory = {.region_count = 2};
	struct jaunt_vm_ops ops = {.driver = "none"};
	struct dirty dirty = {0};
	struct tracker *tracker = NULL;
	struct jaunt_error error = {0};

	memory.regions[0] = (struct guest_region){.pages = 8, .page_bytes = 4096};
	memory.regions[1] =
		(struct guest_region){.pages = 8, .page_bytes = 2 << 20, .hugetlb = true};
	cr_assert_eq(
		tracker_open(&tracker, TRACKER_SOFT_DIRTY, &ops, NULL, &memory, &dirty, &error),
		-ENOTSUP);
	cr_assert_null(tracker);
	cr_assert_str_eq(error.reason, "no-tracker");
	cr_assert(strstr(error.text, "huge pages"), "%s", error.text);
}
