/* SPDX-License-Identifier: Apache-2.0 */
/* A stream of the source, and a target that the test plays. */
#include "engine/source/pusher.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/source/holes.h"
#include "tests/unit/engine/world.h"

TestSuite(pusher, .timeout = 60);

#define PAGES 512u

static struct world world; /* only its memory is of use */
static struct source_shared shared;
static struct rounds rounds; /* none has begun */
static struct pusher *pusher;
static int fd;
static uint8_t got[PAGES * PAGE];
static bool zero[PAGES], data[PAGES];

static void no_wake(void *user)
{
	(void)user;
}

static void open_pusher_of(struct holes *holes, uint32_t epoch)
{
	struct channel *channel;
	struct frame frame = {.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES};
	struct attach attach = {.role = ATTACH_STREAM};
	uint8_t payload[ATTACH_BYTES];

	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	shared.memory = world.shared.memory;
	/* A view that no userfaultfd stands behind, as a source has. */
	shared.memory.regions[0].near_view = shared.memory.regions[0].view;
	shared.streams = 1;
	pthread_mutex_init(&shared.session.mutex, NULL);
	atomic_store(&shared.session.epoch, epoch);
	cr_assert_eq(dirty_open(&shared.dirty, &shared.memory), 0);
	rounds_init(&rounds, &shared, no_wake, NULL);
	if (holes)
		holes_init(holes, &shared.memory, no_wake, NULL);
	peer_open(&channel, &fd);
	pusher = calloc(1, sizeof(*pusher));
	cr_assert_eq(pusher_start(pusher, &shared, 0, channel, holes, &rounds), 0);
	peer_expect_preamble(fd, ATTACH_STREAM, 0);
	attach_encode(&attach, payload);
	peer_send_frame(fd, &frame, payload);
}

static void open_pusher(void)
{
	open_pusher_of(NULL, 1);
}

static void close_pusher(void)
{
	pusher_stop(pusher);
	free(pusher);
	close(fd);
	dirty_close(&shared.dirty);
	world_close(&world);
}

static void write_pages(uint64_t first, uint64_t count)
{
	const struct guest_region *region = &world.shared.memory.regions[0];
	for (uint64_t page = first; page < first + count; page++)
		world_make(region->view + page * PAGE, PAGE, page, 1);
}

static void grant(uint64_t first, uint64_t count, uint16_t flags)
{
	struct frame frame = {.type = FRAME_GRANT,
			      .flags = flags,
			      .epoch = 1,
			      .page_count = (uint32_t)count,
			      .first_page = first};
	peer_send_frame(fd, &frame, NULL);
}

/* Notes what comes, until the end of that grant. */
static void take_answer(uint64_t first, uint64_t count)
{
	uint64_t next = first;

	memset(zero, 0, sizeof(zero));
	memset(data, 0, sizeof(data));
	for (;;) {
		uint8_t head[FRAME_BYTES];
		struct frame frame;
		cr_assert(peer_read(fd, head, sizeof(head)));
		cr_assert_eq(frame_decode(&frame, head), FRAME_OK);
		cr_assert_eq(frame.epoch, 1);
		cr_assert_geq(frame.first_page, frame.type == FRAME_GRANT_END ? first : next);
		cr_assert_leq(frame.first_page + frame.page_count, first + count);
		if (frame.type == FRAME_GRANT_END) {
			cr_assert_eq(frame.first_page, first);
			cr_assert_eq(frame.page_count, count);
			return;
		}
		cr_assert(frame.type == FRAME_ZERO || frame.type == FRAME_DATA);
		for (uint32_t i = 0; i < frame.page_count; i++)
			(frame.type == FRAME_ZERO ? zero : data)[frame.first_page + i] = true;
		if (frame.type == FRAME_DATA)
			cr_assert(
				peer_read(fd, got + frame.first_page * PAGE, frame.payload_bytes));
		next = frame.first_page + frame.page_count;
	}
}

static void expect(const bool *which, uint64_t first, uint64_t count, bool said)
{
	for (uint64_t page = first; page < first + count; page++)
		cr_assert_eq(which[page], said, "page %lu", page);
}

static void expect_bytes(uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		cr_assert(world_made(got + page * PAGE, PAGE, page, 1), "page %lu", page);
}

Test(pusher, a_grant_is_answered_with_every_page)
{
	open_pusher();
	write_pages(0, 100);
	write_pages(200, 312);
	grant(0, PAGES, 0);
	take_answer(0, PAGES);
	expect(data, 0, 100, true);
	expect(zero, 100, 100, true);
	expect(data, 200, 312, true);
	expect_bytes(0, 100);
	expect_bytes(200, 312);
	close_pusher();
}

Test(pusher, a_description_says_what_is_zero_and_sends_nothing)
{
	open_pusher();
	write_pages(0, 100);
	write_pages(200, 12);
	write_pages(213, PAGES - 213);
	for (unsigned told = 0; told < 2; told++) {
		grant(0, PAGES, told ? FRAME_FLAG_DESCRIBE | FRAME_FLAG_TOLD : FRAME_FLAG_DESCRIBE);
		take_answer(0, PAGES);
		expect(data, 0, PAGES, false);
		expect(zero, 0, 100, false);
		expect(zero, 100, 100, true);
		expect(zero, 200, 12, false);
		expect(zero, 212, 1, true);
		expect(zero, 213, PAGES - 213, false);
	}
	cr_assert_eq(counter_get(&pusher->data_pages), 0);
	close_pusher();
}

Test(pusher, a_description_that_is_not_told_of_its_holes_fills_none)
{
	open_pusher();
	write_pages(7, 1);
	grant(0, PAGES, FRAME_FLAG_DESCRIBE);
	take_answer(0, PAGES);
	for (uint64_t page = 0; page < PAGES; page++)
		cr_assert_eq(world_hole(&world, 0, page), page != 7, "page %lu", page);
	close_pusher();
}

Test(pusher, under_a_limit_of_bandwidth_a_description_sends_all_the_same)
{
	open_pusher();
	atomic_store(&shared.paced, true);
	write_pages(0, 64);
	grant(0, 128, FRAME_FLAG_DESCRIBE);
	take_answer(0, 128);
	expect(data, 0, 64, true);
	expect(zero, 64, 64, true);
	expect_bytes(0, 64);
	close_pusher();
}

/* In a round that was cut the search may still have found something. Behind the ROUND it would open
 * the next round at the target, in the middle of which FREEZE would then find it. */
Test(pusher, nothing_is_told_of_holes_behind_the_end_of_a_round)
{
	struct holes holes;
	struct frame frame;

	open_pusher_of(&holes, 0);
	rounds_search_over(&rounds);
	for (unsigned i = 0; i < 2; i++) {
		rounds_begin(&rounds);
		rounds_cut(&rounds);
		worker_wake(&pusher->worker);
		cr_assert(peer_read_frame(fd, &frame));
		cr_assert_eq(frame.type, FRAME_ROUND);
		cr_assert_eq(frame.first_page, i);
		pthread_mutex_lock(&holes.mutex);
		holes.queue[0] = (struct hole_run){0, 0, 8, 8};
		holes.head = 0;
		holes.count = 1;
		pthread_mutex_unlock(&holes.mutex);
		worker_wake(&pusher->worker);
		frame.type = FRAME_ROUND_ACK;
		peer_send_frame(fd, &frame, NULL);
		while (!rounds_over(&rounds))
			usleep(100);
	}
	close_pusher();
}

/* The target was told the holes in a round; the guest may have made more since. */
Test(pusher, what_the_guest_gave_back_is_not_filled_though_all_holes_were_told)
{
	open_pusher();
	atomic_store(&shared.discards, true);
	write_pages(7, 1);
	grant(0, PAGES, FRAME_FLAG_TOLD);
	take_answer(0, PAGES);
	expect_bytes(7, 1);
	for (uint64_t page = 0; page < PAGES; page++)
		cr_assert_eq(world_hole(&world, 0, page), page != 7, "page %lu", page);
	close_pusher();
}
