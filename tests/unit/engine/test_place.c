/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that come before the epoch, through a stream thread, from a source that the test plays: one
 * test for each reason why what is present when the epoch begins is the source's last version.
 */
#include "engine/target/place.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/target/fill.h"
#include "tests/unit/engine/world.h"

TestSuite(place, .timeout = 60);

#define PAGES 1024u

static struct world world;
static struct fill *fill;
static int fd;
static uint64_t rounds;

static void open_rounds(void)
{
	struct channel *channel;

	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	atomic_store(&world.shared.session.epoch, 0);
	atomic_store(&world.shared.placing, true);
	peer_open(&channel, &fd);
	fill = calloc(1, sizeof(*fill));
	cr_assert_eq(fill_start(fill, &world.shared, 0, channel, NULL), 0);
	peer_expect_preamble(fd, ATTACH_STREAM, 0);
	rounds = 0;
}

static void close_rounds(void)
{
	atomic_store(&world.shared.install.stop, true);
	fill_stop(fill);
	free(fill);
	close(fd);
	world_close(&world);
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
	peer_send_frame(fd, &frame, bytes);
}

static void send_zeros(uint16_t flags, uint64_t first, uint32_t count)
{
	struct frame frame = {
		.type = FRAME_ZERO, .flags = flags, .page_count = count, .first_page = first};
	peer_send_frame(fd, &frame, NULL);
}

/* Returns when all that was sent before is placed. */
static void end_round(void)
{
	struct frame frame = {.type = FRAME_ROUND, .first_page = rounds};

	peer_send_frame(fd, &frame, NULL);
	cr_assert(peer_read_frame(fd, &frame));
	cr_assert_eq(frame.type, FRAME_ROUND_ACK);
	cr_assert_eq(frame.first_page, rounds);
	rounds++;
}

static void begin_epoch(void)
{
	place_end(&world.shared);
	cr_assert_not(place_busy(&fill->place));
	atomic_store(&world.shared.session.epoch, 1);
}

/* What the guest reads of a page that is present. */
static bool reads(uint64_t page, uint64_t version)
{
	uint8_t expected[PAGE];
	struct guest guest;

	guest_touch(&guest, world_at(&world, 0, page));
	world_serve_present(&world, 0, page);
	guest_join(&guest);
	world_make(expected, PAGE, page, version);
	return memcmp(world_at(&world, 0, page), version ? expected : (uint8_t[PAGE]){0}, PAGE) ==
	       0;
}

Test(place, a_newer_copy_replaces_an_older_one_and_neither_is_seen_before_the_epoch)
{
	open_rounds();
	send_version(0, 7, 1);
	end_round();
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 7));
	guest_await_asleep(&guest); /* whatever lies in the file */
	send_version(0, 7, 2);
	end_round();
	cr_assert(guest_asleep(&guest));
	cr_assert_eq(pagemap_missing(&world.shared.map), PAGES - 1, "one page, placed twice");
	begin_epoch();
	world_serve_present(&world, 0, 7);
	guest_join(&guest);
	cr_assert(world_made(world_at(&world, 0, 7), PAGE, 7, 2));
	close_rounds();
}

Test(place, a_copy_of_a_round_that_comes_after_the_epoch_began_is_dropped)
{
	open_rounds();
	send_version(0, 7, 1);
	send_version(0, 9, 1);
	end_round();
	place_end(&world.shared);
	place_stale(&world.shared, 0, 9, 1);
	atomic_store(&world.shared.session.epoch, 1);
	send_version(0, 7, 666);
	send_version(0, 9, 666);
	send_version(1, 11, 5); /* taken, and so were those before it */
	while (world_state(&world, 0, 11) != PAGE_PRESENT)
		usleep(100);
	cr_assert(reads(7, 1), "what is present stays");
	cr_assert_eq(world_state(&world, 0, 9), PAGE_ABSENT, "what is stale stays away");
	close_rounds();
}

Test(place, nothing_is_placed_from_the_first_word_of_what_is_stale_on)
{
	open_rounds();
	send_version(0, 7, 1);
	end_round();
	place_end(&world.shared); /* ahead of the pause: the epoch is still 0 */
	send_version(0, 7, 666);
	send_zeros(0, 7, 1);
	send_zeros(FRAME_FLAG_HOLE, 8, 1);
	send_version(1, 9, 5); /* of an epoch to come: dropped, too */
	struct frame round = {.type = FRAME_ROUND, .first_page = rounds};
	peer_send_frame(fd, &round, NULL);
	cr_assert_str_eq(world_await_loss(&world)->reason, "protocol", "and no round ends");
	cr_assert_eq(pagemap_missing(&world.shared.map), PAGES - 1);
	atomic_store(&world.shared.session.epoch, 1);
	cr_assert(reads(7, 1));
	close_rounds();
}

Test(place, a_stale_page_is_fetched_again_and_its_older_copy_is_never_seen)
{
	uint8_t newer[PAGE];
	uint64_t installed = 0;

	open_rounds();
	send_version(0, 7, 1);
	send_version(0, 8, 1);
	end_round();
	place_end(&world.shared);
	place_stale(&world.shared, 0, 7, 1);
	atomic_store(&world.shared.session.epoch, 1);
	struct guest guest;
	guest_touch(&guest, world_at(&world, 0, 7));
	cr_assert_eq(world_next_fault(&world, 0).minor, true, "the older copy is in the file");
	cr_assert_eq(world_state(&world, 0, 7), PAGE_ABSENT);
	world_make(newer, PAGE, 7, 2);
	cr_assert_eq(
		install_pages(&world.shared.install, 0, 7, 1, newer, &installed, &world.counters),
		0);
	guest_join(&guest);
	cr_assert_eq(installed, 1);
	cr_assert(world_made(world_at(&world, 0, 7), PAGE, 7, 2));
	cr_assert(reads(8, 1), "its neighbour is as it was placed");
	close_rounds();
}

Test(place, a_freeze_in_the_middle_of_a_round_is_noticed)
{
	open_rounds();
	send_version(0, 7, 1);
	while (!place_busy(&fill->place))
		usleep(100);
	place_end(&world.shared);
	cr_assert(place_busy(&fill->place), "whoever freezes now is told so");
	close_rounds();
}

Test(place, zeros_over_an_older_copy_take_it_out_of_the_file)
{
	open_rounds();
	send_version(0, 7, 1);
	send_zeros(0, 6, 3);
	end_round();
	cr_assert(world_hole(&world, 0, 7));
	begin_epoch();
	cr_assert(reads(7, 0));
	cr_assert(reads(6, 0), "and where nothing was placed before");
	close_rounds();
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
	cr_assert_eq(pagemap_missing(&world.shared.map), PAGES - 16);
	close_rounds();
}

Test(place, rounds_out_of_order_end_the_session)
{
	open_rounds();
	struct frame round = {.type = FRAME_ROUND, .first_page = 3};
	peer_send_frame(fd, &round, NULL);
	cr_assert_str_eq(world_await_loss(&world)->reason, "protocol");
	close_rounds();
}

Test(place, in_a_mode_without_rounds_nothing_is_placed)
{
	open_rounds();
	atomic_store(&world.shared.placing, false);
	send_version(0, 7, 1);
	struct frame round = {.type = FRAME_ROUND};
	peer_send_frame(fd, &round, NULL);
	cr_assert_str_eq(world_await_loss(&world)->reason, "protocol");
	cr_assert_eq(pagemap_missing(&world.shared.map), PAGES);
	cr_assert(world_hole(&world, 0, 7));
	close_rounds();
}
