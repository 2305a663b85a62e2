/* SPDX-License-Identifier: Apache-2.0 */
/* A fault thread and its guests, against a page server that the test plays. */
#include "engine/target/demand.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/engine/world.h"

TestSuite(demand, .timeout = 60);

#define PAGES 256u

static struct world world;
static struct demand *demand;
static int fd; /* the page server's end */
static uint8_t bytes[8 * PAGE];

static void open_demand(void)
{
	struct channel *channel;

	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	peer_open(&channel, &fd);
	demand = calloc(1, sizeof(*demand));
	cr_assert_eq(demand_start(demand, &world.shared, 0, channel, NULL), 0);
	peer_expect_preamble(fd, ATTACH_URGENT, 0);
}

static void close_demand(void)
{
	demand_stop(demand);
	free(demand);
	close(fd);
	world_close(&world);
}

static void expect_fetch(uint64_t page)
{
	struct frame frame;

	cr_assert(peer_read_frame(fd, &frame));
	cr_assert_eq(frame.type, FRAME_FETCH);
	cr_assert_eq(frame.epoch, 1);
	cr_assert_eq(frame.region, 0);
	cr_assert_eq(frame.page_count, 1);
	cr_assert_eq(frame.first_page, page, "page %lu was asked for, not %lu", frame.first_page,
		     page);
}

static struct frame data_frame(uint64_t page)
{
	return (struct frame){.type = FRAME_DATA,
			      .epoch = 1,
			      .page_count = 1,
			      .first_page = page,
			      .payload_bytes = PAGE};
}

static void reply(uint64_t page, uint64_t version)
{
	struct frame frame = data_frame(page);

	world_make(bytes, PAGE, page, version);
	peer_send_frame(fd, &frame, bytes);
}

static void reply_zero(uint64_t page, uint16_t flags)
{
	struct frame frame = {.type = FRAME_ZERO,
			      .flags = flags,
			      .epoch = 1,
			      .page_count = 1,
			      .first_page = page};
	peer_send_frame(fd, &frame, NULL);
}

/* A fault that is answered: whatever the server sent before has been dealt with after it. */
static void fetch_one(uint64_t page)
{
	struct guest guest;

	guest_touch(&guest, world_at(&world, 0, page));
	expect_fetch(page);
	reply(page, 1);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, page), PAGE, page, 1));
}

static void expect_untouched(uint64_t page)
{
	cr_assert_eq(world_state(&world, 0, page), PAGE_ABSENT);
	cr_assert(world_hole(&world, 0, page));
}

Test(demand, a_touched_page_is_asked_for_and_shows_what_comes)
{
	open_demand();
	fetch_one(7);
	fetch_one(9); /* a page is counted after it was seen */
	cr_assert_geq(counter_get(&demand->counters.demanded), 1);
	expect_untouched(6);
	expect_untouched(8);
	close_demand();
}

Test(demand, several_faults_are_in_flight_and_may_be_answered_in_any_order)
{
	struct guest guests[8];

	open_demand();
	for (unsigned i = 0; i < 8; i++) {
		guest_touch(&guests[i], world_at(&world, 0, i * 30));
		expect_fetch(i * 30); /* none of those before has been answered */
	}
	for (unsigned i = 8; i-- > 0;) {
		reply(i * 30, 1);
		guest_join(&guests[i]);
		cr_assert(world_made(world_at(&world, 0, i * 30), PAGE, i * 30, 1));
	}
	close_demand();
}

Test(demand, a_second_fault_on_a_page_asks_for_nothing_and_is_woken_with_the_first)
{
	struct guest first, second;

	open_demand();
	guest_touch(&first, world_at(&world, 0, 7));
	expect_fetch(7);
	guest_touch(&second, world_at(&world, 0, 7) + 64);
	guest_await_asleep(&second);
	fetch_one(100); /* this is what is asked for next */
	reply(7, 1);
	guest_join(&first);
	guest_join(&second);
	close_demand();
}

Test(demand, a_zero_and_a_hole_read_as_zeros_and_are_counted_apart)
{
	struct guest guest;

	open_demand();
	guest_touch(&guest, world_at(&world, 0, 7));
	expect_fetch(7);
	reply_zero(7, 0);
	cr_assert_eq(guest_join(&guest), 0);
	guest_touch(&guest, world_at(&world, 0, 8));
	expect_fetch(8);
	reply_zero(8, FRAME_FLAG_HOLE);
	cr_assert_eq(guest_join(&guest), 0);
	demand_stop(demand); /* it counts after the page was seen */
	cr_assert_eq(counter_get(&demand->counters.zero), 1);
	cr_assert_eq(counter_get(&demand->counters.hole), 1);
	cr_assert_eq(counter_get(&demand->counters.demanded), 0);
	close_demand();
}

Test(demand, a_present_page_that_the_guest_gave_back_asks_for_nothing)
{
	struct guest guest;

	open_demand();
	fetch_one(7);
	cr_assert_eq(madvise(world_at(&world, 0, 7), PAGE, MADV_REMOVE), 0);
	guest_touch(&guest, world_at(&world, 0, 7));
	cr_assert_eq(guest_join(&guest), 0);
	fetch_one(8);
	cr_assert_eq(counter_get(&demand->counters.discarded), 1);
	close_demand();
}

Test(demand, before_freeze_faults_are_parked_and_asked_for_when_the_epoch_begins)
{
	struct guest guest;

	open_demand();
	atomic_store(&world.shared.session.epoch, 0);
	worker_wake(&demand->worker);
	guest_touch(&guest, world_at(&world, 0, 7));
	guest_await_asleep(&guest);
	/* A page of a guest that still runs must not get in, asked for or not. */
	struct frame frame = data_frame(7);
	frame.epoch = 0;
	world_make(bytes, PAGE, 7, 99);
	peer_send_frame(fd, &frame, bytes);
	atomic_store(&world.shared.session.epoch, 1);
	worker_wake(&demand->worker);
	expect_fetch(7);
	reply(7, 1);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, 7), PAGE, 7, 1));
	close_demand();
}

/* --- What is dropped ----------------------------------------------------------------------------
 */

Test(demand, a_page_that_nobody_asked_for_is_dropped)
{
	open_demand();
	reply(7, 2);
	reply_zero(8, 0);
	fetch_one(100);
	expect_untouched(7);
	expect_untouched(8);
	cr_assert_eq(counter_get(&demand->counters.duplicate), 2);
	cr_assert_not(world_lost(&world));
	close_demand();
}

Test(demand, a_page_that_comes_twice_does_not_undo_what_the_guest_wrote)
{
	struct guest guest;

	open_demand();
	guest_write(&guest, world_at(&world, 0, 7) + 8, 4711);
	expect_fetch(7);
	reply(7, 1);
	guest_join(&guest);
	reply(7, 2);
	reply_zero(7, 0);
	fetch_one(100);
	uint64_t words[2];
	memcpy(words, world_at(&world, 0, 7), 16);
	world_make(bytes, PAGE, 7, 1);
	cr_assert_eq(memcmp(&words[0], bytes, 8), 0);
	cr_assert_eq(words[1], 4711);
	cr_assert_eq(counter_get(&demand->counters.duplicate), 2);
	close_demand();
}

Test(demand, a_page_of_another_epoch_is_dropped)
{
	struct guest guest;
	struct frame frame = data_frame(7);

	open_demand();
	guest_touch(&guest, world_at(&world, 0, 7));
	expect_fetch(7);
	world_make(bytes, PAGE, 7, 99);
	for (frame.epoch = 0; frame.epoch < 4; frame.epoch++)
		if (frame.epoch != 1)
			peer_send_frame(fd, &frame, bytes);
	fetch_one(100);
	cr_assert(guest_asleep(&guest));
	expect_untouched(7);
	reply(7, 1);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, 7), PAGE, 7, 1));
	close_demand();
}

/* --- What ends the session ----------------------------------------------------------------------
 */

/* A guest waits on page 7, and on 8; `sent` has been sent in answer. */
static void expect_refused(struct guest *guest, const char *reason)
{
	const struct jaunt_error *why = world_await_loss(&world);

	cr_assert_str_eq(why->reason, reason, "%s: %s", why->reason, why->text);
	cr_assert_gt(strlen(why->text), 20);
	/* The guest blocks: never zeros, never nonsense. */
	guest_await_asleep(guest);
	cr_assert(guest_asleep(guest));
	for (uint64_t page = 0; page < PAGES; page++)
		if (page != 200)
			expect_untouched(page);
	cr_assert(world_made(world_at(&world, 0, 200), PAGE, 200, 1));
	/* So do those who come later, but a present page is still served. */
	struct guest later;
	cr_assert_eq(madvise(world_at(&world, 0, 200), PAGE, MADV_REMOVE), 0);
	guest_touch(&later, world_at(&world, 0, 200));
	cr_assert_eq(guest_join(&later), 0);
	/* In the end somebody else brings the page. */
	uint64_t installed = 0;
	world_make(bytes, PAGE, 7, 1);
	install_pages(&world.shared.install, 0, 7, 1, bytes, &installed, &world.counters);
	guest_join(guest);
	close_demand();
}

static void provoke(struct guest *guest)
{
	open_demand();
	fetch_one(200);
	guest_touch(guest, world_at(&world, 0, 7));
	expect_fetch(7);
}

enum { BAD_FRAMES = 10 };

static void send_bad_frame(unsigned which)
{
	struct frame frame = data_frame(7);
	uint8_t head[FRAME_BYTES];
	bool raw = false;

	world_make(bytes, PAGE, 7, 66);
	switch (which) {
	case 0: /* not a frame */
		memset(head, 'x', sizeof(head));
		raw = true;
		break;
	case 1: /* damaged on the way */
		frame_encode(&frame, head);
		head[16] ^= 1;
		raw = true;
		break;
	case 2:
		frame.first_page = PAGES;
		break;
	case 3:
		frame.region = 1;
		break;
	case 4:
		frame.region = 0xffff;
		break;
	case 5: /* two pages' worth of room named for one */
		frame.page_count = 2;
		break;
	case 6: /* a page of another size */
		frame.payload_bytes = 2 * PAGE;
		break;
	case 7:
		frame.type = FRAME_FETCH;
		frame.payload_bytes = 0;
		break;
	case 8:
		frame.type = FRAME_GRANT_END;
		frame.payload_bytes = 0;
		break;
	case 9: /* beyond the end by its count */
		frame.type = FRAME_ZERO;
		frame.payload_bytes = 0;
		frame.first_page = 7;
		frame.page_count = PAGES;
		break;
	}
	if (raw) {
		peer_send(fd, head, sizeof(head));
		peer_send(fd, bytes, PAGE);
	} else {
		peer_send_frame(fd, &frame, frame.payload_bytes ? bytes : NULL);
	}
}

Test(demand, a_frame_that_cannot_be_ends_the_session_and_touches_nothing)
{
	for (unsigned which = 0; which < BAD_FRAMES; which++) {
		struct guest guest;
		provoke(&guest);
		send_bad_frame(which);
		peer_expect_close(fd);
		expect_refused(&guest, "protocol");
	}
}

Test(demand, a_payload_larger_than_any_reply_ends_the_session)
{
	struct guest guest;
	struct frame frame = data_frame(0);
	static uint8_t many[128 * PAGE];

	provoke(&guest);
	frame.page_count = 128; /* more than the buffer holds, and within the region */
	frame.payload_bytes = sizeof(many);
	peer_send_frame(fd, &frame, many);
	expect_refused(&guest, "link-lost");
}

Test(demand, a_payload_that_ends_half_way_is_never_seen)
{
	struct guest guest;
	struct frame frame = data_frame(7);

	provoke(&guest);
	world_make(bytes, PAGE, 7, 66);
	uint8_t head[FRAME_BYTES];
	frame_encode(&frame, head);
	peer_send(fd, head, sizeof(head));
	peer_send(fd, bytes, PAGE - 1);
	shutdown(fd, SHUT_RDWR);
	expect_refused(&guest, "link-lost");
}

Test(demand, a_server_that_hangs_up_leaves_the_guest_waiting)
{
	struct guest guest;

	provoke(&guest);
	shutdown(fd, SHUT_RDWR);
	expect_refused(&guest, "link-lost");
}
