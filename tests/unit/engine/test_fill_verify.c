/* SPDX-License-Identifier: Apache-2.0 */
/* A stream thread of the target that asks for the digest of what comes before it is seen. */
#include <criterion/criterion.h>
#include <sched.h>
#include <sys/socket.h>
#include <xxhash.h>

#include "engine/target/place.h"
#include "tests/unit/engine/filling.h"
#include "transport/ring.h"

TestSuite(fill_verify, .timeout = 60);

/* Answers the next question about digests as a source does whose pages are `version`, and whose
 * pages are zero where `zero` says so. */
static struct frame answer_digest(uint64_t version, bool (*zero)(uint64_t page))
{
	static const uint8_t nothing[PAGE];
	static uint8_t page_bytes[PAGE];
	static uint64_t digests[FRAME_DIGEST_PAGES];
	struct frame frame;

	cr_assert(peer_read_frame(filling.check_fd, &frame));
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
	peer_send_frame(filling.check_fd, &answer, digests);
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
	filling_open(FILLING_PAGES);
	filling_start(true, true);
}

/* Sends a good page of its own, and returns when the guest has seen it. */
static void settle(uint64_t page)
{
	struct guest guest;

	filling_send_pages(page, 1, 1);
	answer_digest(1, never);
	guest_touch(&guest, world_at(&filling.world, 0, page));
	guest_join(&guest);
}

Test(fill_verify, a_page_whose_digest_does_not_match_is_not_seen_and_the_others_are)
{
	static uint8_t bytes[32 * PAGE];

	open_verified();
	for (uint64_t i = 0; i < 32; i++)
		world_make(bytes + i * PAGE, PAGE, i, i == 7 ? 0 : 1);
	struct frame frame = filling_data_frame(0, 32);
	peer_send_frame(filling.fd, &frame, bytes);
	answer_digest(1, never);
	/* The second time it comes right. */
	filling_send_pages(7, 1, 1);
	cr_assert_eq(answer_digest(1, never).first_page, 7);
	settle(100);
	filling_expect_made(0, 32, 1);
	cr_assert_eq(counter_get(&filling.fill->counters.mismatched), 1);
	cr_assert_eq(atomic_load(&filling.world.shared.condemned), 0);
	filling_close();
}

/* Waits until so many pages are condemned. */
static void await_condemned(uint64_t count)
{
	while (atomic_load(&filling.world.shared.condemned) < count)
		cr_assert_geq(ring_wait(filling.world.ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
}

/* Answers grants with nothing until the page was asked for twice; the second is left open. */
static void until_asked_again(uint64_t page)
{
	bool seen = false;

	for (;;) {
		struct frame frame = filling_next_grant();
		bool covered = page - frame.first_page < frame.page_count;
		if (covered && seen)
			return;
		seen |= covered;
		filling_end_grant(frame.first_page, frame.page_count);
	}
}

Test(fill_verify, a_page_that_is_wrong_again_when_asked_for_again_stays_missing)
{
	open_verified();
	for (unsigned i = 0; i < 2; i++) {
		if (i)
			until_asked_again(7);
		filling_send_pages(7, 1, 0);
		answer_digest(1, never);
	}
	await_condemned(1);
	cr_assert_eq(world_state(&filling.world, 0, 7), PAGE_FILLING);
	cr_assert(world_hole(&filling.world, 0, 7));
	filling_close();
}

Test(fill_verify, wrong_copies_that_were_under_way_together_count_once)
{
	open_verified();
	for (unsigned i = 0; i < 3; i++) {
		filling_send_pages(7, 1, 0);
		answer_digest(1, never);
	}
	filling_send_pages(7, 1, 1);
	answer_digest(1, never);
	settle(100);
	filling_expect_made(7, 1, 1);
	cr_assert_eq(checker_suspects(&filling.world.shared, 0, 0), 0, "it is none any more");
	cr_assert_eq(counter_get(&filling.fill->counters.mismatched), 3);
	cr_assert_eq(atomic_load(&filling.world.shared.condemned), 0);
	filling_close();
}

Test(fill_verify, of_zeros_that_are_not_all_zero_the_wrong_page_is_found_and_the_rest_taken)
{
	open_verified();
	for (unsigned i = 0; i < 2; i++) {
		if (i)
			until_asked_again(33);
		filling_send_head(FRAME_ZERO, 0, i ? 33 : 0, i ? 1 : 100);
		filling_send_head(FRAME_ZERO, 0, 1000 + i,
				  1); /* when this is asked about, all was */
		while (answer_digest(1, all_but_33).first_page != 1000 + i)
			;
		cr_assert_eq(world_state(&filling.world, 0, 33), i ? PAGE_FILLING : PAGE_ABSENT);
	}
	await_condemned(1);
	for (uint64_t page = 0; page < 100; page++)
		cr_assert_eq(world_state(&filling.world, 0, page),
			     page == 33 ? PAGE_FILLING : PAGE_PRESENT);
	cr_assert_eq(counter_get(&filling.fill->counters.mismatched), 2);
	filling_close();
}

static bool always(uint64_t page)
{
	(void)page;
	return true;
}

Test(fill_verify, zeros_are_asked_about_by_the_gib_at_most)
{
	const uint64_t most = FRAME_DIGEST_ZERO_BYTES / PAGE;

	filling_open(most + 10);
	filling_start(false, true);
	filling_send_head(FRAME_ZERO, FRAME_FLAG_HOLE, 0, most + 10);
	struct frame first = answer_digest(1, always);
	cr_assert_eq(first.page_count, most);
	struct frame second = answer_digest(1, always);
	cr_assert_eq(second.first_page, most);
	cr_assert_eq(second.page_count, 10);
	while (pagemap_missing(&filling.world.shared.map))
		sched_yield();
	filling_close();
}

Test(fill_verify, when_digests_cannot_be_had_nothing_is_seen)
{
	open_verified();
	filling_send_pages(0, 32, 1);
	struct frame frame;
	cr_assert(peer_read_frame(filling.check_fd, &frame));
	shutdown(filling.check_fd, SHUT_RDWR);
	cr_assert_str_eq(world_await_loss(&filling.world)->reason, "link-lost");
	/* Until the stream ends, which shows that all of it was dealt with. */
	filling_end_grant(9, 9);
	peer_expect_close(filling.fd);
	filling_expect_untouched(0, FILLING_PAGES);
	filling_close();
}

/* Of each block a page that a round brought, which is checked before the block is asked for, one
 * that is absent, and nothing else. */
static void open_behind_a_round(void)
{
	struct target_shared *shared = &filling.world.shared;

	filling_open(FILLING_PAGES);
	shared->session.verify = true;
	cr_assert_eq(place_open(shared), 0);
	for (uint64_t page = 0; page < FILLING_PAGES; page++) {
		uint64_t bit = UINT64_C(1) << page % 64;
		if (page % FILLING_BLOCK == 100) {
			world_put_stale(&filling.world, 0, page, 1);
			atomic_fetch_or(&shared->copied[0][page / 64], bit);
		} else if (page % FILLING_BLOCK != 101) {
			pagemap_claim(&shared->map, 0, page / 64, bit);
		}
	}
	filling_start(true, true);
}

Test(fill_verify, what_a_block_lacks_is_asked_for_before_the_next_is_checked)
{
	open_behind_a_round();
	for (uint64_t block = 0; block < 4; block++) {
		cr_assert_eq(answer_digest(1, never).first_page, block * FILLING_BLOCK + 100);
		cr_assert_eq(filling_next_grant().first_page, block * FILLING_BLOCK + 101);
	}
	for (uint64_t page = 101; page < FILLING_PAGES; page += FILLING_BLOCK) {
		filling_send_pages(page, 1, 1);
		cr_assert_eq(answer_digest(1, never).first_page, page);
		filling_end_grant(page, 1);
	}
	filling_end_grant(9, 9); /* was never made: ends the channel when all before it is done */
	world_await_loss(&filling.world);
	fill_stop(filling.fill);
	for (uint64_t page = 100; page < FILLING_PAGES; page += FILLING_BLOCK)
		filling_expect_made(page, 2, 1);
	cr_assert_eq(filling.fill->out_bytes, 0);
	cr_assert_eq(filling.fill->out_count, 0);
	place_close(&filling.world.shared);
	filling_close();
}
