/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of the page map, each under the interleaving that it is there for. The installer is
 * compiled in with its hooks, so that the interleaving happens every time and a rule can be taken
 * away: a lost wake-up is then a guest asleep in a fault, with no event left that anybody could
 * answer. The fault handler is played by the test, which looks at a page as engine/target/demand
 * does: at its state, after the event was read.
 */
#ifndef JAUNT_INJECT
#define JAUNT_INJECT
#endif
#include "engine/inject.c"
#include "engine/target/install.c"

#include <criterion/criterion.h>
#include <stdlib.h>

#include "tests/unit/engine/world.h"

#define PAGES 256u

static struct world world;
static uint8_t bytes[INSTALL_RUN_PAGES * PAGE];

static void open_world(void)
{
	memset(&install_hooks, 0, sizeof(install_hooks));
	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
}

static void close_world(void)
{
	world_close(&world);
}

TestSuite(rules, .init = open_world, .fini = close_world, .timeout = 60);

static uint64_t bit(uint64_t page)
{
	return UINT64_C(1) << (page % 64);
}

static uint64_t install_one(uint64_t page, uint64_t version)
{
	uint64_t installed = 0;

	world_make(bytes, PAGE, page, version);
	cr_assert_eq(install_pages(&world.shared.install, 0, page, 1, bytes, &installed,
				   &world.counters),
		     0);
	return installed;
}

static uint64_t install_own(uint64_t page, uint64_t version)
{
	uint64_t installed = 0;

	world_make(bytes, PAGE, page, version);
	cr_assert_eq(install_own_page(&world.shared.install, 0, page, bytes, &installed,
				      &world.counters),
		     0);
	return installed;
}

/* What the fault handler sees of the next fault. */
static enum page_state look(uint64_t page)
{
	struct fault_event event = world_next_fault(&world, 0);
	cr_assert_eq(event.address / PAGE * PAGE, (uintptr_t)world_at(&world, 0, page));
	return world_state(&world, 0, page);
}

/* Asleep, and nothing is left that could wake it: for ever, had this test no end. */
static void expect_hang(struct guest *guest)
{
	guest_await_asleep(guest);
	cr_assert(world_quiet(&world, 0), "there is an event that a handler could answer");
	cr_assert(guest_asleep(guest));
}

/* The one wake-up that was lost. */
static void rescue(uint64_t page)
{
	uffd_wake(&world.shared.install.uffds[0], (uintptr_t)world_at(&world, 0, page), PAGE);
}

/* --- Rule 1: who writes a page ------------------------------------------------------------------
 */

Test(rules, rule_1_nothing_is_written_to_a_page_that_somebody_else_has_claimed)
{
	uint64_t installed = 0;

	world_put_stale(&world, 0, 7, 1);
	cr_assert_eq(pagemap_claim(&world.shared.map, 0, 0, bit(7)), bit(7));
	cr_assert_eq(install_one(7, 2), 0);
	cr_assert_eq(
		install_zeros(&world.shared.install, 0, 7, 1, true, &installed, &world.counters),
		0);
	cr_assert_eq(installed, 0);
	cr_assert_eq(counter_get(&world.counters.duplicate), 2);
	cr_assert(world_made(world.shared.memory.regions[0].view + 7 * PAGE, PAGE, 7, 1));
	cr_assert_eq(world_state(&world, 0, 7), PAGE_FILLING);
}

Test(rules, rule_1_nothing_is_written_to_a_present_page)
{
	uint64_t installed = 0;

	install_mark_in_file(&world.shared.install, 0, 0, PAGES);
	cr_assert_eq(install_one(7, 1), 1);
	world_make(world_at(&world, 0, 7), PAGE, 7, 99); /* the guest writes it */
	cr_assert_eq(install_one(7, 2), 0);
	install_zeros(&world.shared.install, 0, 0, PAGES, false, &installed, &world.counters);
	cr_assert(world_made(world_at(&world, 0, 7), PAGE, 7, 99));
}

/* --- Rule 2: visible only as a whole ------------------------------------------------------------
 */

static void stale_is_hidden(void *user, size_t region, uint64_t word, uint64_t mask)
{
	(void)region, (void)word, (void)mask;
	/* Visible from here on, and all of it is there. */
	*(bool *)user = world_made(world_at(&world, 0, 9), PAGE, 9, 2);
}

Test(rules, rule_2_a_page_is_whole_when_it_becomes_visible)
{
	bool whole = false;
	struct guest guest;

	world_put_stale(&world, 0, 9, 1);
	guest_touch(&guest, world_at(&world, 0, 9) + PAGE - 8);
	cr_assert_eq(look(9), PAGE_ABSENT); /* the stale copy is not to be seen */
	install_hooks.before_present = stale_is_hidden;
	install_hooks.user = &whole;
	cr_assert_eq(install_one(9, 2), 1);
	cr_assert(whole);
	guest_join(&guest);
	cr_assert(world_made(&world.shared.memory.regions[0].view[9 * PAGE], PAGE, 9, 2));
}

/* --- Rule 3: what comes twice -------------------------------------------------------------------
 */

Test(rules, rule_3_a_payload_for_a_present_page_is_dropped)
{
	uint64_t installed = 0;

	cr_assert_eq(install_one(3, 1), 1);
	for (unsigned i = 0; i < 8; i++)
		world_make(bytes + i * PAGE, PAGE, i, 2);
	install_pages(&world.shared.install, 0, 0, 8, bytes, &installed, &world.counters);
	cr_assert_eq(installed, 7);
	for (unsigned i = 0; i < 8; i++)
		cr_assert(world_made(world_at(&world, 0, i), PAGE, i, i == 3 ? 1 : 2));
}

/* --- Rule 4: bytes, `present`, WAKE -------------------------------------------------------------
 */

struct discard {
	struct guest guest;
	enum page_state seen;
	bool called;
};

/* Between COPY and `present` the guest gives the page back and touches it again. */
static void discard_and_touch(void *user, size_t region, uint64_t word, uint64_t mask)
{
	struct discard *discard = user;

	(void)region, (void)word, (void)mask;
	discard->called = true;
	cr_assert(world_made(world_at(&world, 0, 5), PAGE, 5, 1));
	cr_assert_eq(madvise(world_at(&world, 0, 5), PAGE, MADV_REMOVE), 0);
	guest_touch(&discard->guest, world_at(&world, 0, 5));
	discard->seen = look(5);
	guest_await_asleep(&discard->guest);
}

static void discard_before_present(struct discard *discard)
{
	install_hooks.before_present = discard_and_touch;
	install_hooks.user = discard;
	cr_assert_eq(install_one(5, 1), 1);
	cr_assert(discard->called);
	/* So the handler does nothing: the filler will wake the guest. */
	cr_assert_eq(discard->seen, PAGE_FILLING);
}

Test(rules, rule_4_a_guest_that_discards_and_touches_again_before_present_is_woken)
{
	struct discard discard = {.called = false};

	discard_before_present(&discard);
	world_serve_present(&world, 0, 5);
	cr_assert_eq(guest_join(&discard.guest), 0);
}

Test(rules, rule_4_without_the_wake_a_guest_that_discards_and_touches_again_hangs)
{
	struct discard discard = {.called = false};

	install_hooks.no_wake = true;
	discard_before_present(&discard);
	expect_hang(&discard.guest);
	rescue(5);
	world_serve_present(&world, 0, 5);
	guest_join(&discard.guest);
}

/* As above, but nobody else reads the fault. */
static void only_discard_and_touch(void *user, size_t region, uint64_t word, uint64_t mask)
{
	struct discard *discard = user;

	(void)region, (void)word, (void)mask;
	discard->called = true;
	cr_assert_eq(madvise(world_at(&world, 0, 5), PAGE, MADV_REMOVE), 0);
	guest_touch(&discard->guest, world_at(&world, 0, 5));
	guest_await_asleep(&discard->guest);
}

Test(rules, rule_4_whoever_reads_the_faults_on_a_page_that_it_installs_needs_no_wake)
{
	struct discard discard = {.called = false};

	install_hooks.before_present = only_discard_and_touch;
	install_hooks.user = &discard;
	install_hooks.no_wake = true;
	cr_assert_eq(install_own(5, 1), 1);
	cr_assert(discard.called);
	world_serve_present(&world, 0, 5);
	cr_assert_eq(guest_join(&discard.guest), 0);
}

static void tell_hole_under_a_waiter(struct guest *guest)
{
	uint64_t installed = 0;

	guest_touch(guest, world_at(&world, 0, 70));
	cr_assert_eq(look(70), PAGE_ABSENT); /* asked for */
	guest_await_asleep(guest);
	cr_assert_eq(install_zeros(&world.shared.install, 0, 0, PAGES, false, &installed,
				   &world.counters),
		     0);
	cr_assert_eq(installed, PAGES);
}

Test(rules, rule_4_a_guest_that_waits_on_a_page_told_to_be_a_hole_is_woken)
{
	struct guest guest;

	tell_hole_under_a_waiter(&guest);
	world_serve_present(&world, 0, 70);
	cr_assert_eq(guest_join(&guest), 0);
}

Test(rules, rule_4_without_the_wake_a_guest_that_waits_on_a_hole_hangs)
{
	struct guest guest;

	install_hooks.no_wake = true;
	tell_hole_under_a_waiter(&guest);
	expect_hang(&guest);
	rescue(70);
	world_serve_present(&world, 0, 70);
	guest_join(&guest);
}

Test(rules, rule_4_a_guest_that_waits_on_an_old_copy_told_to_be_zeros_reads_zeros)
{
	struct guest guest;

	world_put_stale(&world, 0, 70, 1);
	tell_hole_under_a_waiter(&guest);
	world_serve_present(&world, 0, 70);
	cr_assert_eq(guest_join(&guest), 0);
	cr_assert(world_zero(world_at(&world, 0, 70), PAGE));
}

/* A filler that goes straight into the file claims first; then its link dies under it. */
static void lose_the_filler(struct guest *guest)
{
	cr_assert_eq(pagemap_claim(&world.shared.map, 0, 1, 0xff0), 0xff0);
	guest_touch(guest, world_at(&world, 0, 64 + 6));
	cr_assert_eq(look(64 + 6), PAGE_FILLING); /* the filler will wake it */
	guest_await_asleep(guest);
	install_release(&world.shared.install, 0, 1, 0xff0);
	cr_assert_eq(world_state(&world, 0, 64 + 6), PAGE_ABSENT);
}

Test(rules, rule_4_a_guest_that_waits_on_a_claim_of_a_lost_link_is_woken_and_asks)
{
	struct guest guest;

	lose_the_filler(&guest);
	cr_assert_eq(look(64 + 6), PAGE_ABSENT); /* asked for, on another link */
	cr_assert_eq(install_one(64 + 6, 1), 1);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, 64 + 6), PAGE, 64 + 6, 1));
}

Test(rules, rule_4_without_the_wake_a_guest_that_waits_on_a_released_claim_hangs)
{
	struct guest guest;

	install_hooks.no_wake = true;
	lose_the_filler(&guest);
	expect_hang(&guest);
	rescue(64 + 6);
	cr_assert_eq(look(64 + 6), PAGE_ABSENT);
	install_one(64 + 6, 1);
	guest_join(&guest);
}

static void drop_a_reply(uint64_t (*install)(uint64_t page, uint64_t version))
{
	struct guest guest;

	guest_touch(&guest, world_at(&world, 0, 2));
	cr_assert_eq(look(2), PAGE_ABSENT);
	guest_await_asleep(&guest);
	/* Somebody makes it present and forgets to wake. */
	cr_assert_eq(pagemap_claim(&world.shared.map, 0, 0, bit(2)), bit(2));
	pagemap_set_present(&world.shared.map, 0, 0, bit(2));
	expect_hang(&guest);
	cr_assert_eq(install(2, 1), 0); /* dropped */
	world_serve_present(&world, 0, 2);
	cr_assert_eq(guest_join(&guest), 0);
}

Test(rules, rule_4_dropping_a_reply_wakes_whoever_waits_for_it)
{
	drop_a_reply(install_one);
}

Test(rules, rule_4_dropping_a_reply_of_its_own_wakes_too)
{
	drop_a_reply(install_own);
}

static void not_yet_present(void *user, size_t region, uint64_t word, uint64_t mask)
{
	for (uint64_t rest = mask; rest; rest &= rest - 1) {
		uint64_t page = word * 64 + (unsigned)__builtin_ctzll(rest);
		cr_assert_eq(world_state(&world, region, page), PAGE_FILLING);
		cr_assert(world_made(world_at(&world, region, page), PAGE, page, 1));
	}
	*(unsigned *)user += (unsigned)__builtin_popcountll(mask);
}

Test(rules, rule_4_present_is_never_set_before_the_bytes_are_visible)
{
	unsigned seen = 0;
	uint64_t installed = 0;

	install_mark_in_file(&world.shared.install, 0, 0, 1); /* both ways: see the second half */
	install_hooks.before_present = not_yet_present;
	install_hooks.user = &seen;
	for (uint64_t first = 0; first < PAGES; first += INSTALL_RUN_PAGES) {
		for (unsigned i = 0; i < INSTALL_RUN_PAGES; i++)
			world_make(bytes + i * PAGE, PAGE, first + i, 1);
		if (first == PAGES / 2) /* the rest by COPY */
			atomic_store(&world.shared.install.in_file[0][0], 0);
		install_pages(&world.shared.install, 0, first, INSTALL_RUN_PAGES, bytes, &installed,
			      &world.counters);
	}
	cr_assert_eq(seen, PAGES);
	cr_assert_eq(installed, PAGES);
}

/* --- Rule 5: present stays present --------------------------------------------------------------
 */

Test(rules, rule_5_a_discard_does_not_make_a_present_page_absent)
{
	struct guest guest;

	install_one(11, 1);
	cr_assert_eq(madvise(world_at(&world, 0, 11), PAGE, MADV_REMOVE), 0);
	cr_assert_eq(world_state(&world, 0, 11), PAGE_PRESENT);
	cr_assert_eq(install_one(11, 2), 0, "the source's page is dropped");
	guest_touch(&guest, world_at(&world, 0, 11));
	world_serve_present(&world, 0, 11);
	cr_assert_eq(guest_join(&guest), 0);
	cr_assert_eq(counter_get(&world.counters.discarded), 1);
}

/* --- Rule 6: every fault is woken in the end ----------------------------------------------------
 */

Test(rules, rule_6_a_page_mapped_behind_our_back_is_counted_and_never_becomes_present)
{
	uint64_t installed = 0;

	for (unsigned i = 0; i < 4; i++)
		world_make(bytes + i * PAGE, PAGE, 20 + i, 1);
	cr_assert_gt(uffd_zeropage(&world.shared.install.uffds[0],
				   (uintptr_t)world_at(&world, 0, 20), PAGE, UFFD_WAKE),
		     0);
	cr_assert_eq(
		install_pages(&world.shared.install, 0, 20, 4, bytes, &installed, &world.counters),
		-EEXIST);
	cr_assert_eq(counter_get(&world.counters.conflicts), 1);
	cr_assert_eq(world_state(&world, 0, 20), PAGE_FILLING);
	cr_assert(atomic_load(&world.shared.install.broken));
	cr_assert_eq(atomic_load(&world.shared.install.broken_errno), -EEXIST);
}

Test(rules, rule_6_a_fault_answered_twice_only_looks_again)
{
	struct guest guest;

	install_one(30, 1);
	cr_assert_eq(madvise(world_at(&world, 0, 30), PAGE, MADV_REMOVE), 0);
	guest_touch(&guest, world_at(&world, 0, 30));
	struct fault_event event = world_next_fault(&world, 0);
	/* Another handler was faster, and its wake-up came before the guest slept. */
	cr_assert_gt(uffd_zeropage(&world.shared.install.uffds[0],
				   (uintptr_t)world_at(&world, 0, 30), PAGE, UFFD_DONT_WAKE),
		     0);
	guest_await_asleep(&guest);
	cr_assert_eq(install_present(&world.shared.install, 0, 30, event.minor, &world.counters),
		     0);
	cr_assert_eq(guest_join(&guest), 0);
}

/* --- Rule 9: a discard of an absent page --------------------------------------------------------
 */

Test(rules, rule_9_a_discard_of_an_absent_page_is_forgotten)
{
	struct guest guest;

	cr_assert_eq(madvise(world_at(&world, 0, 40), PAGE, MADV_REMOVE), 0);
	guest_touch(&guest, world_at(&world, 0, 40));
	cr_assert_eq(look(40), PAGE_ABSENT);
	cr_assert_eq(install_one(40, 1), 1);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, 40), PAGE, 40, 1));
}
