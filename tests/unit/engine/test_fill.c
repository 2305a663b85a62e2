/* SPDX-License-Identifier: Apache-2.0 */
/* A stream thread of the target against a source that the test plays. */
#include <criterion/criterion.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/unit/engine/filling.h"
#include "transport/ring.h"

TestSuite(fill, .timeout = 60);

static uint8_t bytes[64 * PAGE];

static void open_fill(void)
{
	filling_open(FILLING_PAGES);
	filling_start(true, false);
}

static void expect_grant(uint64_t first, uint64_t count)
{
	struct frame frame = filling_next_grant();
	cr_assert_eq(frame.first_page, first);
	cr_assert_eq(frame.page_count, count);
}

/* Sends a page of its own, and returns when it has come: so has all that was sent before. */
static void settle(uint64_t page)
{
	struct guest guest;

	guest_touch(&guest, world_at(&filling.world, 0, page));
	guest_await_asleep(&guest);
	filling_send_pages(page, 1, 1);
	guest_join(&guest);
}

static void claim(uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		pagemap_claim(&filling.world.shared.map, 0, page / 64, UINT64_C(1) << page % 64);
}

static void await_complete(void)
{
	while (pagemap_missing(&filling.world.shared.map))
		cr_assert_gt(ring_wait(filling.world.ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
}

Test(fill, what_is_absent_is_granted_block_by_block_and_installed)
{
	open_fill();
	for (uint64_t block = 0; block < 4; block++) {
		expect_grant(block * FILLING_BLOCK, FILLING_BLOCK);
		filling_send_pages(block * FILLING_BLOCK, FILLING_BLOCK, 1);
		filling_end_grant(block * FILLING_BLOCK, FILLING_BLOCK);
	}
	await_complete();
	filling_expect_made(0, FILLING_PAGES, 1);
	fill_stop(filling.fill); /* it counts after the page is there */
	cr_assert_eq(counter_get(&filling.fill->counters.pushed), FILLING_PAGES);
	cr_assert_eq(pagemap_missing(&filling.world.shared.map), 0);
	filling_close();
}

Test(fill, over_a_long_round_trip_more_is_asked_for_at_once)
{
	filling_open(FILLING_PAGES);
	atomic_store(&filling.world.shared.round_trip_ns, 100000000);
	filling_start(true, false);
	for (uint64_t block = 0; block < 4; block++)
		expect_grant(block * FILLING_BLOCK, FILLING_BLOCK);
	filling_close();
}

/* As rounds leave them. Of whole blocks it would be two. */
Test(fill, of_blocks_with_little_absent_more_are_out_at_once)
{
	filling_open(FILLING_PAGES);
	for (uint64_t block = 0; block < 4; block++) {
		claim(block * FILLING_BLOCK, 100);
		claim(block * FILLING_BLOCK + 101, FILLING_BLOCK - 101);
	}
	filling_start(true, false);
	for (uint64_t block = 0; block < 4; block++)
		expect_grant(block * FILLING_BLOCK + 100, 1);
	for (uint64_t block = 0; block < 4; block++) {
		filling_send_pages(block * FILLING_BLOCK + 100, 1, 1);
		filling_end_grant(block * FILLING_BLOCK + 100, 1);
	}
	filling_end_grant(1, 1); /* was never made: ends the channel when all before it is done */
	world_await_loss(&filling.world);
	fill_stop(filling.fill);
	cr_assert_eq(filling.fill->out_bytes, 0);
	cr_assert_eq(filling.fill->out_count, 0);
	filling_close();
}

/* They come at once where the round trip is long, and would make it look short. */
Test(fill, holes_told_are_no_answer_to_a_grant)
{
	open_fill();
	expect_grant(0, FILLING_BLOCK);
	filling_send_head(FRAME_ZERO, FRAME_FLAG_HOLE, 100, 300);
	filling_end_grant(1, 1); /* was never made: ends the channel when all before it is done */
	world_await_loss(&filling.world);
	cr_assert_eq(counter_get(&filling.fill->counters.hole), 300);
	cr_assert_eq(filling.fill->window.round_trip_ns, 0);
	filling_close();
}

Test(fill, zeros_that_were_asked_for_are_an_answer_and_no_data)
{
	open_fill();
	expect_grant(0, FILLING_BLOCK);
	filling_send_head(FRAME_ZERO, 0, 100, 300);
	filling_end_grant(1, 1);
	world_await_loss(&filling.world);
	fill_stop(filling.fill);
	cr_assert_gt(filling.fill->window.round_trip_ns, 0);
	cr_assert_eq(filling.fill->window.zero_bytes, 300 * PAGE);
	cr_assert_eq(filling.fill->window.data_bytes, 0);
	filling_close();
}

Test(fill, only_the_absent_runs_of_a_block_are_granted)
{
	filling_open(FILLING_PAGES);
	claim(0, 3);
	claim(10, 90);
	claim(FILLING_BLOCK - 1, 1);
	filling_start(true, false);
	expect_grant(3, 7);
	expect_grant(100, FILLING_BLOCK - 101);
	expect_grant(FILLING_BLOCK, FILLING_BLOCK);
	filling_close();
}

Test(fill, a_fault_moves_the_next_grant)
{
	filling_open(FILLING_PAGES);
	atomic_store(&filling.world.shared.hints[0].at[0], 3 * FILLING_BLOCK + 5);
	atomic_store(&filling.world.shared.hints[0].head, 1);
	filling_start(true, false);
	expect_grant(3 * FILLING_BLOCK, FILLING_BLOCK);
	expect_grant(2 * FILLING_BLOCK, FILLING_BLOCK);
	filling_close();
}

Test(fill, before_memory_is_frozen_nothing_is_granted_and_nothing_is_taken)
{
	filling_open(FILLING_PAGES);
	atomic_store(&filling.world.shared.session.epoch, 0);
	filling_start(false, false);
	struct frame frame = filling_data_frame(7, 1);
	frame.epoch = 0;
	world_make(bytes, PAGE, 7, 99);
	peer_send_frame(filling.fd, &frame, bytes);
	frame = (struct frame){.type = FRAME_ZERO, .page_count = 4, .first_page = 20};
	peer_send_frame(filling.fd, &frame, NULL);
	frame = (struct frame){.type = FRAME_TOLD, .first_page = FILLING_PAGES};
	peer_send_frame(filling.fd, &frame, NULL);
	/* What no frame may do at any time ends the channel: then all before it was dealt with. */
	filling_end_grant(0, FILLING_BLOCK);
	world_await_loss(&filling.world);
	filling_expect_untouched(0, FILLING_PAGES);
	cr_assert_eq(atomic_load(&filling.world.shared.told[0]), 0);
	filling_close();
}

Test(fill, holes_and_zeros_are_taken_unasked_and_counted_apart)
{
	open_fill();
	filling_send_head(FRAME_ZERO, FRAME_FLAG_HOLE, 100, 300);
	filling_send_head(FRAME_TOLD, 0, 400, 0);
	filling_send_head(FRAME_ZERO, 0, 1000, 10);
	settle(FILLING_PAGES - 1);
	cr_assert_eq(counter_get(&filling.fill->counters.hole), 300);
	cr_assert_eq(counter_get(&filling.fill->counters.zero), 10);
	cr_assert_eq(atomic_load(&filling.world.shared.told[0]), 400);
	cr_assert_eq(world_state(&filling.world, 0, 100), PAGE_PRESENT);
	cr_assert_eq(world_state(&filling.world, 0, 399), PAGE_PRESENT);
	filling_expect_untouched(0, 100);
	filling_expect_untouched(400, 600);
	filling_send_head(FRAME_TOLD, 0, 100, 0); /* never backwards */
	settle(FILLING_PAGES - 2);
	cr_assert_eq(atomic_load(&filling.world.shared.told[0]), 400);
	filling_close();
}

Test(fill, pages_that_a_source_loses_are_asked_for_again)
{
	open_fill();
	expect_grant(0, FILLING_BLOCK);
	filling_send_pages(0, 100, 1);
	filling_send_pages(110, FILLING_BLOCK - 110, 1);
	filling_end_grant(0, FILLING_BLOCK);
	for (uint64_t block = 1; block < 4; block++) {
		expect_grant(block * FILLING_BLOCK, FILLING_BLOCK);
		filling_send_pages(block * FILLING_BLOCK, FILLING_BLOCK, 1);
		filling_end_grant(block * FILLING_BLOCK, FILLING_BLOCK);
	}
	expect_grant(100, 10);
	filling_send_pages(100, 10, 1);
	await_complete();
	filling_expect_made(0, FILLING_PAGES, 1);
	filling_close();
}

Test(fill, a_page_that_comes_twice_does_not_undo_what_the_guest_wrote)
{
	open_fill();
	filling_send_pages(0, 64, 1);
	settle(100);
	world_make(world_at(&filling.world, 0, 5), PAGE, 5, 9); /* the guest */
	filling_send_pages(0, 64, 2);
	filling_send_head(FRAME_ZERO, 0, 0, 64);
	settle(101);
	cr_assert(world_made(world_at(&filling.world, 0, 5), PAGE, 5, 9));
	filling_expect_made(0, 5, 1);
	filling_expect_made(6, 58, 1);
	cr_assert_eq(counter_get(&filling.fill->counters.duplicate), 128);
	filling_close();
}

Test(fill, a_page_that_another_has_claimed_is_not_written)
{
	open_fill();
	claim(3, 1);
	filling_send_pages(0, 8, 1);
	settle(100);
	filling_expect_made(0, 3, 1);
	filling_expect_made(4, 4, 1);
	cr_assert_eq(world_state(&filling.world, 0, 3), PAGE_FILLING);
	cr_assert(world_hole(&filling.world, 0, 3));
	filling_close();
}

Test(fill, frames_of_another_epoch_are_dropped_payload_and_all)
{
	struct frame frame = filling_data_frame(0, 8);

	open_fill();
	for (frame.epoch = 0; frame.epoch < 4; frame.epoch += 2)
		peer_send_frame(filling.fd, &frame, bytes);
	frame = (struct frame){.type = FRAME_ZERO, .epoch = 2, .page_count = 8};
	peer_send_frame(filling.fd, &frame, NULL);
	settle(101); /* in step with the stream all the same */
	filling_expect_untouched(0, 101);
	cr_assert(world_made(world_at(&filling.world, 0, 101), PAGE, 101, 1));
	cr_assert_not(world_lost(&filling.world));
	filling_close();
}

/* --- What ends the session ----------------------------------------------------------------------
 */

static void expect_refused(const char *reason)
{
	const struct jaunt_error *why = world_await_loss(&filling.world);

	cr_assert_str_eq(why->reason, reason, "%s: %s", why->reason, why->text);
	cr_assert_gt(strlen(why->text), 20);
	filling_expect_made(200, 1, 1);
	filling_expect_untouched(0, 200);
	filling_expect_untouched(201, FILLING_PAGES - 201);
	filling_close();
}

enum { BAD_FRAMES = 14 };

static void send_bad_frame(unsigned which)
{
	struct frame frame = filling_data_frame(7, 1);
	uint8_t head[FRAME_BYTES];

	memset(bytes, 0x66, sizeof(bytes));
	switch (which) {
	case 0:
		peer_send(filling.fd, bytes, 4096);
		return;
	case 1:
		frame_encode(&frame, head);
		head[12] ^= 4;
		peer_send(filling.fd, head, sizeof(head));
		peer_send(filling.fd, bytes, PAGE);
		return;
	case 2:
		frame.first_page = FILLING_PAGES;
		break;
	case 3:
		frame.first_page = FILLING_PAGES - 1;
		frame.page_count = 2;
		frame.payload_bytes = 2 * PAGE;
		break;
	case 4:
		frame.first_page = UINT64_MAX - 1;
		break;
	case 5:
		frame.region = 1;
		break;
	case 6:
		frame.page_count = 4;
		frame.payload_bytes = 8 * PAGE;
		break;
	case 7: /* the end of a grant that was never made */
		frame = (struct frame){.type = FRAME_GRANT_END, .epoch = 1, .page_count = 5};
		break;
	case 8: /* a grant's end before it is its turn */
		frame = (struct frame){.type = FRAME_GRANT_END,
				       .epoch = 1,
				       .first_page = FILLING_BLOCK,
				       .page_count = FILLING_BLOCK};
		break;
	case 9:
		frame = (struct frame){
			.type = FRAME_TOLD, .epoch = 1, .first_page = FILLING_PAGES + 1};
		break;
	case 10:
		frame = (struct frame){.type = FRAME_FETCH, .epoch = 1, .page_count = 1};
		break;
	case 11:
		frame = (struct frame){
			.type = FRAME_ZERO, .epoch = 1, .page_count = FILLING_PAGES + 1};
		break;
	case 12:
		frame = (struct frame){
			.type = FRAME_ZERO, .epoch = 1, .first_page = 8, .page_count = UINT32_MAX};
		break;
	case 13:
		frame = (struct frame){.type = FRAME_DIGEST, .epoch = 1, .page_count = 1};
		break;
	}
	peer_send_frame(filling.fd, &frame, frame.payload_bytes ? bytes : NULL);
}

Test(fill, a_frame_that_cannot_be_ends_the_session_and_touches_nothing)
{
	for (unsigned which = 0; which < BAD_FRAMES; which++) {
		open_fill();
		settle(200);
		send_bad_frame(which);
		peer_expect_close(filling.fd);
		expect_refused("protocol");
	}
}

Test(fill, a_payload_that_ends_half_way_is_never_seen)
{
	struct frame frame = filling_data_frame(7, 2);
	uint8_t head[FRAME_BYTES];

	open_fill();
	settle(200);
	frame_encode(&frame, head);
	peer_send(filling.fd, head, sizeof(head));
	peer_send(filling.fd, bytes, PAGE / 2); /* not even the first of its pages is whole */
	shutdown(filling.fd, SHUT_RDWR);
	expect_refused("link-lost");
}

Test(fill, of_a_payload_cut_between_pages_none_or_whole_pages_are_seen)
{
	struct frame frame = filling_data_frame(0, 64);
	uint8_t head[FRAME_BYTES];

	open_fill();
	for (uint64_t i = 0; i < 64; i++)
		world_make(bytes + i * PAGE, PAGE, i, 1);
	frame_encode(&frame, head);
	peer_send(filling.fd, head, sizeof(head));
	peer_send(filling.fd, bytes, 40 * PAGE + 100);
	shutdown(filling.fd, SHUT_RDWR);
	world_await_loss(&filling.world);
	for (uint64_t page = 0; page < 64; page++) {
		if (world_state(&filling.world, 0, page) == PAGE_PRESENT)
			filling_expect_made(page, 1, 1);
		else
			filling_expect_untouched(page, 1);
	}
	filling_expect_untouched(40, FILLING_PAGES - 40);
	filling_close();
}

Test(fill, a_vm_that_waits_for_all_of_its_memory_gets_it_without_push)
{
	filling_open(FILLING_PAGES);
	filling_start(false, false);
	struct target_shared *shared = &filling.world.shared;
	atomic_store(&shared->push, false);
	atomic_store(&shared->complete_first, true);
	atomic_store(&shared->granting, true);
	worker_wake(&filling.fill->worker);
	struct frame grant = filling_next_grant();
	cr_assert_gt(grant.page_count, 0);
	filling_close();
}
