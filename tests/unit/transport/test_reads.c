/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What transport.h promises of one-sided READs, for whichever transport JAUNT_TEST_ADDRESS names;
 * one that has none must say so.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "tests/unit/transport/harness.h"

#define PAGE ((size_t)4096)

TestSuite(reads, .timeout = 60);

/* The left end dialed and exposes, as a source does; the right end reads. */
static struct pair pair;
static struct exposure exposure;
static struct landing landing;
static uint8_t *memory;
static size_t memory_bytes;

static struct {
	uint64_t cookies[1024];
	int errors[1024];
	unsigned count;
	unsigned closed;
	int closed_error;
	unsigned count_at_close;
} heard;

static size_t nothing_received(void *user, const uint8_t *data, size_t bytes)
{
	return bytes;
}

static void note_read(void *user, uint64_t cookie, int error)
{
	cr_assert_eq(heard.closed, 0, "read_done after closed");
	heard.cookies[heard.count % 1024] = cookie;
	heard.errors[heard.count++ % 1024] = error;
}

static void note_closed(void *user, int error)
{
	heard.closed++;
	heard.closed_error = error;
	heard.count_at_close = heard.count;
}

static const struct channel_events reader_events = {
	.received = nothing_received,
	.closed = note_closed,
	.read_done = note_read,
};

static void bind_reader(void)
{
	cr_assert_eq(channel_bind(pair.right.channel, pair.ring, &reader_events, NULL, PAGE), 0);
}

/* Exposes so many bytes of a pattern, and makes a landing of the same size. */
static void set_up(size_t bytes, uint32_t seed)
{
	struct jaunt_error error = {0};
	uint8_t *data = pattern(bytes, seed);

	pair_open(&pair);
	if (!channel_can_read(pair.right.channel)) {
		cr_assert_eq(
			transport_expose(&exposure, pair.left.channel, data, bytes, false, &error),
			-ENOTSUP);
		cr_assert_eq(channel_landing(&landing, pair.right.channel, bytes, &error),
			     -ENOTSUP);
		cr_assert_eq(channel_read(pair.right.channel, &landing, 0, 0, 0, 1, 0), -ENOTSUP);
		cr_assert_eq(channel_read_room(pair.right.channel), 0);
		transport_unexpose(&exposure);
		landing_free(&landing);
		cr_skip_test("this transport has no one-sided reads, and said so");
	}
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &end_events, &pair.left, PAGE), 0);
	bind_reader();
	memory_bytes = bytes;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(memory, MAP_FAILED);
	memcpy(memory, data, bytes);
	free(data);
	cr_assert_eq(transport_expose(&exposure, pair.left.channel, memory, bytes, false, &error),
		     0, "%s", error.text);
	cr_assert_eq(channel_landing(&landing, pair.right.channel, bytes, &error), 0, "%s",
		     error.text);
}

static void tear_down(void)
{
	pair_close(&pair);
	landing_free(&landing);
	transport_unexpose(&exposure);
	munmap(memory, memory_bytes);
}

static int read_at(size_t offset, size_t bytes, uint64_t cookie)
{
	return channel_read(pair.right.channel, &landing, offset, exposure.address + offset,
			    exposure.key, bytes, cookie);
}

Test(reads, a_page_is_read)
{
	set_up(PAGE, 1);
	cr_assert_eq(read_at(0, PAGE, 7), 0);
	wait_until(pair.ring, heard.count == 1);
	cr_assert_eq(heard.cookies[0], 7);
	cr_assert_eq(heard.errors[0], 0);
	expect_pattern(landing.bytes, PAGE, 1);
	tear_down();
}

Test(reads, each_costs_one_work_request_and_one_completion)
{
	size_t pages = 300, posted = 0;

	set_up(pages * PAGE, 8);
	struct channel_totals before = channel_totals(pair.right.channel);
	cr_assert_eq(before.reads, 0);
	while (heard.count < pages) {
		for (; posted < pages && channel_read_room(pair.right.channel); posted++)
			cr_assert_eq(read_at(posted * PAGE, PAGE, posted), 0);
		unsigned heard_before = heard.count;
		wait_until(pair.ring, heard.count > heard_before);
	}
	struct channel_totals after = channel_totals(pair.right.channel);
	cr_assert_eq(after.reads, pages);
	cr_assert_eq(after.read_completions, pages);
	cr_assert_eq(after.other_requests, before.other_requests);
	expect_pattern(landing.bytes, pages * PAGE, 8);
	tear_down();
}

Test(reads, many_are_under_way_at_once_and_are_told_in_the_order_of_the_calls)
{
	size_t pages = 4096;
	size_t posted = 0;

	set_up(pages * PAGE, 2);
	size_t room = channel_read_room(pair.right.channel);
	cr_assert_gt(room, 1);
	while (heard.count < pages) {
		while (posted < pages && channel_read_room(pair.right.channel)) {
			cr_assert_eq(read_at(posted * PAGE, PAGE, posted), 0);
			posted++;
		}
		if (posted == room)
			cr_assert_eq(read_at(0, PAGE, 0), -EAGAIN);
		unsigned before = heard.count;
		wait_until(pair.ring, heard.count > before);
		for (; before < heard.count; before++) {
			cr_assert_eq(heard.cookies[before % 1024], before);
			cr_assert_eq(heard.errors[before % 1024], 0);
		}
	}
	cr_assert_eq(channel_read_room(pair.right.channel), room);
	expect_pattern(landing.bytes, pages * PAGE, 2);
	tear_down();
}

Test(reads, a_large_run_is_one_read)
{
	set_up(MIB(4), 3);
	cr_assert_eq(read_at(0, MIB(4), 1), 0);
	wait_until(pair.ring, heard.count == 1);
	cr_assert_eq(heard.errors[0], 0);
	expect_pattern(landing.bytes, MIB(4), 3);
	tear_down();
}

Test(reads, they_go_beside_messages_of_both_directions)
{
	size_t bytes = MIB(2), offset = 0;
	uint8_t *data = pattern(bytes, 5);

	set_up(MIB(4), 4);
	cr_assert_eq(channel_send(pair.right.channel, NULL, 0, data, bytes, 1), 0);
	while (heard.count < MIB(4) / KIB(64) || pair.left.count < bytes) {
		while (offset < MIB(4) && channel_read_room(pair.right.channel)) {
			cr_assert_eq(read_at(offset, KIB(64), offset), 0);
			offset += KIB(64);
		}
		cr_assert_gt(ring_wait(pair.ring, -1), 0);
	}
	for (unsigned i = 0; i < heard.count; i++)
		cr_assert_eq(heard.errors[i], 0);
	expect_pattern(landing.bytes, MIB(4), 4);
	expect_pattern(pair.left.bytes, bytes, 5);
	tear_down();
	free(data);
}

Test(reads, a_landing_may_be_memory_that_was_brought)
{
	struct jaunt_error error = {0};
	struct landing brought;
	uint8_t *file =
		mmap(NULL, KIB(64), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	set_up(KIB(64), 6);
	cr_assert_eq(channel_landing_at(&brought, pair.right.channel, file, KIB(64), &error), 0,
		     "%s", error.text);
	cr_assert_eq(channel_read(pair.right.channel, &brought, PAGE, exposure.address,
				  exposure.key, KIB(32), 1),
		     0);
	wait_until(pair.ring, heard.count == 1);
	expect_pattern(file + PAGE, KIB(32), 6);
	tear_down();
	landing_free(&brought);
	expect_pattern(file + PAGE, KIB(32), 6);
	munmap(file, KIB(64));
}

Test(reads, what_lies_outside_of_the_landing_is_refused)
{
	set_up(2 * PAGE, 7);
	cr_assert_eq(read_at(0, 0, 1), -EINVAL);
	cr_assert_eq(read_at(0, 2 * PAGE + 1, 1), -EINVAL);
	cr_assert_eq(read_at(PAGE, PAGE + 1, 1), -EINVAL);
	cr_assert_eq(read_at(3 * PAGE, 1, 1), -EINVAL);
	cr_assert_eq(heard.count, 0);
	tear_down();
}

/* Posts some good READs and then one that the peer's device must refuse. */
static void expect_refusal(uint64_t address, uint32_t key)
{
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(read_at(i * PAGE, PAGE, i), 0);
	cr_assert_eq(channel_read(pair.right.channel, &landing, 0, address, key, PAGE, 4), 0);
	cr_assert_eq(read_at(5 * PAGE, PAGE, 5), 0);
	wait_until(pair.ring, heard.closed);
	/* All are told, before `closed`, in order; the bytes of those that were well are there. */
	cr_assert_eq(heard.count_at_close, 6);
	for (unsigned i = 0; i < 6; i++) {
		cr_assert_eq(heard.cookies[i], i);
		if (i < 4)
			cr_assert_eq(heard.errors[i], 0);
		else
			cr_assert_lt(heard.errors[i], 0);
	}
	cr_assert_eq(memcmp(landing.bytes + PAGE, memory + PAGE, 3 * PAGE), 0);
	cr_assert_eq(heard.closed_error, -EACCES);
	cr_assert(strlen(channel_failure(pair.right.channel)) > 0);
	cr_assert_eq(read_at(0, PAGE, 9), -EPIPE);
	cr_assert_eq(channel_read_room(pair.right.channel), 0);
}

Test(reads, a_key_that_is_no_key_ends_the_channel_with_a_clear_error)
{
	set_up(16 * PAGE, 8);
	expect_refusal(exposure.address, exposure.key ^ 0x5a00);
	tear_down();
}

Test(reads, beyond_what_is_exposed_nothing_is_read)
{
	set_up(16 * PAGE, 9);
	expect_refusal(exposure.address + 15 * PAGE + 1, exposure.key);
	tear_down();
}

Test(reads, what_was_withdrawn_is_not_read_any_more)
{
	set_up(16 * PAGE, 10);
	struct exposure other;
	struct jaunt_error error = {0};
	cr_assert_eq(transport_expose(&other, pair.left.channel, memory, 4 * PAGE, false, &error),
		     0);
	cr_assert_neq(other.key, exposure.key);
	uint64_t address = other.address;
	uint32_t key = other.key;
	transport_unexpose(&other);
	cr_assert_null(other.private);
	expect_refusal(address, key);
	tear_down();
}

Test(reads, what_the_dialing_side_did_not_expose_to_this_peer_has_no_key_on_the_other_side)
{
	struct jaunt_error error = {0};
	struct exposure own;

	set_up(16 * PAGE, 11);
	/* Exposed by the accepting side: the dialing side's memory is in another domain. */
	cr_assert_eq(transport_expose(&own, pair.right.channel, memory, 4 * PAGE, false, &error),
		     0);
	expect_refusal(own.address, own.key);
	tear_down();
	transport_unexpose(&own);
}

/* It is the owner's again. */
static void take_landing(void)
{
	memset(landing.bytes, 'x', landing.size);
}

static void expect_landing_untouched(void)
{
	settle_ring(pair.ring);
	for (size_t i = 0; i < landing.size; i++)
		if (landing.bytes[i] != 'x')
			cr_assert_fail("byte %zu was written when no READ was under way", i);
}

/* The right end is replaced by one whose peer is in another group, as that of another session. */
static struct pair other;

static void other_accepted(void *user, struct channel *channel, int error)
{
	cr_assert_eq(error, 0);
	other.right.channel = channel;
}

static void open_other(void)
{
	struct dial dial;

	other.address = pair.address;
	other.address.group = pair.address.group + 1;
	listener_unbind(pair.listener);
	cr_assert_eq(listener_bind(pair.listener, pair.ring, other_accepted, NULL), 0);
	dial_start(&dial, &other.address, pair.ring);
	other.left.channel = dial_finish(&dial, pair.ring);
	wait_until(pair.ring, other.right.channel);
	cr_assert_eq(channel_bind(other.left.channel, pair.ring, &end_events, &other.left, PAGE),
		     0);
	cr_assert_eq(channel_bind(other.right.channel, pair.ring, &reader_events, NULL, PAGE), 0);
}

static void close_other(void)
{
	channel_free(other.left.channel);
	channel_free(other.right.channel);
}

static void expect_no_read_over_other(uint64_t address, uint32_t key)
{
	take_landing();
	heard.count = heard.closed = 0;
	cr_assert_eq(channel_read(other.right.channel, &landing, 0, address, key, PAGE, 4), 0);
	wait_until(pair.ring, heard.closed);
	cr_assert_eq(heard.count_at_close, 1);
	cr_assert_eq(heard.errors[0], -EACCES);
	cr_assert_eq(heard.closed_error, -EACCES);
	expect_landing_untouched();
}

Test(reads, a_key_of_one_session_is_no_key_over_the_channels_of_another)
{
	set_up(16 * PAGE, 15);
	open_other();
	expect_no_read_over_other(exposure.address, exposure.key);
	/* Over its own it still is. */
	heard.count = heard.closed = 0;
	cr_assert_eq(read_at(0, PAGE, 7), 0);
	wait_until(pair.ring, heard.count == 1);
	cr_assert_eq(heard.errors[0], 0);
	expect_pattern(landing.bytes, PAGE, 15);
	close_other();
	tear_down();
}

Test(reads, dropping_the_channel_ends_them_at_once)
{
	set_up(MIB(4), 17);
	for (unsigned i = 0; i < 64; i++)
		cr_assert_eq(read_at(i * KIB(64), KIB(64), i), 0);
	channel_drop(pair.right.channel);
	pair.right.channel = NULL;
	unsigned count = heard.count;
	take_landing();
	wait_until(pair.ring, pair.left.closed);
	cr_assert_eq(pair.left.error, -ECONNRESET);
	expect_landing_untouched();
	cr_assert_eq(heard.count, count);
	cr_assert_eq(heard.closed, 0);
	tear_down();
}

Test(reads, unbinding_waits_for_them_and_tells_nothing)
{
	set_up(MIB(1), 12);
	for (unsigned i = 0; i < 16; i++)
		cr_assert_eq(read_at(i * KIB(64), KIB(64), i), 0);
	channel_unbind(pair.right.channel);
	unsigned count = heard.count;
	take_landing();
	expect_landing_untouched();
	cr_assert_eq(heard.count, count);
	/* And the channel goes on. */
	bind_reader();
	cr_assert_eq(read_at(0, MIB(1), 99), 0);
	wait_until(pair.ring, heard.count == count + 1);
	cr_assert_eq(heard.cookies[count], 99);
	expect_pattern(landing.bytes, MIB(1), 12);
	tear_down();
}

Test(reads, a_shutdown_tells_those_under_way_before_it_closes)
{
	set_up(MIB(4), 13);
	for (unsigned i = 0; i < 64; i++)
		cr_assert_eq(read_at(i * KIB(64), KIB(64), i), 0);
	channel_shutdown(pair.right.channel);
	wait_until(pair.ring, heard.closed);
	cr_assert_eq(heard.closed_error, -ECANCELED);
	cr_assert_eq(heard.count_at_close, 64);
	for (unsigned i = 0; i < 64; i++)
		cr_assert_eq(heard.cookies[i], i);
	tear_down();
}

Test(reads, an_exposure_and_a_landing_outlive_their_channels)
{
	struct jaunt_error error = {0};
	struct landing second;

	set_up(PAGE, 14);
	cr_assert_eq(channel_landing(&second, pair.right.channel, 1, &error), 0);
	cr_assert_eq(second.size, PAGE);
	pair_close(&pair);
	memset(second.bytes, 1, PAGE);
	landing_free(&second);
	landing_free(&second);
	landing_free(&landing);
	transport_unexpose(&exposure);
	transport_unexpose(&exposure);
	munmap(memory, memory_bytes);
}
