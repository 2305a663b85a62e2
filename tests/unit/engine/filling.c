/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/engine/filling.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>

#define AT_ONCE 64u /* pages in a frame */

struct filling filling;

static void wake_test(void *user)
{
	session_wake(user);
}

void filling_open(uint64_t pages)
{
	struct world *world = &filling.world;

	if (!world_open_pages(world, pages))
		cr_skip_test("%s", world->lack);
	world->shared.install.complete = wake_test;
	world->shared.install.user = &world->shared.session;
}

void filling_start(bool granting, bool verify)
{
	struct target_shared *shared = &filling.world.shared;
	struct channel *channel, *check = NULL;

	shared->session.verify = verify;
	atomic_store(&shared->granting, granting);
	atomic_store(&shared->push, true);
	peer_open(&channel, &filling.fd);
	if (verify)
		peer_open(&check, &filling.check_fd);
	filling.fill = calloc(1, sizeof(*filling.fill));
	cr_assert_eq(fill_start(filling.fill, shared, 0, channel, check), 0);
	peer_expect_preamble(filling.fd, ATTACH_STREAM, 0);
	if (verify)
		peer_expect_preamble(filling.check_fd, ATTACH_VERIFY, 1);
}

void filling_close(void)
{
	bool verify = filling.world.shared.session.verify;

	atomic_store(&filling.world.shared.install.stop, true);
	fill_stop(filling.fill);
	free(filling.fill);
	close(filling.fd);
	if (verify)
		close(filling.check_fd);
	world_close(&filling.world);
}

struct frame filling_next_grant(void)
{
	struct frame frame;

	cr_assert(peer_read_frame(filling.fd, &frame));
	cr_assert_eq(frame.type, FRAME_GRANT);
	cr_assert_eq(frame.epoch, 1);
	return frame;
}

struct frame filling_data_frame(uint64_t first, uint64_t count)
{
	return (struct frame){.type = FRAME_DATA,
			      .epoch = 1,
			      .page_count = (uint32_t)count,
			      .first_page = first,
			      .payload_bytes = (uint32_t)(count * PAGE)};
}

void filling_send_pages(uint64_t first, uint64_t count, uint64_t version)
{
	static uint8_t bytes[AT_ONCE * PAGE];

	while (count) {
		uint64_t step = count < AT_ONCE ? count : AT_ONCE;
		struct frame frame = filling_data_frame(first, step);
		for (uint64_t i = 0; i < step; i++)
			world_make(bytes + i * PAGE, PAGE, first + i, version);
		peer_send_frame(filling.fd, &frame, bytes);
		first += step;
		count -= step;
	}
}

void filling_send_head(enum frame_type type, uint16_t flags, uint64_t first, uint64_t count)
{
	struct frame frame = {.type = (uint8_t)type,
			      .flags = flags,
			      .epoch = 1,
			      .page_count = (uint32_t)count,
			      .first_page = first};

	peer_send_frame(filling.fd, &frame, NULL);
}

void filling_end_grant(uint64_t first, uint64_t count)
{
	filling_send_head(FRAME_GRANT_END, 0, first, count);
}

void filling_expect_made(uint64_t first, uint64_t count, uint64_t version)
{
	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&filling.world, 0, page), PAGE_PRESENT);
		cr_assert(world_made(world_at(&filling.world, 0, page), PAGE, page, version),
			  "page %lu", page);
	}
}

void filling_expect_untouched(uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&filling.world, 0, page), PAGE_ABSENT);
		cr_assert(world_hole(&filling.world, 0, page), "page %lu", page);
	}
}
