/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What transport.h promises, for whichever transport JAUNT_TEST_ADDRESS names. Nothing here knows
 * which one that is.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "tests/unit/transport/harness.h"

static struct pair pair;

TestSuite(contract, .timeout = 60);

/* Sends it all as soon as there is room, `piece` bytes a message, and waits until it was sent. */
static void send_all(struct end *end, struct ring *ring, const uint8_t *data, size_t bytes,
		     size_t piece)
{
	size_t offset = 0;
	unsigned messages = 0, before = end->sent;

	while (offset < bytes) {
		size_t length = bytes - offset < piece ? bytes - offset : piece;
		int result = channel_send(end->channel, NULL, 0, data + offset, length, messages);
		if (result == -EAGAIN) {
			cr_assert_gt(ring_wait(ring, -1), 0);
			continue;
		}
		cr_assert_eq(result, 0);
		offset += length;
		messages++;
	}
	wait_until(ring, end->sent == before + messages);
}

/* --- Bytes --------------------------------------------------------------------------- */

Test(contract, bytes_arrive_in_the_order_they_were_sent)
{
	size_t bytes = MIB(8) + 17;
	uint8_t *data = pattern(bytes, 1);

	pair_bind(&pair, KIB(64));
	send_all(&pair.left, pair.ring, data, bytes, 10007);
	wait_until(pair.ring, pair.right.count == bytes);
	expect_pattern(pair.right.bytes, bytes, 1);
	pair_close(&pair);
	free(data);
}

Test(contract, both_directions_work_at_once)
{
	size_t bytes = MIB(4);
	uint8_t *data = pattern(bytes, 2), *other = pattern(bytes, 3);

	pair_bind(&pair, KIB(64));
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, bytes, 1), 0);
	cr_assert_eq(channel_send(pair.right.channel, NULL, 0, other, bytes, 1), 0);
	wait_until(pair.ring, pair.left.count == bytes && pair.right.count == bytes);
	expect_pattern(pair.right.bytes, bytes, 2);
	expect_pattern(pair.left.bytes, bytes, 3);
	pair_close(&pair);
	free(data);
	free(other);
}

Test(contract, a_message_larger_than_any_buffer_arrives_whole)
{
	size_t bytes = MIB(48);
	uint8_t *data = pattern(bytes, 4);

	pair_bind(&pair, KIB(64));
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, bytes, 1), 0);
	wait_until(pair.ring, pair.right.count == bytes && pair.left.sent == 1);
	expect_pattern(pair.right.bytes, bytes, 4);
	pair_close(&pair);
	free(data);
}

Test(contract, the_head_is_copied_and_goes_before_its_payload)
{
	uint8_t head[CHANNEL_HEAD_MAX];
	const char *payload = "payload";

	pair_bind(&pair, 4096);
	memset(head, 'h', sizeof(head));
	cr_assert_eq(channel_send(pair.left.channel, head, 3, payload, 7, 1), 0);
	memset(head, 'x', sizeof(head));
	memset(head, 'H', 2);
	cr_assert_eq(channel_send(pair.left.channel, head, 2, NULL, 0, 2), 0);
	memset(head, 'x', sizeof(head));
	wait_until(pair.ring, pair.right.count == 12);
	cr_assert_eq(memcmp(pair.right.bytes, "hhhpayloadHH", 12), 0);
	pair_close(&pair);
}

Test(contract, a_message_without_bytes_or_with_too_long_a_head_is_refused)
{
	uint8_t head[CHANNEL_HEAD_MAX + 1] = {0};

	pair_bind(&pair, 4096);
	cr_assert_eq(channel_send(pair.left.channel, head, sizeof(head), NULL, 0, 1), -EINVAL);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, NULL, 0, 1), -EINVAL);
	pair_close(&pair);
}

Test(contract, many_small_messages_arrive_and_are_sent_in_order)
{
	const unsigned messages = 200000;
	unsigned queued = 0;

	pair_bind(&pair, KIB(16));
	while (pair.right.count < messages * sizeof(queued)) {
		while (queued < messages &&
		       !channel_send(pair.left.channel, &queued, sizeof(queued), NULL, 0, queued))
			queued++;
		cr_assert_gt(ring_wait(pair.ring, -1), 0);
	}
	for (unsigned i = 0; i < messages; i++)
		cr_assert_eq(memcmp(pair.right.bytes + i * sizeof(i), &i, sizeof(i)), 0);
	wait_until(pair.ring, pair.left.sent == messages);
	for (unsigned i = messages - ENDS_COOKIES; i < messages; i++)
		cr_assert_eq(pair.left.cookies[i % ENDS_COOKIES], i);
	pair_close(&pair);
}

Test(contract, bytes_sent_before_the_peer_binds_wait_for_it)
{
	pair_open(&pair);
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &end_events, &pair.left, 4096), 0);
	cr_assert_eq(channel_send(pair.left.channel, "early", 5, NULL, 0, 1), 0);
	wait_until(pair.ring, pair.left.sent == 1);
	cr_assert_eq(channel_bind(pair.right.channel, pair.ring, &end_events, &pair.right, 4096),
		     0);
	wait_until(pair.ring, pair.right.count == 5);
	pair_close(&pair);
}

/* --- Without `sent` ------------------------------------------------------------------ */

static void bind_quietly(size_t receive_bytes)
{
	pair_open(&pair);
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &quiet_events, &pair.left,
				  receive_bytes),
		     0);
	cr_assert_eq(channel_bind(pair.right.channel, pair.ring, &end_events, &pair.right,
				  receive_bytes),
		     0);
}

static void answer(struct end *end)
{
	cr_assert_eq(channel_send(end->channel, "answer", 6, NULL, 0, 0), 0);
}

Test(contract, requests_and_answers_work_without_sent)
{
	bind_quietly(4096);
	pair.right.hook = answer;
	for (unsigned i = 1; i <= 1000; i++) {
		cr_assert_eq(channel_send(pair.left.channel, "request", 7, NULL, 0, 0), 0);
		wait_until(pair.ring, pair.left.count == i * 6);
	}
	cr_assert_eq(channel_totals(pair.left.channel).sent_bytes, 7000);
	pair_close(&pair);
}

Test(contract, messages_queued_before_and_after_a_submission_all_go_out_without_sent)
{
	bind_quietly(4096);
	for (unsigned i = 1; i <= 100; i++) {
		cr_assert_eq(channel_send(pair.left.channel, "first", 5, NULL, 0, 0), 0);
		cr_assert_eq(ring_submit(pair.ring), 0);
		cr_assert_eq(channel_send(pair.left.channel, "second", 6, NULL, 0, 0), 0);
		wait_until(pair.ring, pair.right.count == i * 11);
	}
	pair_close(&pair);
}

Test(contract, a_peer_that_does_not_read_loses_nothing_without_sent)
{
	static uint8_t payload[1000];
	uint32_t sent = 0, seen = 0;

	bind_quietly(KIB(64));
	channel_pause(pair.right.channel, true);
	size_t queue = channel_room(pair.left.channel);
	/* Until the peer holds up the queue itself: each message goes out by itself before. */
	while (channel_send(pair.left.channel, &sent, 4, payload, sizeof(payload), 0) == 0) {
		sent++;
		settle_ring(pair.ring);
	}
	cr_assert_gt(sent, queue, "what went out before must have left the queue");
	channel_pause(pair.right.channel, false);
	/* Room comes back without anybody being told. */
	wait_until(pair.ring, channel_room(pair.left.channel));
	cr_assert_eq(channel_send(pair.left.channel, &sent, 4, payload, sizeof(payload), 0), 0);
	sent++;
	wait_until(pair.ring, pair.right.count == sent * (4 + sizeof(payload)));
	for (uint32_t i = 0; i < sent; i++) {
		memcpy(&seen, pair.right.bytes + i * (4 + sizeof(payload)), 4);
		cr_assert_eq(seen, i);
	}
	pair_close(&pair);
}

Test(contract, a_channel_without_sent_can_be_freed_and_unbound_right_after_sending)
{
	bind_quietly(4096);
	cr_assert_eq(channel_send(pair.left.channel, "one", 3, NULL, 0, 0), 0);
	cr_assert_eq(ring_submit(pair.ring), 0);
	channel_unbind(pair.left.channel);
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &quiet_events, &pair.left, 4096),
		     0);
	cr_assert_eq(channel_send(pair.left.channel, "two", 3, NULL, 0, 0), 0);
	cr_assert_eq(ring_submit(pair.ring), 0);
	channel_free(pair.left.channel);
	pair.left.channel = NULL;
	wait_until(pair.ring, pair.right.closed);
	cr_assert_eq(pair.right.count, 6);
	cr_assert_eq(memcmp(pair.right.bytes, "onetwo", 6), 0);
	pair_close(&pair);
}

Test(contract, a_channel_without_sent_is_closed_when_its_peer_goes)
{
	bind_quietly(4096);
	channel_free(pair.right.channel);
	pair.right.channel = NULL;
	while (!pair.left.closed) {
		int result = channel_send(pair.left.channel, "x", 1, NULL, 0, 0);
		cr_assert(result == 0 || result == -EPIPE || result == -EAGAIN);
		cr_assert_geq(ring_wait(pair.ring, -1), 0);
	}
	pair_close(&pair);
}

/* --- Consuming in parts -------------------------------------------------------------- */

static void units_of(size_t unit, size_t receive_bytes, bool want)
{
	size_t bytes = unit * (MIB(6) / unit);
	uint8_t *data = pattern(bytes, (uint32_t)unit);

	pair_bind(&pair, receive_bytes);
	pair.right.unit = unit;
	pair.right.want = want;
	send_all(&pair.left, pair.ring, data, bytes, 65521);
	wait_until(pair.ring, pair.right.count == bytes);
	expect_pattern(pair.right.bytes, bytes, (uint32_t)unit);
	cr_assert_leq(pair.right.largest_offer, round_up(receive_bytes, 4096));
	pair_close(&pair);
	free(data);
}

Test(contract, what_is_not_consumed_is_offered_again_behind_it_what_arrives_next)
{
	units_of(1000, KIB(64), false);
}

Test(contract, units_that_just_fit_the_buffer_are_seen_whole)
{
	units_of(KIB(64), KIB(64), false);
}

Test(contract, units_come_whole_when_they_are_wanted)
{
	units_of(KIB(256) + 32, KIB(512), true);
}

Test(contract, small_units_come_whole_when_they_are_wanted)
{
	units_of(33, KIB(4), true);
}

Test(contract, wanting_more_than_the_buffer_takes_still_delivers)
{
	pair_bind(&pair, 4096);
	channel_want(pair.right.channel, MIB(1));
	uint8_t *data = pattern(MIB(1), 5);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(1), 1), 0);
	wait_until(pair.ring, pair.right.count == MIB(1));
	pair_close(&pair);
	free(data);
}

Test(contract, bytes_that_were_wanted_are_not_held_up_by_what_follows)
{
	pair_bind(&pair, KIB(64));
	channel_want(pair.right.channel, 100);
	uint8_t *data = pattern(150, 6);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, 150, 1), 0);
	wait_until(pair.ring, pair.right.count == 150);
	expect_pattern(pair.right.bytes, 150, 6);
	pair_close(&pair);
	free(data);
}

Test(contract, a_full_buffer_of_which_nothing_is_consumed_closes_the_channel)
{
	uint8_t *data = pattern(MIB(1), 7);

	pair_bind(&pair, 8192);
	pair.right.keep = true;
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(1), 1), 0);
	wait_until(pair.ring, pair.right.closed);
	cr_assert_eq(pair.right.error, -EMSGSIZE);
	cr_assert_geq(pair.right.largest_offer, 8192);
	/* The peer hears of it without the owner freeing anything. */
	wait_until(pair.ring, pair.left.closed);
	pair_close(&pair);
	free(data);
}

/* --- Back-pressure ------------------------------------------------------------------- */

Test(contract, a_full_queue_says_so_and_has_room_again_after_sent)
{
	uint8_t *data = pattern(MIB(1), 8);
	unsigned queued = 0;

	pair_bind(&pair, KIB(64));
	channel_pause(pair.right.channel, true);
	while (channel_room(pair.left.channel)) {
		cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(1), queued), 0);
		queued++;
	}
	cr_assert_gt(queued, 1);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, 1, 0), -EAGAIN);
	settle_ring(pair.ring);
	cr_assert_lt(pair.left.sent, queued, "the queue must be bounded by the receiver");
	channel_pause(pair.right.channel, false);
	wait_until(pair.ring, channel_room(pair.left.channel));
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, 1, 0), 0);
	wait_until(pair.ring, pair.left.sent == queued + 1);
	wait_until(pair.ring, pair.right.count == (size_t)queued * MIB(1) + 1);
	for (unsigned i = 0; i < queued; i++)
		expect_pattern(pair.right.bytes + i * MIB(1), MIB(1), 8);
	pair_close(&pair);
	free(data);
}

Test(contract, a_paused_channel_delivers_nothing_until_it_is_resumed)
{
	uint8_t *data = pattern(MIB(1), 9);

	pair_bind(&pair, KIB(64));
	channel_pause(pair.right.channel, true);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(1), 1), 0);
	for (int i = 0; i < 100; i++)
		settle_ring(pair.ring);
	cr_assert_eq(pair.right.offers, 0);
	channel_pause(pair.right.channel, false);
	wait_until(pair.ring, pair.right.count == MIB(1));
	expect_pattern(pair.right.bytes, MIB(1), 9);
	pair_close(&pair);
	free(data);
}

static void pause_it(struct end *end)
{
	channel_pause(end->channel, true);
}

Test(contract, a_channel_paused_by_its_own_callback_offers_the_rest_when_it_is_resumed)
{
	pair_bind(&pair, KIB(64));
	pair.right.hook = pause_it;
	pair.right.keep = true;
	cr_assert_eq(channel_send(pair.left.channel, "rest", 4, NULL, 0, 1), 0);
	wait_until(pair.ring, pair.right.offers == 1);
	settle_ring(pair.ring);
	cr_assert_eq(pair.right.offers, 1);
	pair.right.hook = NULL;
	pair.right.keep = false;
	channel_pause(pair.right.channel, false);
	/* Nothing new arrives: what is in the buffer must be offered by itself. */
	wait_until(pair.ring, pair.right.count == 4);
	cr_assert_eq(channel_send(pair.left.channel, "more", 4, NULL, 0, 1), 0);
	wait_until(pair.ring, pair.right.count == 8);
	cr_assert_eq(memcmp(pair.right.bytes, "restmore", 8), 0);
	pair_close(&pair);
}

Test(contract, a_paused_channel_with_a_full_buffer_is_not_an_error)
{
	uint8_t *data = pattern(KIB(64), 10);

	pair_bind(&pair, 4096);
	pair.right.hook = pause_it;
	pair.right.keep = true;
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, KIB(64), 1), 0);
	wait_until(pair.ring, pair.right.offers == 1);
	settle_ring(pair.ring);
	cr_assert_eq(pair.right.closed, 0);
	pair.right.hook = NULL;
	pair.right.keep = false;
	channel_pause(pair.right.channel, false);
	wait_until(pair.ring, pair.right.count == KIB(64));
	expect_pattern(pair.right.bytes, KIB(64), 10);
	pair_close(&pair);
	free(data);
}

/* --- Payloads ------------------------------------------------------------------------ */

Test(contract, a_payload_may_change_once_it_was_sent_and_its_bytes_are_those_of_before)
{
	static uint64_t payloads[8][8192];
	uint64_t round = 0, rounds = 2000;

	pair_bind(&pair, KIB(256));
	while (round < rounds) {
		if (round < pair.left.sent + 8 && channel_room(pair.left.channel)) {
			uint64_t *payload = payloads[round % 8];
			for (size_t i = 0; i < 8192; i++)
				payload[i] = round;
			cr_assert_eq(channel_send(pair.left.channel, NULL, 0, payload,
						  sizeof(payloads[0]), round),
				     0);
			round++;
		} else {
			cr_assert_gt(ring_wait(pair.ring, -1), 0);
		}
	}
	wait_until(pair.ring, pair.right.count == rounds * sizeof(payloads[0]));
	for (size_t i = 0; i < rounds * 8192; i++) {
		uint64_t value;
		memcpy(&value, pair.right.bytes + i * 8, 8);
		if (value != i / 8192)
			cr_assert_fail("word %zu changed on the way", i);
	}
	pair_close(&pair);
}

Test(contract, no_buffer_is_used_after_a_channel_with_sends_in_flight_was_freed)
{
	size_t bytes = MIB(32);
	uint8_t *data =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(data, MAP_FAILED);
	memset(data, 'a', bytes);

	pair_bind(&pair, KIB(64));
	channel_pause(pair.right.channel, true);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, bytes, 1), 0);
	settle_ring(pair.ring);
	cr_assert_eq(pair.left.sent, 0, "the payload must exceed what the kernel takes over");
	channel_free(pair.left.channel);
	pair.left.channel = NULL;
	memset(data, 'b', bytes);
	channel_pause(pair.right.channel, false);
	wait_until(pair.ring, pair.right.closed);
	cr_assert_lt(pair.right.count, bytes);
	for (size_t i = 0; i < pair.right.count; i++)
		if (pair.right.bytes[i] != 'a')
			cr_assert_fail("byte %zu was read after channel_free()", i);
	cr_assert_eq(pair.left.sent + pair.left.closed, 0, "a callback after channel_free()");
	pair_close(&pair);
	munmap(data, bytes);
}

/* --- Figures and options ------------------------------------------------------------- */

Test(contract, totals_count_the_bytes_of_both_directions)
{
	uint8_t *data = pattern(100000, 16);

	pair_bind(&pair, KIB(16));
	cr_assert_eq(channel_send(pair.left.channel, "head", 4, data, 100000, 1), 0);
	wait_until(pair.ring, pair.right.count == 100004 && pair.left.sent == 1);
	struct channel_totals left = channel_totals(pair.left.channel);
	struct channel_totals right = channel_totals(pair.right.channel);
	cr_assert_eq(left.sent_bytes, 100004);
	cr_assert_eq(left.received_bytes, 0);
	cr_assert_eq(right.received_bytes, 100004);
	cr_assert_eq(right.sent_bytes, 0);
	pair_close(&pair);
	free(data);
}

Test(contract, both_ends_of_a_connection_have_the_same_name)
{
	pair_open(&pair);
	cr_assert_str_eq(channel_name(pair.left.channel), channel_name(pair.right.channel));
	cr_assert_not_null(strstr(channel_name(pair.left.channel), " → "));
	pair_close(&pair);
}

Test(contract, a_paced_channel_with_a_timeout_still_delivers_everything)
{
	uint8_t *data = pattern(MIB(1), 17);

	pair_bind(&pair, KIB(64));
	int result = channel_pace(pair.left.channel, MIB(64));
	cr_assert(result == 0 || result == -ENOTSUP);
	cr_assert_eq(channel_timeout(pair.left.channel, 10000), 0);
	cr_assert_eq(channel_timeout(pair.right.channel, 10000), 0);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(1), 1), 0);
	wait_until(pair.ring, pair.right.count == MIB(1));
	expect_pattern(pair.right.bytes, MIB(1), 17);
	cr_assert(channel_pace(pair.left.channel, 0) == result);
	pair_close(&pair);
	free(data);
}
