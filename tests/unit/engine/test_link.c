/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link.h"

#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/engine/world.h"
#include "transport/ring.h"

TestSuite(link, .timeout = 60);

#define WAIT_NS ((int64_t)WORLD_WAIT_MS * 1000000)

static struct ring *ring;
static struct link control;
static int fd;

static void open_link(void)
{
	struct channel *channel;

	cr_assert_eq(ring_create(&ring, 64), 0);
	peer_open(&channel, &fd);
	cr_assert_eq(link_open(&control, channel, ring), 0);
}

static void close_link(void)
{
	link_close(&control);
	ring_destroy(ring);
	close(fd);
}

/* What the other side would send as a PING. */
static size_t ping(uint8_t **bytes, uint64_t value)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Ping body = JAUNT__PING__INIT;
	size_t count;

	body.sent_ns = value;
	message.message_case = JAUNT__CONTROL__MESSAGE_PING;
	message.ping = &body;
	cr_assert_eq(control_pack(&message, bytes, &count), 0);
	return count;
}

static void send_ping(uint64_t value)
{
	uint8_t *bytes;
	size_t count = ping(&bytes, value);

	peer_send(fd, bytes, count);
	free(bytes);
}

/* The next message or the end; fails when neither comes. */
static int next(Jaunt__Control **message)
{
	int result;

	for (unsigned i = 0; i < 1000; i++)
		if ((result = link_next(&control, WAIT_NS, message)) != 0)
			return result;
	cr_assert_fail("nothing comes");
	return 0;
}

static void expect_ping(uint64_t value)
{
	Jaunt__Control *message = NULL;

	cr_assert_eq(next(&message), 1);
	cr_assert_eq(message->message_case, JAUNT__CONTROL__MESSAGE_PING);
	cr_assert_eq(message->ping->sent_ns, value);
	control_free(message);
}

Test(link, messages_come_in_order_and_however_they_are_cut)
{
	uint8_t *bytes;

	open_link();
	for (uint64_t i = 0; i < 20; i++)
		send_ping(i);
	for (uint64_t i = 0; i < 20; i++)
		expect_ping(i);
	size_t count = ping(&bytes, 77);
	for (size_t i = 0; i < count; i++)
		peer_send(fd, bytes + i, 1);
	expect_ping(77);
	free(bytes);
	close_link();
}

Test(link, what_is_sent_arrives_numbered)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT, *answer;
	Jaunt__Pong body = JAUNT__PONG__INIT;
	uint8_t bytes[256];
	uint32_t length;
	size_t consumed, needed;
	struct jaunt_error error = {0};

	open_link();
	body.sent_ns = 5;
	message.message_case = JAUNT__CONTROL__MESSAGE_PONG;
	message.pong = &body;
	for (uint64_t i = 1; i <= 3; i++) {
		cr_assert_eq(link_send(&control, &message), 0);
		cr_assert_eq(link_flush(&control, WAIT_NS), 0);
		cr_assert(peer_read(fd, bytes, 4));
		memcpy(&length, bytes, 4);
		length = le32toh(length);
		cr_assert_leq(length, sizeof(bytes) - 4);
		cr_assert(peer_read(fd, bytes + 4, length));
		cr_assert_eq(control_unpack(bytes, 4 + length, &answer, &consumed, &needed, &error),
			     1);
		cr_assert_eq(answer->sequence, i);
		control_free(answer);
	}
	close_link();
}

Test(link, many_more_messages_than_the_queue_holds_can_be_sent)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Commit body = JAUNT__COMMIT__INIT;

	open_link();
	message.message_case = JAUNT__CONTROL__MESSAGE_COMMIT;
	message.commit = &body;
	for (unsigned i = 0; i < 10 * LINK_QUEUE_MAX; i++)
		cr_assert_eq(link_send(&control, &message), 0);
	cr_assert_eq(link_flush(&control, WAIT_NS), 0);
	close_link();
}

static bool always(void *user)
{
	cr_assert_eq(user, &control);
	return true;
}

Test(link, a_peer_that_takes_nothing_is_waited_for_no_longer_than_allowed)
{
	static uint8_t state[CONTROL_STATE_CHUNK];
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__State body = JAUNT__STATE__INIT;
	struct jaunt_error error = {0};
	int result = 0;

	open_link();
	cr_assert_gt(link_room(&control), 0);
	control.send_timeout_ns = 20000000;
	body.bytes.data = state;
	body.bytes.len = sizeof(state);
	message.message_case = JAUNT__CONTROL__MESSAGE_STATE;
	message.state = &body;
	while (!result)
		result = link_send(&control, &message);
	cr_assert_eq(result, -ETIMEDOUT);
	cr_assert_eq(link_room(&control), 0);
	cr_assert(!control.closed);
	cr_assert_eq(link_why(&control, &error), -ETIMEDOUT);
	cr_assert_str_eq(error.reason, "peer-silent");
	control.send_timeout_ns = 0;
	control.gives_up = always;
	control.user = &control;
	cr_assert_eq(link_send(&control, &message), -ECANCELED);
	cr_assert_eq(link_why(&control, &error), -ECANCELED);
	/* It goes on when the peer does. */
	uint64_t sequence = control.sequence;
	while (!link_room(&control)) {
		cr_assert_geq(read(fd, state, sizeof(state)), 0);
		cr_assert_geq(ring_wait(ring, 1000000), -ETIME);
	}
	cr_assert_eq(link_send(&control, &message), 0);
	cr_assert_eq(control.sequence, sequence + 1, "what was not sent has no number");
	close_link();
}

static void expect_end(const char *reason)
{
	struct jaunt_error error = {0};
	Jaunt__Control *message;
	int result;

	while ((result = next(&message)) == 1)
		control_free(message);
	cr_assert_lt(result, 0);
	cr_assert_lt(link_why(&control, &error), 0);
	if (reason)
		cr_assert_str_eq(error.reason, reason, "%s: %s", error.reason, error.text);
	cr_assert_gt(strlen(error.text), 10);
	Jaunt__Control again = JAUNT__CONTROL__INIT;
	cr_assert_eq(link_send(&control, &again), -EPIPE);
}

Test(link, messages_that_nobody_takes_wait_and_are_all_taken_later)
{
	const unsigned total = 5 * LINK_QUEUE_MAX;
	uint8_t *one, *many;

	open_link();
	size_t count = ping(&one, 1);
	many = malloc(count * total);
	for (unsigned i = 0; i < total; i++)
		memcpy(many + i * count, one, count);
	/* All of them in one piece, as from a peer that was held up for a while. */
	peer_send(fd, many, count * total);
	while (control.count < LINK_QUEUE_MAX)
		cr_assert_geq(ring_wait(ring, WAIT_NS), 0);
	Jaunt__Control *message;
	for (unsigned taken = 0; taken < total; taken++) {
		cr_assert_eq(next(&message), 1, "message %u of %u", taken, total);
		cr_assert_leq(control.count, LINK_QUEUE_MAX);
		control_free(message);
	}
	cr_assert(!control.closed);
	free(one);
	free(many);
	close_link();
}

Test(link, a_message_larger_than_allowed_ends_it_before_it_has_come)
{
	uint32_t length = htole32(CONTROL_MESSAGE_MAX + 1);

	open_link();
	peer_send(fd, &length, 4);
	expect_end(NULL);
	cr_assert_eq(control.error.code, EMSGSIZE);
	peer_expect_close(fd);
	close_link();
}

Test(link, bytes_that_are_no_message_end_it)
{
	uint8_t bytes[64];

	open_link();
	memset(bytes, 0xff, sizeof(bytes));
	memcpy(bytes, (uint8_t[]){60, 0, 0, 0}, 4);
	peer_send(fd, bytes, sizeof(bytes));
	expect_end(NULL);
	cr_assert_eq(control.error.code, EPROTO);
	close_link();
}

Test(link, what_came_before_the_nonsense_can_still_be_taken)
{
	open_link();
	send_ping(1);
	send_ping(2);
	peer_send(fd, "\xff\xff\xff\xff", 4);
	expect_ping(1);
	expect_ping(2);
	expect_end(NULL);
	close_link();
}

Test(link, a_message_cut_short_by_the_end_is_never_seen)
{
	uint8_t *bytes;

	open_link();
	send_ping(1);
	size_t count = ping(&bytes, 2);
	peer_send(fd, bytes, count - 1);
	close(fd);
	expect_ping(1);
	expect_end("link-lost");
	free(bytes);
	fd = -1;
	close_link();
}

Test(link, a_wait_ends_when_another_thread_wakes_it)
{
	Jaunt__Control *message;

	open_link();
	ring_wake(ring);
	cr_assert_eq(link_next(&control, WAIT_NS, &message), 0);
	close_link();
}
