/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that come before the epoch, through a stream thread, from a source that the test plays: one
 * test for each reason why what is present when the epoch begins is the source's last version.
 */
#include "engine/target/place.h"

#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/engine/filling.h"

TestSuite(place, .timeout = 60);

#define PAGES 1024u

static uint64_t rounds;

static void open_rounds(void)
{
	filling_open(PAGES);
	atomic_store(&filling.world.shared.session.epoch, 0);
	atomic_store(&filling.world.shared.placing, true);
	filling_start(false, false);
	rounds = 0;
}

static void send_version(uint32_t epoch, uint64_t page, uint64_t version)
{
	static uint8_t bytes[PAGE];
	struct frame frame = {.type = FRAME_DATA,
			      .epoch = epoch,
			      .page_count = 1,
			      .first_page = page,
			      .payload_bytes = PAGE};

	world_make(bytes, PAGE, page, version);
	peer_send_frame(filling.fd, &frame, bytes);
}

static void send_zeros(uint16_t flags, uint64_t first, uint32_t count)
{
	struct frame frame = {
		.type = FRAME_ZERO, .flags = flags, .page_count = count, .first_page = first};
	peer_send_frame(filling.fd, &frame, NULL);
}

/* Returns when all that was sent before is placed. */
static void end_round(void)
{
	struct frame frame = {.type = FRAME_ROUND, .first_page = rounds};

	peer_send_frame(filling.fd, &frame, NULL);
	cr_assert(peer_read_frame(filling.fd, &frame));
	cr_assert_eq(frame.type, FRAME_ROUND_ACK);
	cr_assert_eq(frame.first_page, rounds);
	rounds++;
}

static void begin_epoch(void)
{
	place_end(&filling.world.shared);
	cr_assert_not(place_busy(&filling.fill->place));
	atomic_store(&filling.world.shared.session.epoch, 1);
}

/* What the guest reads of a page that is present. */
static bool reads(uint64_t page, uint64_t version)
{
	uint8_t expected[PAGE];
	struct guest guest;

	guest_touch(&guest, world_at(&filling.world, 0, page));
	world_serve_present(&filling.world, 0, page);
	guest_join(&guest);
	world_make(expected, PAGE, page, version);
	return memcmp(world_at(&filling.world, 0, page), version ? expected : (uint8_t[PAGE]){0},
		      PAGE) == 0;
}

Test(place, a_newer_copy_replaces_an_older_one_and_neither_is_seen_before_the_epoch)
{
	open_rounds();
	send_version(0, 7, 1);
	end_round();
	struct guest guest;
	guest_touch(&guest, world_at(&filling.world, 0, 7));
	guest_await_asleep(&guest); /* whatever lies in the file */
	send_version(0, 7, 2);
	end_round();
	cr_assert(guest_asleep(&guest));
	cr_assert_eq(pagemap_missing(&filling.world.shared.map), PAGES - 1,
		     "one page, placed twice");
	begin_epoch();
	world_serve_present(&filling.world, 0, 7);
	guest_join(&guest);
	cr_assert(world_made(world_at(&filling.world, 0, 7), PAGE, 7, 2));
	filling_close();
}

Test(place, a_copy_of_a_round_that_comes_after_the_epoch_began_is_dropped)
{
	open_rounds();
	send_version(0, 7, 1);
	send_version(0, 9, 1);
	end_round();
	place_end(&filling.world.shared);
	place_stale(&filling.world.shared, 0, 9, 1);
	atomic_store(&filling.world.shared.session.epoch, 1);
	send_version(0, 7, 666);
	send_version(0, 9, 666);
	send_version(1, 11, 5); /* taken, and so were those before it */
	while (world_state(&filling.world, 0, 11) != PAGE_PRESENT)
		usleep(100);
	cr_assert(reads(7, 1), "what is present stays");
	cr_assert_eq(world_state(&filling.world, 0, 9), PAGE_ABSENT, "what is stale stays away");
	filling_close();
}

Test(place, nothing_is_placed_from_the_first_word_of_what_is_stale_on)
{
	open_rounds();
	send_version(0, 7, 1);
	end_round();
	place_end(&filling.world.shared); /* ahead of the pause: the epoch is still 0 */
	send_version(0, 7, 666);
	send_zeros(0, 7, 1);
	send_zeros(FRAME_FLAG_HOLE, 8, 1);
	send_version(1, 9, 5); /* of an epoch to come: dropped, too */
	struct frame round = {.type = FRAME_ROUND, .first_page = rounds};
	peer_send_frame(filling.fd, &round, NULL);
	cr_assert_str_eq(world_await_loss(&filling.world)->reason, "protocol", "and no round ends");
	cr_assert_eq(pagemap_missing(&filling.world.shared.map), PAGES - 1);
	atomic_store(&filling.world.shared.session.epoch, 1);
	cr_assert(reads(7, 1));
	filling_close();
}

Test(place, a_stale_page_is_fetched_again_and_its_older_copy_is_never_seen)
{
	uint8_t newer[PAGE];
	uint64_t installed = 0;

	open_rounds();
	send_version(0, 7, 1);
	send_version(0, 8, 1);
	end_round();
	place_end(&filling.world.shared);
	place_stale(&filling.world.shared, 0, 7, 1);
	atomic_store(&filling.world.shared.session.epoch, 1);
	struct guest guest;
	guest_touch(&guest, world_at(&filling.world, 0, 7));
	cr_assert_eq(world_next_fault(&filling.world, 0).minor, true,
		     "the older copy is in the file");
	cr_assert_eq(world_state(&filling.world, 0, 7), PAGE_ABSENT);
	world_make(newer, PAGE, 7, 2);
	cr_assert_eq(install_pages(&filling.world.shared.install, 0, 7, 1, newer, &installed,
				   &filling.world.counters),
		     0);
	guest_join(&guest);
	cr_assert_eq(installed, 1);
	cr_assert(world_made(world_at(&filling.world, 0, 7), PAGE, 7, 2));
	cr_assert(reads(8, 1), "its neighbour is as it was placed");
	filling_close();
}

Test(place, a_freeze_in_the_middle_of_a_round_is_noticed)
{
	open_rounds();
	send_version(0, 7, 1);
	while (!place_busy(&filling.fill->place))
		usleep(100);
	place_end(&filling.world.shared);
	cr_assert(place_busy(&filling.fill->place), "whoever freezes now is told so");
	filling_close();
}

Test(place, zeros_over_an_older_copy_take_it_out_of_the_file)
{
	open_rounds();
	send_version(0, 7, 1);
	send_zeros(0, 6, 3);
	end_round();
	cr_assert(world_hole(&filling.world, 0, 7));
	begin_epoch();
	cr_assert(reads(7, 0));
	cr_assert(reads(6, 0), "and where nothing was placed before");
	filling_close();
}

Test(place, a_hole_never_replaces_what_was_placed_whichever_comes_first)
{
	open_rounds();
	send_version(0, 7, 1);
	send_zeros(FRAME_FLAG_HOLE, 0, 16);
	send_version(0, 3, 1);
	end_round();
	begin_epoch();
	cr_assert(reads(7, 1));
	cr_assert(reads(3, 1));
	cr_assert(reads(5, 0));
	cr_assert_eq(pagemap_missing(&filling.world.shared.map), PAGES - 16);
	filling_close();
}

Test(place, rounds_out_of_order_end_the_session)
{
	open_rounds();
	struct frame round = {.type = FRAME_ROUND, .first_page = 3};
	peer_send_frame(filling.fd, &round, NULL);
	cr_assert_str_eq(world_await_loss(&filling.world)->reason, "protocol");
	filling_close();
}

Test(place, in_a_mode_without_rounds_nothing_is_placed)
{
	open_rounds();
	atomic_store(&filling.world.shared.placing, false);
	send_version(0, 7, 1);
	struct frame round = {.type = FRAME_ROUND};
	peer_send_frame(filling.fd, &round, NULL);
	cr_assert_str_eq(world_await_loss(&filling.world)->reason, "protocol");
	cr_assert_eq(pagemap_missing(&filling.world.shared.map), PAGES);
	cr_assert(world_hole(&filling.world, 0, 7));
	filling_close();
}

static void send_told(uint32_t epoch, uint64_t page)
{
	struct frame frame = {.type = FRAME_TOLD, .epoch = epoch, .first_page = page};
	peer_send_frame(filling.fd, &frame, NULL);
}

/* With digests a hole of a round is told again: until then what is absent may be one, and reading
 * it at the source would fill it. */
Test(place, what_a_round_told_of_holes_counts_only_where_they_were_taken)
{
	for (int verify = 0; verify < 2; verify++) {
		_Atomic uint64_t copied[PAGES / 64] = {0};
		open_rounds();
		struct target_shared *shared = &filling.world.shared;
		shared->copied[0] = verify ? copied : NULL;
		send_zeros(FRAME_FLAG_HOLE, 0, 16);
		send_told(0, 16);
		end_round();
		cr_assert_eq(atomic_load(&shared->told[0]), verify ? 0 : 16);
		cr_assert_eq(pagemap_missing(&shared->map), verify ? PAGES : PAGES - 16);
		begin_epoch();
		send_told(1, 32);
		while (atomic_load(&shared->told[0]) != 32)
			usleep(100);
		shared->copied[0] = NULL;
		filling_close();
	}
}
