/* SPDX-License-Identifier: Apache-2.0 */
/* Digests of the source's memory, and a target that the test plays. */
#include "engine/source/digester.h"

#include <criterion/criterion.h>
#include <unistd.h>
#include <xxhash.h>

#include "tests/unit/engine/world.h"

TestSuite(digester, .timeout = 60);

#define PAGES 64u

static struct world world; /* only its memory is of use */
static struct source_shared shared;
static struct digester digester;
static struct channel *channel;
static int fd;

static void open_digester(void)
{
	struct frame frame = {.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES};
	struct attach attach = {.role = ATTACH_VERIFY};
	uint8_t payload[ATTACH_BYTES];

	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	for (uint64_t page = 0; page < PAGES / 2; page++)
		world_make(world.shared.memory.regions[0].view + page * PAGE, PAGE, page, 1);
	shared.memory = world.shared.memory;
	pthread_mutex_init(&shared.session.mutex, NULL);
	atomic_store(&shared.session.epoch, 1);
	peer_open(&channel, &fd);
	cr_assert_eq(digester_start(&digester, &shared, &channel, 1), 0);
	cr_assert_null(channel, "it was taken over");
	peer_expect_preamble(fd, ATTACH_VERIFY, 0);
	attach_encode(&attach, payload);
	peer_send_frame(fd, &frame, payload);
}

static void close_digester(void)
{
	cr_assert_not(atomic_load(&shared.session.lost), "%s", shared.session.why.text);
	digester_stop(&digester);
	close(fd);
	world_close(&world);
}

static struct frame question(uint64_t first, uint32_t count, uint16_t flags)
{
	return (struct frame){.type = FRAME_DIGEST,
			      .flags = flags,
			      .epoch = 1,
			      .page_count = count,
			      .first_page = first};
}

static struct frame take_answer(uint64_t first, uint32_t count)
{
	struct frame frame;
	uint8_t head[FRAME_BYTES];

	cr_assert(peer_read(fd, head, sizeof(head)), "it does not answer");
	cr_assert_eq(frame_decode(&frame, head), FRAME_OK);
	cr_assert_eq(frame.type, FRAME_DIGEST);
	cr_assert_eq(frame.first_page, first);
	cr_assert_eq(frame.page_count, count);
	return frame;
}

static void expect_digests(uint64_t first, uint32_t count)
{
	uint64_t digests[PAGES];
	uint8_t bytes[PAGE];
	struct frame frame = take_answer(first, count);

	cr_assert_eq(frame.payload_bytes, count * sizeof(digests[0]));
	cr_assert(peer_read(fd, digests, frame.payload_bytes));
	for (uint32_t i = 0; i < count; i++) {
		world_make(bytes, PAGE, first + i, 1);
		cr_assert_eq(digests[i], XXH3_64bits(bytes, PAGE), "page %lu", first + i);
	}
}

Test(digester, a_question_is_answered_with_a_digest_of_each_page)
{
	struct frame frame = question(3, 20, 0);

	open_digester();
	peer_send_frame(fd, &frame, NULL);
	expect_digests(3, 20);
	close_digester();
}

Test(digester, it_says_whether_a_range_is_all_zero)
{
	struct frame zeros = question(PAGES / 2, 10, FRAME_FLAG_ALL_ZERO),
		     data = question(PAGES / 2 - 1, 10, FRAME_FLAG_ALL_ZERO);

	open_digester();
	peer_send_frame(fd, &zeros, NULL);
	cr_assert_eq(take_answer(PAGES / 2, 10).flags, FRAME_FLAG_ALL_ZERO);
	peer_send_frame(fd, &data, NULL);
	cr_assert_eq(take_answer(PAGES / 2 - 1, 10).flags, 0);
	close_digester();
}

/* As when the word that an answer was sent is later than the next question. */
Test(digester, a_question_that_comes_before_the_answer_is_known_to_be_sent_waits)
{
	enum { QUESTIONS = 20 };
	uint8_t questions[QUESTIONS][FRAME_BYTES];

	open_digester();
	for (uint32_t i = 0; i < QUESTIONS; i++) {
		struct frame frame = question(i, 8, 0);
		frame_encode(&frame, questions[i]);
	}
	peer_send(fd, questions, sizeof(questions));
	for (uint32_t i = 0; i < QUESTIONS; i++)
		expect_digests(i, 8);
	close_digester();
}
