/* SPDX-License-Identifier: Apache-2.0 */
/* The two halves of --verify, joined by a real connection; and the target's half against answers
 * that no honest source gives. */
#include "engine/target/checker.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/source/digester.h"
#include "tests/unit/engine/world.h"
#include "transport/tcp.h"

TestSuite(checker, .timeout = 60);

#define PAGES 256u

static struct world world;
static struct source_shared source; /* the same memory, as the source has it */
static struct digester digester;
static struct checker checker;
static uint8_t bytes[64 * PAGE];
static uint64_t wrong;

static void open_world(uint64_t page_bytes)
{
	struct world_region region = {page_bytes == PAGE ? PAGES : 4, page_bytes, 0};

	if (!world_open(&world, &region, 1, 1))
		cr_skip_test("%s", world.lack);
	source.memory = world.shared.memory;
	atomic_store(&source.session.epoch, 1);
	pthread_mutex_init(&source.session.mutex, NULL);
}

/* What the source has. */
static void put(uint64_t page)
{
	const struct guest_region *region = &world.shared.memory.regions[0];
	world_make(region->view + page * region->page_bytes, region->page_bytes, page, 1);
}

static void open_both(uint64_t page_bytes)
{
	struct channel *there, *here;
	int fd;

	open_world(page_bytes);
	peer_open(&there, &fd);
	cr_assert_eq(digester_start(&digester, &source, &there, 1), 0);
	peer_expect_preamble(fd, ATTACH_VERIFY, 0); /* which the gate would read */
	cr_assert_eq(tcp_channel_create(&here, fd, false), 0);
	cr_assert_eq(checker_open(&checker, &world.shared, here, 3, 0, NULL), 0);
}

static void close_both(void)
{
	checker_close(&checker);
	digester_stop(&digester);
	world_close(&world);
}

/* What arrived: as the source has it, but for one page. */
static int check(uint64_t first, unsigned count, unsigned except)
{
	for (unsigned i = 0; i < count; i++)
		world_make(bytes + i * PAGE, PAGE, first + i, 1);
	if (except < count)
		bytes[except * PAGE + 4095] ^= 1;
	return checker_pages(&checker, 0, first, count, bytes, &wrong, &world.counters);
}

Test(checker, pages_that_are_the_source_s_pass)
{
	open_both(PAGE);
	for (uint64_t page = 0; page < PAGES; page++)
		put(page);
	cr_assert_eq(check(0, 64, 99), 0);
	cr_assert_eq(wrong, 0);
	cr_assert_eq(check(200, 1, 99), 0);
	cr_assert_eq(wrong, 0);
	cr_assert_eq(counter_get(&world.counters.verified), 65);
	cr_assert_eq(counter_get(&world.counters.mismatched), 0);
	close_both();
}

Test(checker, one_wrong_bit_condemns_its_page_and_no_other)
{
	open_both(PAGE);
	for (uint64_t page = 0; page < PAGES; page++)
		put(page);
	cr_assert_eq(check(10, 64, 63), 0);
	cr_assert_eq(wrong, UINT64_C(1) << 63);
	cr_assert_eq(check(10, 40, 7), 0);
	cr_assert_eq(wrong, UINT64_C(1) << 7);
	cr_assert_eq(counter_get(&world.counters.mismatched), 2);
	close_both();
}

Test(checker, a_page_of_another_place_or_an_older_one_is_wrong)
{
	open_both(PAGE);
	put(5);
	world_make(bytes, PAGE, 6, 1);
	cr_assert_eq(checker_pages(&checker, 0, 5, 1, bytes, &wrong, &world.counters), 0);
	cr_assert_eq(wrong, 1);
	world_make(bytes, PAGE, 5, 0);
	cr_assert_eq(checker_pages(&checker, 0, 5, 1, bytes, &wrong, &world.counters), 0);
	cr_assert_eq(wrong, 1);
	memset(bytes, 0, PAGE);
	cr_assert_eq(checker_pages(&checker, 0, 5, 1, bytes, &wrong, &world.counters), 0);
	cr_assert_eq(wrong, 1);
	close_both();
}

Test(checker, zeros_are_confirmed_only_where_the_source_has_nothing_else)
{
	open_both(PAGE);
	put(100);
	cr_assert_eq(checker_zeros(&checker, 0, 0, 100, &world.counters), 1);
	cr_assert_eq(checker_zeros(&checker, 0, 101, PAGES - 101, &world.counters), 1);
	cr_assert_eq(checker_zeros(&checker, 0, 0, PAGES, &world.counters), 0);
	cr_assert_eq(counter_get(&world.counters.mismatched), 0, "which page is not known");
	cr_assert_eq(checker_zeros(&checker, 0, 100, 1, &world.counters), 0);
	cr_assert_eq(counter_get(&world.counters.mismatched), 1);
	cr_assert(world_hole(&world, 0, 99), "asking has filled a hole");
	close_both();
}

Test(checker, the_last_byte_of_a_huge_page_counts)
{
	uint8_t *page = calloc(1, HUGE_PAGE);

	open_both(HUGE_PAGE);
	put(1);
	cr_assert_eq(checker_zeros(&checker, 0, 0, 1, &world.counters), 1);
	cr_assert_eq(checker_zeros(&checker, 0, 0, 2, &world.counters), 0);
	world_make(page, HUGE_PAGE, 1, 1);
	cr_assert_eq(checker_pages(&checker, 0, 1, 1, page, &wrong, &world.counters), 0);
	cr_assert_eq(wrong, 0);
	page[HUGE_PAGE - 1] ^= 1;
	cr_assert_eq(checker_pages(&checker, 0, 1, 1, page, &wrong, &world.counters), 0);
	cr_assert_eq(wrong, 1);
	free(page);
	close_both();
}

Test(checker, a_question_that_makes_no_sense_ends_the_source_s_channel)
{
	struct channel *there;
	struct frame frame = {.type = FRAME_DIGEST, .epoch = 1, .page_count = 1};
	uint8_t preamble[PREAMBLE_BYTES] = {0};
	struct attach attach = {.role = ATTACH_VERIFY};
	struct frame head = {.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES};

	frame_encode(&head, preamble);
	attach_encode(&attach, preamble + FRAME_BYTES);
	for (unsigned i = 0; i < 4; i++) {
		int fd;
		open_world(PAGE);
		atomic_store(&source.session.lost, false);
		peer_open(&there, &fd);
		cr_assert_eq(digester_start(&digester, &source, &there, 1), 0);
		peer_expect_preamble(fd, ATTACH_VERIFY, 0);
		peer_send(fd, preamble, sizeof(preamble));
		struct frame question = frame;
		switch (i) {
		case 0:
			question.first_page = PAGES;
			break;
		case 1:
			question.region = 1;
			break;
		case 2:
			question.page_count = 513;
			question.first_page = 0;
			break;
		case 3:
			question.type = FRAME_FETCH;
			break;
		}
		peer_send_frame(fd, &question, NULL);
		peer_expect_close(fd);
		cr_assert(atomic_load(&source.session.lost));
		cr_assert_str_eq(source.session.why.reason, "protocol");
		digester_stop(&digester);
		close(fd);
		world_close(&world);
	}
}

/* --- Against a source that lies about its answers -----------------------------------------------
 */

static int open_liar(void)
{
	struct channel *here;
	int fd;

	open_world(PAGE);
	peer_open(&here, &fd);
	cr_assert_eq(checker_open(&checker, &world.shared, here, 3, 0, NULL), 0);
	peer_expect_preamble(fd, ATTACH_VERIFY, 3);
	return fd;
}

static void expect_refused(int fd, const char *reason)
{
	cr_assert_lt(check(10, 4, 99), 0);
	cr_assert_str_eq(world_await_loss(&world)->reason, reason);
	cr_assert_gt(strlen(world_await_loss(&world)->text), 10);
	/* Nothing more is known: not even what a good answer would have said. */
	cr_assert_lt(check(10, 4, 99), 0);
	cr_assert_lt(checker_zeros(&checker, 0, 0, 1, &world.counters), 0);
	cr_assert_eq(counter_get(&world.counters.verified), 0);
	checker_close(&checker);
	close(fd);
	world_close(&world);
}

Test(checker, an_answer_to_another_question_ends_the_session)
{
	uint64_t digests[600] = {0};
	const struct frame good = {
		.type = FRAME_DIGEST, .epoch = 1, .page_count = 4, .first_page = 10};

	for (unsigned i = 0; i < 7; i++) {
		struct frame frame = good;
		frame.payload_bytes = 32;
		switch (i) {
		case 0:
			frame.first_page = 11;
			break;
		case 1:
			frame.region = 1;
			break;
		case 2:
			frame.page_count = 5;
			frame.payload_bytes = 40;
			break;
		case 3:
			frame.epoch = 2;
			break;
		case 4:
			frame.payload_bytes = 0; /* neither digests nor the word about zeros */
			break;
		case 5:
			frame.type = FRAME_ZERO;
			frame.payload_bytes = 0;
			break;
		case 6:
			frame.page_count = 512;
			frame.payload_bytes = 4096;
			break;
		}
		int fd = open_liar();
		peer_send_frame(fd, &frame, digests);
		expect_refused(fd, "protocol");
	}
}

Test(checker, a_second_answer_to_one_question_ends_the_session)
{
	const struct frame answer = {.type = FRAME_DIGEST,
				     .flags = FRAME_FLAG_ALL_ZERO,
				     .epoch = 1,
				     .page_count = 4,
				     .first_page = 10};
	uint8_t two[2 * FRAME_BYTES];

	int fd = open_liar();
	frame_encode(&answer, two);
	frame_encode(&answer, two + FRAME_BYTES);
	peer_send(fd, two, sizeof(two));
	check(10, 4, 99);
	/* The second came with the first, or comes before the next question is answered. */
	cr_assert_lt(check(10, 5, 99), 0);
	cr_assert_str_eq(world_await_loss(&world)->reason, "protocol");
	checker_close(&checker);
	close(fd);
	world_close(&world);
}

Test(checker, bytes_that_are_no_frame_end_the_session)
{
	int fd = open_liar();
	peer_send(fd, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", 48);
	expect_refused(fd, "protocol");
}

Test(checker, a_source_that_hangs_up_ends_the_session)
{
	int fd = open_liar();
	shutdown(fd, SHUT_RDWR);
	expect_refused(fd, "link-lost");
}

Test(checker, a_wait_for_an_answer_ends_when_everything_is_stopped)
{
	int fd = open_liar();
	atomic_store(&world.shared.install.stop, true);
	cr_assert_lt(check(10, 4, 99), 0);
	checker_close(&checker);
	close(fd);
	world_close(&world);
}

Test(checker, a_suspect_is_fetched_again_once_and_then_never_seen)
{
	open_world(PAGE);
	cr_assert(checker_suspect(&world.shared, 0, 7, false));
	cr_assert_eq(world_state(&world, 0, 7), PAGE_ABSENT);
	cr_assert_not(checker_suspect(&world.shared, 0, 7, true));
	cr_assert_eq(world_state(&world, 0, 7), PAGE_FILLING);
	cr_assert_eq(atomic_load(&world.shared.condemned), 1);
	cr_assert_not(checker_suspect(&world.shared, 0, 7, true));
	cr_assert_eq(atomic_load(&world.shared.condemned), 1, "counted once");
	world_close(&world);
}

Test(checker, copies_that_were_under_way_when_the_first_was_wrong_do_not_count)
{
	open_world(PAGE);
	for (unsigned i = 0; i < 3; i++)
		cr_assert(checker_suspect(&world.shared, 0, 7, false));
	cr_assert_eq(world_state(&world, 0, 7), PAGE_ABSENT);
	cr_assert_eq(checker_suspects(&world.shared, 0, 0), UINT64_C(1) << 7);
	cr_assert_eq(atomic_load(&world.shared.condemned), 0);
	world_close(&world);
}

Test(checker, however_many_pages_were_wrong_the_next_is_only_a_suspect)
{
	open_world(PAGE);
	for (uint64_t page = 0; page < world.shared.map.regions[0].pages; page++)
		cr_assert(checker_suspect(&world.shared, 0, page, true));
	cr_assert_eq(atomic_load(&world.shared.condemned), 0);
	world_close(&world);
}
