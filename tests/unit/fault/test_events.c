/* SPDX-License-Identifier: Apache-2.0 */
/* Which kind of fault the kernel reports for which state of a page. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/unit/fault/views.h"

TestSuite(events, .timeout = 30);

Test(events, says_nothing_when_nobody_faults)
{
	struct views views;
	views_open(&views, 1);
	cr_assert(views_quiet(&views));
	views_close(&views);
}

Test(events, says_ebadf_on_a_closed_userfaultfd)
{
	struct uffd closed = {.fd = -1};
	struct fault_event event;
	unsigned other = 0;
	cr_assert_eq(events_read(&closed, &event, 1, &other), -EBADF);
}

/* Touches `offset`, returns the fault, and lets the toucher go on, by CONTINUE or ZEROPAGE. */
static struct fault_event fault_of(struct views *views, uint64_t offset, bool write)
{
	struct toucher toucher;
	uint64_t page = views_address(views, offset) & ~(PAGE - 1);

	toucher_start(&toucher, views->vm + offset, write, 1);
	struct fault_event event = views_next_fault(views);
	int64_t done = event.minor ? uffd_continue(&views->uffd, page, PAGE, UFFD_WAKE)
				   : uffd_zeropage(&views->uffd, page, PAGE, UFFD_WAKE);
	cr_assert_eq(done, PAGE);
	toucher_join(&toucher);
	return event;
}

Test(events, gives_the_exact_address_and_the_direction)
{
	struct views views;
	views_open(&views, 2);
	struct fault_event event = fault_of(&views, 123, false);
	cr_assert_eq(event.address, views_address(&views, 123));
	cr_assert_not(event.write);
	event = fault_of(&views, PAGE + 45, true);
	cr_assert_eq(event.address, views_address(&views, PAGE + 45));
	cr_assert(event.write);
	views_close(&views);
}

Test(events, a_page_absent_from_the_file_is_missing)
{
	struct views views;
	views_open(&views, 1);
	cr_assert_not(fault_of(&views, 0, false).minor);
	views_close(&views);
}

Test(events, a_page_in_the_file_but_not_mapped_is_minor)
{
	struct views views;
	views_open(&views, 1);
	views.engine[0] = 1;
	cr_assert(fault_of(&views, 0, false).minor);
	views_close(&views);
}

Test(events, a_mapped_page_is_minor_again_after_dontneed)
{
	struct views views;
	views_open(&views, 1);
	views.engine[0] = 1;
	cr_assert(fault_of(&views, 0, false).minor);
	cr_assert_eq(madvise(views.vm, PAGE, MADV_DONTNEED), 0);
	cr_assert(fault_of(&views, 0, false).minor);
	views_close(&views);
}

Test(events, a_punched_page_is_missing_again)
{
	struct views views;
	views_open(&views, 1);
	views.engine[0] = 1;
	cr_assert(fault_of(&views, 0, true).minor);
	views_punch(&views, 0, PAGE);
	cr_assert_not(fault_of(&views, 0, true).minor);
	views_close(&views);
}

Test(events, a_page_that_the_guest_removed_is_missing_again)
{
	struct views views;
	views_open(&views, 1);
	views.engine[0] = 1;
	cr_assert(fault_of(&views, 0, true).minor);
	cr_assert_eq(madvise(views.vm, PAGE, MADV_REMOVE), 0);
	cr_assert_not(fault_of(&views, 0, true).minor);
	views_close(&views);
}

Test(events, reads_several_faults_with_one_call_and_then_finds_the_queue_empty)
{
	enum { COUNT = 4 };
	struct views views;
	struct toucher touchers[COUNT];
	struct fault_event events[EVENTS_BATCH];
	unsigned other = 0, seen = 0;

	views_open(&views, COUNT);
	for (int i = 0; i < COUNT; i++) {
		toucher_start(&touchers[i], views.vm + (uint64_t)i * PAGE, false, 0);
		toucher_await_sleep(&touchers[i]);
	}
	int found = events_read(&views.uffd, events, EVENTS_BATCH, &other);
	cr_assert_eq(found, COUNT);
	cr_assert(views_quiet(&views));
	for (int i = 0; i < found; i++)
		seen |= 1u << ((events[i].address - views_address(&views, 0)) / PAGE);
	cr_assert_eq(seen, (1u << COUNT) - 1);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, 0), COUNT * PAGE, UFFD_WAKE),
		     COUNT * PAGE);
	for (int i = 0; i < COUNT; i++)
		toucher_join(&touchers[i]);
	views_close(&views);
}

Test(events, leaves_in_the_queue_what_there_was_no_room_for)
{
	struct views views;
	struct toucher touchers[3];
	struct fault_event events[2];
	unsigned other = 0;

	views_open(&views, 3);
	for (int i = 0; i < 3; i++) {
		toucher_start(&touchers[i], views.vm + (uint64_t)i * PAGE, false, 0);
		toucher_await_sleep(&touchers[i]);
	}
	cr_assert_eq(events_read(&views.uffd, events, 2, &other), 2);
	cr_assert_eq(events_read(&views.uffd, events, 2, &other), 1);
	cr_assert_eq(uffd_zeropage(&views.uffd, views_address(&views, 0), 3 * PAGE, UFFD_WAKE),
		     3 * PAGE);
	for (int i = 0; i < 3; i++)
		toucher_join(&touchers[i]);
	views_close(&views);
}
