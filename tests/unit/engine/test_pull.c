/* SPDX-License-Identifier: Apache-2.0 */
/* A fault thread and a stream thread of the target that READ memory of a source that the test
 * plays; see reading.h. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/target/demand.h"
#include "engine/target/fill.h"
#include "tests/unit/engine/reading.h"
#include "tests/unit/engine/world.h"
#include "transport/provider.h"

TestSuite(pull, .timeout = 60);

#define BLOCK 512u
#define PAGES (4 * BLOCK)

static struct world world;
static struct demand *demand;
static struct fill *fill;
static int fd, check_fd;
static uint8_t *source; /* what the source has: PAGES pages */
static struct exposure exposure;
static struct channel *dialed; /* only to expose with */
static int dialed_fd;

static void wake_test(void *user)
{
	session_wake(user);
}

static void expose_pages(uint64_t first, uint64_t count)
{
	struct jaunt_error error = {0};
	size_t region = 0;

	cr_assert_eq(transport_expose(&exposure, dialed, source + first * PAGE, count * PAGE, false,
				      &error),
		     0, "%s", error.text);
	struct reads_chunk chunk = {first, count, exposure.address, exposure.key};
	cr_assert_eq(reads_tell(&world.shared.reads, &region, &chunk, 1), 0);
}

static void open_source(void)
{
	struct channel *inner;

	if (!world_open_pages(&world, PAGES))
		cr_skip_test("%s", world.lack);
	world.shared.install.complete = wake_test;
	world.shared.install.user = &world.shared.session;
	world.shared.streams = 1;
	cr_assert_eq(reads_open(&world.shared.reads, &world.shared.memory), 0);
	source =
		mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(source, MAP_FAILED);
	for (uint64_t page = 0; page < PAGES; page++)
		world_make(source + page * PAGE, PAGE, page, 1);
	peer_open(&inner, &dialed_fd);
	dialed = reading_wrap(inner);
}

static void close_source(void)
{
	transport_unexpose(&exposure);
	channel_free(dialed);
	close(dialed_fd);
	close(fd);
	reads_close(&world.shared.reads);
	world_close(&world);
	munmap(source, PAGES * PAGE);
}

static void expect_made(uint64_t first, uint64_t count, uint64_t version)
{
	for (uint64_t page = first; page < first + count; page++) {
		cr_assert_eq(world_state(&world, 0, page), PAGE_PRESENT, "page %lu", page);
		cr_assert(world_made(world_at(&world, 0, page), PAGE, page, version), "page %lu",
			  page);
	}
}

/* --- Faults ------------------------------------------------------------------------------- */

static void open_demand(void)
{
	struct channel *inner;

	open_source();
	peer_open(&inner, &fd);
	demand = calloc(1, sizeof(*demand));
	cr_assert_eq(demand_start(demand, &world.shared, 0, reading_wrap(inner), NULL), 0);
	peer_expect_preamble(fd, ATTACH_URGENT, 0);
}

static void close_demand(void)
{
	demand_stop(demand);
	free(demand);
	close_source();
}

static void expect_fetch(uint64_t page)
{
	struct frame frame;

	cr_assert(peer_read_frame(fd, &frame));
	cr_assert_eq(frame.type, FRAME_FETCH);
	cr_assert_eq(frame.first_page, page, "page %lu was asked for", frame.first_page);
}

static void reply(uint64_t page)
{
	struct frame frame = {.type = FRAME_DATA,
			      .epoch = 1,
			      .page_count = 1,
			      .first_page = page,
			      .payload_bytes = PAGE};
	peer_send_frame(fd, &frame, source + page * PAGE);
}

Test(pull, a_fault_on_an_exposed_page_is_one_read_and_no_message)
{
	struct guest guest;

	open_demand();
	expose_pages(0, BLOCK);
	guest_touch(&guest, world_at(&world, 0, 7));
	guest_join(&guest);
	expect_made(7, 1, 1);
	cr_assert_eq(reading_count(), 1);
	cr_assert_eq(counter_get(&demand->counters.read), 1);
	cr_assert_eq(world_state(&world, 0, 6), PAGE_ABSENT);
	cr_assert(world_hole(&world, 0, 8));
	/* The first message is about the first page that is not exposed. */
	guest_touch(&guest, world_at(&world, 0, BLOCK));
	expect_fetch(BLOCK);
	reply(BLOCK);
	guest_join(&guest);
	cr_assert_eq(reading_count(), 1);
	close_demand();
}

Test(pull, several_reads_are_in_flight_and_more_faults_than_slots_wait)
{
	static struct guest guests[READPAGE_SLOTS + 30];
	unsigned count = sizeof(guests) / sizeof(guests[0]);

	open_demand();
	expose_pages(0, PAGES);
	reading_hold(true);
	for (unsigned i = 0; i < count; i++) {
		guest_touch(&guests[i], world_at(&world, 0, i * 3));
		guest_await_asleep(&guests[i]);
	}
	for (unsigned i = 0; i < count; i++)
		cr_assert_eq(world_state(&world, 0, i * 3), PAGE_ABSENT, "claimed before it came");
	reading_hold(false);
	for (unsigned i = 0; i < count; i++)
		guest_join(&guests[i]);
	for (unsigned i = 0; i < count; i++)
		expect_made(i * 3, 1, 1);
	cr_assert_eq(reading_count(), count);
	close_demand();
}

Test(pull, a_page_that_came_another_way_meanwhile_is_dropped)
{
	struct guest guest;
	uint64_t installed = 0;
	static uint8_t other[PAGE];

	open_demand();
	expose_pages(0, PAGES);
	reading_hold(true);
	guest_touch(&guest, world_at(&world, 0, 9));
	guest_await_asleep(&guest);
	while (reading_count() == 0)
		usleep(1000);
	world_make(other, PAGE, 9, 2);
	cr_assert_eq(
		install_pages(&world.shared.install, 0, 9, 1, other, &installed, &world.counters),
		0);
	guest_join(&guest);
	reading_hold(false);
	guest_touch(&guest, world_at(&world, 0, 10));
	guest_join(&guest);
	expect_made(9, 1, 2);
	close_demand();
}

Test(pull, a_read_that_fails_loses_the_session_and_leaves_the_page_missing)
{
	struct guest guest;

	open_demand();
	expose_pages(0, PAGES);
	reading_fail_next();
	guest_touch(&guest, world_at(&world, 0, 7));
	cr_assert_str_eq(world_await_loss(&world)->reason, "link-lost");
	cr_assert_eq(world_state(&world, 0, 7), PAGE_ABSENT);
	cr_assert(guest_asleep(&guest));
	/* Nothing but the test serves it any more. */
	uint64_t installed = 0;
	cr_assert_eq(install_pages(&world.shared.install, 0, 7, 1, source + 7 * PAGE, &installed,
				   &world.counters),
		     0);
	guest_join(&guest);
	close_demand();
}

/* --- Streams ------------------------------------------------------------------------------ */

static bool held_back; /* does not push yet */

static void open_fill(bool verify)
{
	struct channel *inner, *check = NULL;

	peer_open(&inner, &fd);
	if (verify)
		peer_open(&check, &check_fd);
	world.shared.session.verify = verify;
	atomic_store(&world.shared.granting, true);
	atomic_store(&world.shared.push, !held_back);
	fill = calloc(1, sizeof(*fill));
	cr_assert_eq(fill_start(fill, &world.shared, 0, reading_wrap(inner), check), 0);
	peer_expect_preamble(fd, ATTACH_STREAM, 0);
	if (verify)
		peer_expect_preamble(check_fd, ATTACH_VERIFY, 1);
}

static void close_fill(void)
{
	atomic_store(&world.shared.install.stop, true);
	fill_stop(fill);
	free(fill);
	if (world.shared.session.verify)
		close(check_fd);
	close_source();
}

static struct frame next_grant(void)
{
	struct frame frame;

	cr_assert(peer_read_frame(fd, &frame));
	cr_assert_eq(frame.type, FRAME_GRANT);
	return frame;
}

static void send_head(enum frame_type type, uint64_t first, uint64_t count)
{
	struct frame frame = {.type = (uint8_t)type,
			      .epoch = 1,
			      .page_count = (uint32_t)count,
			      .first_page = first};
	peer_send_frame(fd, &frame, NULL);
}

static void send_pages(uint64_t first, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		reply(first + i);
}

static void await_complete(void)
{
	for (unsigned i = 0; pagemap_missing(&world.shared.map); i++) {
		cr_assert_lt(i, WORLD_WAIT_MS / 10, "pages stay missing");
		usleep(10000);
	}
}

static void expect_nothing_out(void)
{
	fill_stop(fill);
	cr_assert_eq(fill->out_bytes, 0);
	cr_assert_eq(fill->out_count, 0);
}

Test(pull, a_stream_asks_what_is_zero_and_reads_the_rest)
{
	unsigned granted = 0;

	open_source();
	expose_pages(0, PAGES);
	open_fill(false);
	while (granted < PAGES) {
		struct frame grant = next_grant();
		cr_assert(grant.flags & FRAME_FLAG_DESCRIBE);
		/* Of each block, 100 pages from the 50th on are zero. */
		send_head(FRAME_ZERO, grant.first_page + 50, 100);
		send_head(FRAME_GRANT_END, grant.first_page, grant.page_count);
		granted += grant.page_count;
	}
	await_complete();
	for (unsigned block = 0; block < PAGES / BLOCK; block++) {
		expect_made(block * BLOCK, 50, 1);
		expect_made(block * BLOCK + 150, BLOCK - 150, 1);
		for (unsigned i = 50; i < 150; i++)
			cr_assert(world_hole(&world, 0, block * BLOCK + i), "a READ of zeros");
	}
	/* 18 KiB and 1448 KiB of each block, in runs of 128 KiB at most. */
	cr_assert_leq(reading_count(), PAGES / BLOCK * (2 + 12));
	cr_assert_eq(counter_get(&fill->counters.read), PAGES - PAGES / BLOCK * 100);
	expect_nothing_out();
	close_fill();
}

Test(pull, what_the_source_sends_instead_is_not_read)
{
	open_source();
	expose_pages(0, PAGES);
	open_fill(false);
	for (unsigned granted = 0; granted < PAGES;) {
		struct frame grant = next_grant();
		send_pages(grant.first_page, grant.page_count);
		send_head(FRAME_GRANT_END, grant.first_page, grant.page_count);
		granted += grant.page_count;
	}
	await_complete();
	expect_made(0, PAGES, 1);
	cr_assert_eq(reading_count(), 0);
	close_fill();
}

Test(pull, what_is_not_exposed_is_granted_the_old_way)
{
	open_source();
	expose_pages(0, BLOCK + 100); /* so the second block is half and half */
	open_fill(false);
	for (unsigned granted = 0; granted < PAGES;) {
		struct frame grant = next_grant();
		bool described = grant.first_page < BLOCK + 100;
		cr_assert_eq(!!(grant.flags & FRAME_FLAG_DESCRIBE), described, "page %lu",
			     grant.first_page);
		if (!described)
			send_pages(grant.first_page, grant.page_count);
		else
			cr_assert_leq(grant.first_page + grant.page_count, BLOCK + 100);
		send_head(FRAME_GRANT_END, grant.first_page, grant.page_count);
		granted += grant.page_count;
	}
	await_complete();
	expect_made(0, PAGES, 1);
	cr_assert_eq(counter_get(&fill->counters.read), BLOCK + 100);
	close_fill();
}

Test(pull, a_read_of_a_stream_that_fails_loses_the_session)
{
	open_source();
	expose_pages(0, PAGES);
	open_fill(false);
	reading_fail_next();
	struct frame grant = next_grant();
	send_head(FRAME_GRANT_END, grant.first_page, grant.page_count);
	cr_assert_str_eq(world_await_loss(&world)->reason, "link-lost");
	cr_assert_eq(world_state(&world, 0, grant.first_page), PAGE_ABSENT);
	close_fill();
}

/* The next channel of the stream, in that epoch. */
static void attach_again(uint32_t epoch)
{
	struct channel *inner;
	int former = fd;
	uint32_t attachment = session_reattach(&world.shared.session, epoch);

	peer_open(&inner, &fd);
	fill_reattach(fill, reading_wrap(inner), NULL, attachment);
	peer_expect_preamble(fd, ATTACH_STREAM, 0);
	close(former);
}

static void end_grant(const struct frame *grant)
{
	struct frame frame = *grant;

	frame.type = FRAME_GRANT_END;
	frame.flags = 0;
	peer_send_frame(fd, &frame, NULL);
}

Test(pull, reads_that_end_with_their_channel_keep_no_block)
{
	open_source();
	expose_pages(0, PAGES);
	open_fill(false);
	/* Of every block that a window holds a READ is under way, of whose end nobody is told. */
	reading_hold(true);
	for (unsigned i = 0; i < FILL_BLOCKS_MIN; i++) {
		struct frame grant = next_grant();
		send_head(FRAME_ZERO, grant.first_page + 32, BLOCK - 32);
		end_grant(&grant);
	}
	while (reading_count() < FILL_BLOCKS_MIN)
		usleep(1000);
	attach_again(2);
	reading_hold(false);
	for (unsigned left = PAGES - FILL_BLOCKS_MIN * (BLOCK - 32); left;) {
		struct frame grant = next_grant();
		end_grant(&grant);
		left -= grant.page_count;
	}
	await_complete();
	expect_nothing_out();
	close_fill();
}

/* Or the time until a READ is done would be taken for the round trip of a grant. */
Test(pull, a_stream_with_reads_under_way_is_not_idle)
{
	open_source();
	expose_pages(0, PAGES);
	open_fill(false);
	reading_hold(true);
	struct frame first = next_grant(), second = next_grant();
	send_head(FRAME_ZERO, first.first_page + 32, BLOCK - 32);
	end_grant(&first); /* the rest is READ */
	send_head(FRAME_ZERO, second.first_page, BLOCK);
	end_grant(&second);
	next_grant();
	fill_stop(fill);
	cr_assert_gt(fill->window.round_trip_ns, 0);
	cr_assert_eq(fill->window.asked_ns, 0);
	reading_hold(false);
	close_fill();
}

Test(pull, another_way_has_a_window_of_its_own)
{
	open_source();
	open_fill(false);
	for (unsigned i = 0; i < FILL_BLOCKS_MIN; i++)
		next_grant();
	atomic_store(&world.shared.round_trip_ns, 100000000);
	attach_again(2);
	for (unsigned block = 0; block < PAGES / BLOCK; block++)
		next_grant();
	close_fill();
}

Test(pull, a_grant_that_cannot_be_sent_is_made_again)
{
	open_source();
	expose_pages(0, PAGES);
	held_back = true;
	open_fill(false);
	reading_refuse_next_send();
	atomic_store(&world.shared.push, true);
	worker_wake(&fill->worker);
	for (unsigned granted = 0; granted < PAGES;) {
		struct frame grant = next_grant();
		end_grant(&grant);
		granted += grant.page_count;
	}
	await_complete();
	expect_nothing_out();
	close_fill();
}

/* Answers one question about digests out of `source`; false: it was not one. */
static void answer_digests(void)
{
	uint64_t digests[FRAME_DIGEST_PAGES];
	struct frame frame;

	cr_assert(peer_read_frame(check_fd, &frame));
	cr_assert_eq(frame.type, FRAME_DIGEST);
	cr_assert(!(frame.flags & FRAME_FLAG_ALL_ZERO));
	for (uint32_t i = 0; i < frame.page_count; i++)
		digests[i] = XXH3_64bits(source + (frame.first_page + i) * PAGE, PAGE);
	frame.payload_bytes = frame.page_count * 8;
	peer_send_frame(check_fd, &frame, digests);
}

Test(pull, a_read_page_that_does_not_match_its_digest_is_asked_for_by_message)
{
	static uint8_t stale[PAGE];
	unsigned granted = 0;

	open_source();
	/* The registration is of other memory than the source has, in one page. */
	memcpy(stale, source + 5 * PAGE, PAGE);
	world_make(source + 5 * PAGE, PAGE, 5, 9);
	uint8_t *right = source;
	source =
		mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memcpy(source, right, PAGES * PAGE);
	expose_pages(0, PAGES);
	uint8_t *registered = source;
	source = right;
	memcpy(source + 5 * PAGE, stale, PAGE);
	open_fill(true);
	while (granted < PAGES) {
		struct frame grant = next_grant();
		send_head(FRAME_GRANT_END, grant.first_page, grant.page_count);
		granted += grant.page_count;
		for (unsigned i = 0; i < grant.page_count / INSTALL_RUN_PAGES; i++)
			answer_digests();
	}
	struct frame grant = next_grant();
	cr_assert_eq(grant.first_page, 5);
	cr_assert_eq(grant.page_count, 1);
	cr_assert_eq(grant.flags & FRAME_FLAG_DESCRIBE, 0);
	reply(5);
	answer_digests();
	send_head(FRAME_GRANT_END, 5, 1);
	await_complete();
	expect_made(0, PAGES, 1);
	cr_assert_eq(counter_get(&fill->counters.mismatched), 1);
	close_fill();
	munmap(registered, PAGES * PAGE);
}
