/* SPDX-License-Identifier: Apache-2.0 */
/* A stream thread of the target against a source that the test plays. */
#include "engine/target/fill.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "tests/unit/engine/world.h"
#include "transport/ring.h"

TestSuite(fill, .timeout = 60);

#define BLOCK 512u
#define PAGES (4 * BLOCK)

static struct world world;
static struct fill *fill;
static int fd, check_fd; /* the source's ends */
static uint8_t bytes[64 * PAGE];

static void wake_test(void *user)
{
	session_wake(user);
}

static void start_fill(bool granting, bool verify)
{
	struct channel *channel, *check = NULL;

	world.shared.session.verify = verify;
	atomic_store(&world.shared.granting, granting);
	atomic_store(&world.shared.push, true);
	peer_open(&channel, &fd);
	if (verify)
		peer_open(&check, &check_fd);
	fill = calloc(1, sizeof(*fill));
	cr_assert_eq(fill_start(fill, &world.shared, 0, channel, check), 0);
	peer_expect_preamble(fd, ATTACH_STREAM, 0);
	if (verify)
		peer_expect_preamble(check_fd, ATTACH_VERIFY, 1);
}

static void open_world(void)
{
	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	world.shared.install.complete = wake_test;
	world.shared.install.user = &world.shared.session;
}

static void open_fill(void)
{
	open_world();
	start_fill(true, false);
}

static void close_fill(void)
{
	atomic_store(&world.shared.install.stop, true);
	fill_stop(fill);
	free(fill);
	close(fd);
	if (world.shared.session.verify)
		close(check_fd);
	world_close(&world);
}

static struct frame next_grant(void)
{
	struct frame frame;

	cr_assert(peer_read_frame(fd, &frame));
	cr_assert_eq(frame.type, FRAME_GRANT);
	cr_assert_eq(frame.epoch, 1);
	return frame;
}

static void expect_grant(uint64_t first, uint64_t count)
{
	struct frame frame = next_grant();
	cr_assert_eq(frame.first_page, first);
	cr_assert_eq(frame.page_count, count);
}

static struct frame data_frame(uint64_t first, uint64_t count)
{
	return (struct frame){.type = FRAME_DATA,
			      .epoch = 1,
			      .page_count = (uint32_t)count,
			      .first_page = first,
			      .payload_bytes = (uint32_t)(count * PAGE)};
}

static void send_pages(uint64_t first, uint64_t count, uint64_t version)
{
	while (count) {
		uint64_t step = count < 64 ? count : 64;
		struct frame frame = data_frame(first, step);
		for (uint64_t i = 0; i < step; i++)
			world_make(bytes + i * PAGE, PAGE, first + i, version);
		peer_send_frame(fd, &frame, bytes);
		first += step;
		count -= step;
	}
}

static void send_head(enum frame_type type, uint16_t flags, uint64_t first, uint64_t count)
{
	struct frame frame = {.type = (uint8_t)type,
			      .flags = flags,
			      .epoch = 1,
			      .page_count = (uint32_t)count,
			      .first_page = first};
	peer_send_frame(fd, &frame, NULL);
}

static void end_grant(uint64_t first, uint64_t count)
{
	send_head(FRAME_GRANT_END, 0, first, count);
}

/* Sends a page of its own, and returns when it has come: so has all that was sent before. */
static void settle(uint64_t page)
{
	struct guest guest;

	guest_touch(&guest, world_at(&world, 0, page));
	guest_await_asleep(&guest);
	send_pages(page, 1, 1);
	guest_join(&guest);
}

static void expect_made(uint64_t first, uint64_t count, uint64_t version)
{
	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&world, 0, page), PAGE_PRESENT);
		cr_assert(world_made(world_at(&world, 0, page), PAGE, page, version), "page %lu",
			  page);
	}
}

static void expect_untouched(uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&world, 0, page), PAGE_ABSENT);
		cr_assert(world_hole(&world, 0, page), "page %lu", page);
	}
}

static void claim(uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		pagemap_claim(&world.shared.map, 0, page / 64, UINT64_C(1) << page % 64);
}

static void await_complete(void)
{
	while (pagemap_missing(&world.shared.map))
		cr_assert_gt(ring_wait(world.ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
}

Test(fill, what_is_absent_is_granted_block_by_block_and_installed)
{
	open_fill();
	for (uint64_t block = 0; block < 4; block++) {
		expect_grant(block * BLOCK, BLOCK);
		send_pages(block * BLOCK, BLOCK, 1);
		end_grant(block * BLOCK, BLOCK);
	}
	await_complete();
	expect_made(0, PAGES, 1);
	fill_stop(fill); /* it counts after the page is there */
	cr_assert_eq(counter_get(&fill->counters.pushed), PAGES);
	cr_assert_eq(pagemap_missing(&world.shared.map), 0);
	close_fill();
}

Test(fill, only_the_absent_runs_of_a_block_are_granted)
{
	open_world();
	claim(0, 3);
	claim(10, 90);
	claim(BLOCK - 1, 1);
	start_fill(true, false);
	expect_grant(3, 7);
	expect_grant(100, BLOCK - 101);
	expect_grant(BLOCK, BLOCK);
	close_fill();
}

Test(fill, a_fault_moves_the_next_grant)
{
	open_world();
	atomic_store(&world.shared.hints[0].at[0], 3 * BLOCK + 5);
	atomic_store(&world.shared.hints[0].head, 1);
	start_fill(true, false);
	expect_grant(3 * BLOCK, BLOCK);
	expect_grant(2 * BLOCK, BLOCK);
	close_fill();
}

Test(fill, before_memory_is_frozen_nothing_is_granted_and_nothing_is_taken)
{
	open_world();
	atomic_store(&world.shared.session.epoch, 0);
	start_fill(false, false);
	struct frame frame = data_frame(7, 1);
	frame.epoch = 0;
	world_make(bytes, PAGE, 7, 99);
	peer_send_frame(fd, &frame, bytes);
	frame = (struct frame){.type = FRAME_ZERO, .page_count = 4, .first_page = 20};
	peer_send_frame(fd, &frame, NULL);
	frame = (struct frame){.type = FRAME_TOLD, .first_page = PAGES};
	peer_send_frame(fd, &frame, NULL);
	/* What no frame may do at any time ends the channel: then all before it was dealt with. */
	end_grant(0, BLOCK);
	world_await_loss(&world);
	expect_untouched(0, PAGES);
	cr_assert_eq(atomic_load(&world.shared.told[0]), 0);
	close_fill();
}

Test(fill, holes_and_zeros_are_taken_unasked_and_counted_apart)
{
	open_fill();
	send_head(FRAME_ZERO, FRAME_FLAG_HOLE, 100, 300);
	send_head(FRAME_TOLD, 0, 400, 0);
	send_head(FRAME_ZERO, 0, 1000, 10);
	settle(PAGES - 1);
	cr_assert_eq(counter_get(&fill->counters.hole), 300);
	cr_assert_eq(counter_get(&fill->counters.zero), 10);
	cr_assert_eq(atomic_load(&world.shared.told[0]), 400);
	cr_assert_eq(world_state(&world, 0, 100), PAGE_PRESENT);
	cr_assert_eq(world_state(&world, 0, 399), PAGE_PRESENT);
	expect_untouched(0, 100);
	expect_untouched(400, 600);
	send_head(FRAME_TOLD, 0, 100, 0); /* never backwards */
	settle(PAGES - 2);
	cr_assert_eq(atomic_load(&world.shared.told[0]), 400);
	close_fill();
}

Test(fill, pages_that_a_source_loses_are_asked_for_again)
{
	open_fill();
	expect_grant(0, BLOCK);
	send_pages(0, 100, 1);
	send_pages(110, BLOCK - 110, 1);
	end_grant(0, BLOCK);
	for (uint64_t block = 1; block < 4; block++) {
		expect_grant(block * BLOCK, BLOCK);
		send_pages(block * BLOCK, BLOCK, 1);
		end_grant(block * BLOCK, BLOCK);
	}
	expect_grant(100, 10);
	send_pages(100, 10, 1);
	await_complete();
	expect_made(0, PAGES, 1);
	close_fill();
}

Test(fill, a_page_that_comes_twice_does_not_undo_what_the_guest_wrote)
{
	open_fill();
	send_pages(0, 64, 1);
	settle(100);
	world_make(world_at(&world, 0, 5), PAGE, 5, 9); /* the guest */
	send_pages(0, 64, 2);
	send_head(FRAME_ZERO, 0, 0, 64);
	settle(101);
	cr_assert(world_made(world_at(&world, 0, 5), PAGE, 5, 9));
	expect_made(0, 5, 1);
	expect_made(6, 58, 1);
	cr_assert_eq(counter_get(&fill->counters.duplicate), 128);
	close_fill();
}

Test(fill, a_page_that_another_has_claimed_is_not_written)
{
	open_fill();
	claim(3, 1);
	send_pages(0, 8, 1);
	settle(100);
	expect_made(0, 3, 1);
	expect_made(4, 4, 1);
	cr_assert_eq(world_state(&world, 0, 3), PAGE_FILLING);
	cr_assert(world_hole(&world, 0, 3));
	close_fill();
}

Test(fill, frames_of_another_epoch_are_dropped_payload_and_all)
{
	struct frame frame = data_frame(0, 8);

	open_fill();
	for (frame.epoch = 0; frame.epoch < 4; frame.epoch += 2)
		peer_send_frame(fd, &frame, bytes);
	frame = (struct frame){.type = FRAME_ZERO, .epoch = 2, .page_count = 8};
	peer_send_frame(fd, &frame, NULL);
	settle(101); /* in step with the stream all the same */
	expect_untouched(0, 101);
	cr_assert(world_made(world_at(&world, 0, 101), PAGE, 101, 1));
	cr_assert_not(world_lost(&world));
	close_fill();
}

/* --- What ends the session ----------------------------------------------------------------------
 */

static void expect_refused(const char *reason)
{
	const struct jaunt_error *why = world_await_loss(&world);

	cr_assert_str_eq(why->reason, reason, "%s: %s", why->reason, why->text);
	cr_assert_gt(strlen(why->text), 20);
	expect_made(200, 1, 1);
	expect_untouched(0, 200);
	expect_untouched(201, PAGES - 201);
	close_fill();
}

enum { BAD_FRAMES = 14 };

static void send_bad_frame(unsigned which)
{
	struct frame frame = data_frame(7, 1);
	uint8_t head[FRAME_BYTES];

	memset(bytes, 0x66, sizeof(bytes));
	switch (which) {
	case 0:
		peer_send(fd, bytes, 4096);
		return;
	case 1:
		frame_encode(&frame, head);
		head[12] ^= 4;
		peer_send(fd, head, sizeof(head));
		peer_send(fd, bytes, PAGE);
		return;
	case 2:
		frame.first_page = PAGES;
		break;
	case 3:
		frame.first_page = PAGES - 1;
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
				       .first_page = BLOCK,
				       .page_count = BLOCK};
		break;
	case 9:
		frame = (struct frame){.type = FRAME_TOLD, .epoch = 1, .first_page = PAGES + 1};
		break;
	case 10:
		frame = (struct frame){.type = FRAME_FETCH, .epoch = 1, .page_count = 1};
		break;
	case 11:
		frame = (struct frame){.type = FRAME_ZERO, .epoch = 1, .page_count = PAGES + 1};
		break;
	case 12:
		frame = (struct frame){
			.type = FRAME_ZERO, .epoch = 1, .first_page = 8, .page_count = UINT32_MAX};
		break;
	case 13:
		frame = (struct frame){.type = FRAME_DIGEST, .epoch = 1, .page_count = 1};
		break;
	}
	peer_send_frame(fd, &frame, frame.payload_bytes ? bytes : NULL);
}

Test(fill, a_frame_that_cannot_be_ends_the_session_and_touches_nothing)
{
	for (unsigned which = 0; which < BAD_FRAMES; which++) {
		open_fill();
		settle(200);
		send_bad_frame(which);
		peer_expect_close(fd);
		expect_refused("protocol");
	}
}

Test(fill, a_payload_that_ends_half_way_is_never_seen)
{
	struct frame frame = data_frame(7, 2);
	uint8_t head[FRAME_BYTES];

	open_fill();
	settle(200);
	frame_encode(&frame, head);
	peer_send(fd, head, sizeof(head));
	peer_send(fd, bytes, PAGE / 2); /* not even the first of its pages is whole */
	shutdown(fd, SHUT_RDWR);
	expect_refused("link-lost");
}

Test(fill, of_a_payload_cut_between_pages_none_or_whole_pages_are_seen)
{
	struct frame frame = data_frame(0, 64);
	uint8_t head[FRAME_BYTES];

	open_fill();
	for (uint64_t i = 0; i < 64; i++)
		world_make(bytes + i * PAGE, PAGE, i, 1);
	frame_encode(&frame, head);
	peer_send(fd, head, sizeof(head));
	peer_send(fd, bytes, 40 * PAGE + 100);
	shutdown(fd, SHUT_RDWR);
	world_await_loss(&world);
	for (uint64_t page = 0; page < 64; page++) {
		if (world_state(&world, 0, page) == PAGE_PRESENT)
			expect_made(page, 1, 1);
		else
			expect_untouched(page, 1);
	}
	expect_untouched(40, PAGES - 40);
	close_fill();
}

/* --- With --verify ------------------------------------------------------------------------------
 */

/* Answers the next question about digests as a source does whose pages are `version`, and whose
 * pages are zero where `zero` says so. */
static struct frame answer_digest(uint64_t version, bool (*zero)(uint64_t page))
{
	static const uint8_t nothing[PAGE];
	static uint8_t page_bytes[PAGE];
	static uint64_t digests[FRAME_DIGEST_PAGES];
	struct frame frame;

	cr_assert(peer_read_frame(check_fd, &frame));
	cr_assert_eq(frame.type, FRAME_DIGEST);
	struct frame answer = frame;
	if (frame.flags & FRAME_FLAG_ALL_ZERO) {
		for (uint64_t i = 0; i < frame.page_count; i++)
			if (!zero(frame.first_page + i))
				answer.flags = 0;
	} else {
		for (uint64_t i = 0; i < frame.page_count; i++) {
			world_make(page_bytes, PAGE, frame.first_page + i, version);
			digests[i] = XXH3_64bits(zero(frame.first_page + i) ? nothing : page_bytes,
						 PAGE);
		}
		answer.payload_bytes = frame.page_count * 8;
	}
	peer_send_frame(check_fd, &answer, digests);
	return frame;
}

static bool never(uint64_t page)
{
	(void)page;
	return false;
}

static bool all_but_33(uint64_t page)
{
	return page != 33;
}

static void open_verified(void)
{
	open_world();
	start_fill(true, true);
}

Test(fill, a_page_whose_digest_does_not_match_is_not_seen_and_the_others_are)
{
	open_verified();
	for (uint64_t i = 0; i < 32; i++)
		world_make(bytes + i * PAGE, PAGE, i, i == 7 ? 0 : 1);
	struct frame frame = data_frame(0, 32);
	peer_send_frame(fd, &frame, bytes);
	answer_digest(1, never);
	/* The second time it comes right. */
	send_pages(7, 1, 1);
	cr_assert_eq(answer_digest(1, never).first_page, 7);
	send_pages(100, 1, 1);
	answer_digest(1, never);
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 100));
	guest_join(&guest);
	expect_made(0, 32, 1);
	cr_assert_eq(counter_get(&fill->counters.mismatched), 1);
	cr_assert_eq(atomic_load(&world.shared.condemned), 0);
	close_fill();
}

/* Waits until so many pages are condemned. */
static void await_condemned(uint64_t count)
{
	while (atomic_load(&world.shared.condemned) < count)
		cr_assert_geq(ring_wait(world.ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
}

/* Answers grants with nothing until the page was asked for twice; the second is left open. */
static void until_asked_again(uint64_t page)
{
	bool seen = false;

	for (;;) {
		struct frame frame = next_grant();
		bool covered = page - frame.first_page < frame.page_count;
		if (covered && seen)
			return;
		seen |= covered;
		end_grant(frame.first_page, frame.page_count);
	}
}

Test(fill, a_page_that_is_wrong_again_when_asked_for_again_stays_missing)
{
	open_verified();
	for (unsigned i = 0; i < 2; i++) {
		if (i)
			until_asked_again(7);
		send_pages(7, 1, 0);
		answer_digest(1, never);
	}
	await_condemned(1);
	cr_assert_eq(world_state(&world, 0, 7), PAGE_FILLING);
	cr_assert(world_hole(&world, 0, 7));
	close_fill();
}

Test(fill, wrong_copies_that_were_under_way_together_count_once)
{
	open_verified();
	for (unsigned i = 0; i < 3; i++) {
		send_pages(7, 1, 0);
		answer_digest(1, never);
	}
	send_pages(7, 1, 1);
	answer_digest(1, never);
	send_pages(100, 1, 1);
	answer_digest(1, never);
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 100));
	guest_join(&guest);
	expect_made(7, 1, 1);
	cr_assert_eq(checker_suspects(&world.shared, 0, 0), 0, "it is none any more");
	cr_assert_eq(counter_get(&fill->counters.mismatched), 3);
	cr_assert_eq(atomic_load(&world.shared.condemned), 0);
	close_fill();
}

Test(fill, of_zeros_that_are_not_all_zero_the_wrong_page_is_found_and_the_rest_taken)
{
	open_verified();
	for (unsigned i = 0; i < 2; i++) {
		if (i)
			until_asked_again(33);
		send_head(FRAME_ZERO, 0, i ? 33 : 0, i ? 1 : 100);
		send_head(FRAME_ZERO, 0, 1000 + i, 1); /* when this is asked about, all was */
		while (answer_digest(1, all_but_33).first_page != 1000 + i)
			;
		cr_assert_eq(world_state(&world, 0, 33), i ? PAGE_FILLING : PAGE_ABSENT);
	}
	await_condemned(1);
	for (uint64_t page = 0; page < 100; page++)
		cr_assert_eq(world_state(&world, 0, page),
			     page == 33 ? PAGE_FILLING : PAGE_PRESENT);
	cr_assert_eq(counter_get(&fill->counters.mismatched), 2);
	close_fill();
}

static bool always(uint64_t page)
{
	(void)page;
	return true;
}

Test(fill, zeros_are_asked_about_by_the_gib_at_most)
{
	const uint64_t most = FRAME_DIGEST_ZERO_BYTES / PAGE;

	if (!world_open_pages(&world, most + 10))
		cr_skip_test("%s", world.lack);
	start_fill(false, true);
	send_head(FRAME_ZERO, FRAME_FLAG_HOLE, 0, most + 10);
	struct frame first = answer_digest(1, always);
	cr_assert_eq(first.page_count, most);
	struct frame second = answer_digest(1, always);
	cr_assert_eq(second.first_page, most);
	cr_assert_eq(second.page_count, 10);
	while (pagemap_missing(&world.shared.map))
		sched_yield();
	close_fill();
}

Test(fill, when_digests_cannot_be_had_nothing_is_seen)
{
	open_verified();
	send_pages(0, 32, 1);
	struct frame frame;
	cr_assert(peer_read_frame(check_fd, &frame));
	shutdown(check_fd, SHUT_RDWR);
	cr_assert_str_eq(world_await_loss(&world)->reason, "link-lost");
	/* Until the stream ends, which shows that all of it was dealt with. */
	end_grant(9, 9);
	peer_expect_close(fd);
	expect_untouched(0, PAGES);
	close_fill();
}
