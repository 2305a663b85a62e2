/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>

#include "engine/source/bottleneck.h"

/* A second in which 1 GB was sent once, and nobody was busy. */
static struct bottleneck_facts calm(void)
{
	return (struct bottleneck_facts){.moving_ns = 1000000000,
					 .wire_bytes = 1000000000,
					 .sent_bytes = 990000000,
					 .source_busy = 0.3,
					 .target_busy = 0.4,
					 .push = true};
}

Test(bottleneck, where_nobody_is_busy_it_is_the_link)
{
	struct bottleneck_facts facts = calm();

	cr_assert_str_eq(bottleneck_name(&facts), "link");
	facts.limit = 2e9;
	cr_assert_str_eq(bottleneck_name(&facts), "link");
	facts.limit = 1.1e9;
	cr_assert_str_eq(bottleneck_name(&facts), "bandwidth-limit");
}

Test(bottleneck, a_busy_side_is_named_and_the_busier_of_two)
{
	struct bottleneck_facts facts = calm();

	facts.source_busy = 0.9;
	cr_assert_str_eq(bottleneck_name(&facts), "source-cpu");
	facts.target_busy = 0.95;
	cr_assert_str_eq(bottleneck_name(&facts), "target-cpu");
}

Test(bottleneck, most_of_it_sent_again_is_the_guests_doing)
{
	struct bottleneck_facts facts = calm();

	facts.again_bytes = 400000000;
	cr_assert_str_eq(bottleneck_name(&facts), "link");
	facts.again_bytes = 600000000;
	cr_assert_str_eq(bottleneck_name(&facts), "dirty-rate");
	facts.again_bytes = 0;
	facts.throttled = true;
	cr_assert_str_eq(bottleneck_name(&facts), "dirty-rate");
}

Test(bottleneck, without_push_the_guest_sets_the_pace)
{
	struct bottleneck_facts facts = calm();

	facts.push = false;
	cr_assert_str_eq(bottleneck_name(&facts), "demand");
}

Test(bottleneck, nothing_moved_is_not_limited)
{
	struct bottleneck_facts facts = calm();

	facts.wire_bytes = 0;
	cr_assert_str_eq(bottleneck_name(&facts), "");
	facts = (struct bottleneck_facts){.wire_bytes = 1};
	cr_assert_str_eq(bottleneck_name(&facts), "");
}
