/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/gate.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/unit/engine/world.h"
#include "transport/provider.h"
#include "transport/ring.h"

TestSuite(gate, .timeout = 60);

static struct ring *ring;
static struct listener *listener;
static struct gate gate;
static unsigned port;

static void open_gate(uint32_t timeout_ms)
{
	struct address address = {.scheme = "tcp", .host = "127.0.0.1"};
	struct jaunt_error error = {0};

	cr_assert_eq(ring_create(&ring, 64), 0);
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	port = listener_port(listener);
	cr_assert_eq(gate_open(&gate, listener, ring, timeout_ms, NULL, NULL), 0);
}

static void close_gate(void)
{
	gate_close(&gate);
	listener_free(listener);
	ring_destroy(ring);
}

static int visit(void)
{
	struct sockaddr_in there = {.sin_family = AF_INET,
				    .sin_port = htons((uint16_t)port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval patience = {.tv_sec = WORLD_WAIT_MS / 1000};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert_geq(fd, 0);
	cr_assert_eq(connect(fd, (void *)&there, sizeof(there)), 0, "%s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	return fd;
}

static void preamble(uint8_t bytes[PREAMBLE_BYTES], enum attach_role role, unsigned index)
{
	struct frame frame = {.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES};
	struct attach attach = {.role = (uint16_t)role, .index = (uint16_t)index};

	memset(attach.secret, 0x42, sizeof(attach.secret));
	frame_encode(&frame, bytes);
	attach_encode(&attach, bytes + FRAME_BYTES);
}

static void say_who(int fd, unsigned index)
{
	uint8_t bytes[PREAMBLE_BYTES];

	preamble(bytes, ATTACH_STREAM, index);
	peer_send(fd, bytes, sizeof(bytes));
}

/* Lets in whoever comes until there is one with a good preamble. */
static struct channel *take(struct attach *attach)
{
	uint64_t end = clock_ns() + WORLD_WAIT_MS * UINT64_C(1000000);
	struct channel *channel;

	while (!gate_take(&gate, &channel, attach)) {
		uint64_t now = clock_ns(), until = gate_deadline_ns(&gate);
		cr_assert_lt(now, end, "no visitor got through");
		if (until > end)
			until = end;
		cr_assert_geq(ring_wait(ring, until > now ? (int64_t)(until - now) : 0), 0);
	}
	return channel;
}

/* Until so many have been turned away. */
static void await_turned_away(uint64_t count)
{
	uint64_t end = clock_ns() + WORLD_WAIT_MS * UINT64_C(1000000);
	struct channel *channel;
	struct attach attach;

	while (gate.turned_away_count < count) {
		uint64_t now = clock_ns(), until = gate_deadline_ns(&gate);
		cr_assert_lt(now, end, "%lu of %lu were turned away", gate.turned_away_count,
			     count);
		cr_assert_not(gate_take(&gate, &channel, &attach));
		if (gate.turned_away_count >= count)
			break;
		if (until > end)
			until = end;
		cr_assert_geq(ring_wait(ring, until > now ? (int64_t)(until - now) : 0), 0);
	}
	cr_assert_not(gate_take(&gate, &channel, &attach)); /* lets go of them */
}

static void expect_good_visitor(unsigned index)
{
	struct attach attach;
	int fd = visit();

	say_who(fd, index);
	struct channel *channel = take(&attach);
	cr_assert_eq(attach.role, ATTACH_STREAM);
	cr_assert_eq(attach.index, index);
	cr_assert_eq(attach.secret[31], 0x42);
	channel_free(channel);
	close(fd);
}

Test(gate, a_visitor_that_is_refused_hears_why_and_harms_nobody)
{
	struct attach attach;
	uint8_t bytes[PREAMBLE_BYTES + 512];
	size_t got = 0;

	open_gate(10000);
	int fd = visit();
	say_who(fd, 5);
	struct channel *channel = take(&attach);
	gate_refuse(&gate, channel, "busy", "another time");
	cr_assert_eq(gate.turned_away_count, 1);
	/* It goes on talking meanwhile, as a source would. */
	peer_send(fd, "what a source says next", 23);
	expect_good_visitor(6);
	while (got < PREAMBLE_BYTES || !memmem(bytes, got, "another time", 12)) {
		ssize_t more = recv(fd, bytes + got, sizeof(bytes) - got, 0);
		cr_assert_gt(more, 0, "it was not told");
		got += (size_t)more;
	}
	const char *why;
	cr_assert(preamble_parse(bytes, &attach, &why));
	cr_assert_not(session_named(&attach));
	cr_assert(memmem(bytes, got, "busy", 4));
	close(fd);
	expect_good_visitor(7);
	close_gate();
}

Test(gate, a_visitor_that_says_who_it_is_gets_through)
{
	open_gate(10000);
	expect_good_visitor(3);
	cr_assert_eq(gate.turned_away_count, 0);
	close_gate();
}

Test(gate, a_preamble_may_come_byte_by_byte)
{
	uint8_t bytes[PREAMBLE_BYTES];
	struct attach attach;

	open_gate(10000);
	int fd = visit();
	preamble(bytes, ATTACH_URGENT, 7);
	for (unsigned i = 0; i < PREAMBLE_BYTES; i++)
		peer_send(fd, bytes + i, 1);
	struct channel *channel = take(&attach);
	cr_assert_eq(attach.index, 7);
	channel_free(channel);
	close(fd);
	close_gate();
}

struct behind {
	uint8_t bytes[64];
	size_t count;
};

static size_t take_behind(void *user, const uint8_t *data, size_t bytes)
{
	struct behind *behind = user;
	cr_assert_leq(behind->count + bytes, sizeof(behind->bytes));
	memcpy(behind->bytes + behind->count, data, bytes);
	behind->count += bytes;
	return bytes;
}

Test(gate, what_follows_the_preamble_is_not_lost)
{
	static const struct channel_events events = {.received = take_behind};
	uint8_t bytes[PREAMBLE_BYTES + 13];
	struct behind behind = {.count = 0};
	struct attach attach;

	open_gate(10000);
	int fd = visit();
	preamble(bytes, ATTACH_CONTROL, 0);
	memcpy(bytes + PREAMBLE_BYTES, "right behind", 13);
	peer_send(fd, bytes, sizeof(bytes));
	struct channel *channel = take(&attach);
	cr_assert_eq(channel_bind(channel, ring, &events, &behind, 4096), 0);
	while (behind.count < 13)
		cr_assert_geq(ring_wait(ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
	cr_assert_str_eq((char *)behind.bytes, "right behind");
	channel_free(channel);
	close(fd);
	close_gate();
}

Test(gate, a_silent_visitor_is_let_go_when_its_time_is_up_and_holds_up_nobody)
{
	open_gate(30);
	int silent = visit();
	expect_good_visitor(1);
	await_turned_away(1);
	cr_assert(strstr(gate.turned_away, "said nothing"));
	peer_expect_close(silent);
	cr_assert_eq(gate_deadline_ns(&gate), UINT64_MAX);
	close(silent);
	close_gate();
}

Test(gate, whoever_speaks_another_protocol_is_turned_away_at_once)
{
	static const char *const words[] = {"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "SSH-2.0-x\r\n",
					    "\x16\x03\x01", "xy"};
	open_gate(1000000);
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		int fd = visit();
		peer_send(fd, words[i], strlen(words[i]));
		await_turned_away(i + 1);
		cr_assert_gt(strlen(gate.turned_away), 20);
		peer_expect_close(fd);
		close(fd);
	}
	expect_good_visitor(2);
	close_gate();
}

Test(gate, random_bytes_never_get_through)
{
	open_gate(1000000);
	srand(5);
	for (unsigned i = 0; i < 50; i++) {
		uint8_t bytes[PREAMBLE_BYTES * 2];
		for (unsigned k = 0; k < sizeof(bytes); k++)
			bytes[k] = (uint8_t)rand();
		if (i % 2) /* some begin as they should */
			preamble(bytes, ATTACH_STREAM, 0);
		bytes[i % 2 ? (unsigned)rand() % FRAME_BYTES : 0] ^= 0x11;
		int fd = visit();
		peer_send(fd, bytes, sizeof(bytes));
		await_turned_away(i + 1);
		close(fd);
	}
	expect_good_visitor(2);
	close_gate();
}

Test(gate, a_visitor_that_hangs_up_early_is_forgotten)
{
	uint8_t bytes[PREAMBLE_BYTES];

	open_gate(1000000);
	preamble(bytes, ATTACH_STREAM, 0);
	int fd = visit();
	peer_send(fd, bytes, PREAMBLE_BYTES - 1);
	close(fd);
	await_turned_away(1);
	expect_good_visitor(2);
	close_gate();
}

Test(gate, more_silent_visitors_than_there_is_room_for_cannot_lock_a_good_one_out)
{
	enum { CROWD = GATE_PENDING_MAX + 40 };
	int crowd[CROWD];

	open_gate(1000000);
	for (unsigned i = 0; i < CROWD; i++) {
		crowd[i] = visit();
		/* The kernel keeps only so many that nobody has let in. */
		cr_assert_geq(ring_wait(ring, 0), 0);
	}
	/* So that every one of them has been let in, or not, before the good one comes. */
	struct pollfd first = {.fd = crowd[0], .events = POLLIN};
	while (poll(&first, 1, 0) == 0)
		cr_assert_geq(ring_wait(ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
	expect_good_visitor(9);
	for (unsigned i = 0; i < CROWD; i++)
		close(crowd[i]);
	close_gate();
}

Test(gate, after_a_crowd_has_gone_the_gate_is_empty)
{
	int crowd[40];

	open_gate(1000000);
	for (unsigned i = 0; i < 40; i++)
		crowd[i] = visit();
	for (unsigned i = 0; i < 40; i++)
		close(crowd[i]);
	await_turned_away(40);
	cr_assert_eq(gate_deadline_ns(&gate), UINT64_MAX);
	close_gate();
}

static bool refuse_odd(void *user, const uint8_t token[CONNECT_TOKEN_BYTES])
{
	unsigned *asked = user;

	(*asked)++;
	return token[0] % 2 == 0;
}

Test(gate, where_connecting_carries_a_token_few_wait_at_a_time)
{
	uint8_t even[CONNECT_TOKEN_BYTES] = {2}, odd[CONNECT_TOKEN_BYTES] = {1};
	int crowd[GATE_ADMITTED_MAX + 2];
	unsigned asked = 0;

	open_gate(1000000);
	gate_close(&gate);
	cr_assert_eq(gate_open(&gate, listener, ring, 1000000, refuse_odd, &asked), 0);
	/* As a transport asks that carries it; these come over TCP, which does not. */
	for (unsigned i = 0; i < GATE_ADMITTED_MAX; i++) {
		cr_assert(listener->admit(listener->admit_user, even));
		crowd[i] = visit();
		while (!gate.visitors[i].channel)
			cr_assert_geq(ring_wait(ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
	}
	cr_assert_not(listener->admit(listener->admit_user, odd));
	cr_assert_eq(gate.turned_away_count, 0, "one that is refused takes nobody's place");
	cr_assert(listener->admit(listener->admit_user, even));
	cr_assert_eq(asked, GATE_ADMITTED_MAX + 2);
	cr_assert_eq(gate.turned_away_count, 1);
	peer_expect_close(crowd[0]);
	expect_good_visitor(4);
	for (unsigned i = 0; i < GATE_ADMITTED_MAX; i++)
		close(crowd[i]);
	close_gate();
}

Test(gate, closing_it_frees_whoever_stands_there)
{
	open_gate(1000000);
	int waiting = visit(), good = visit();
	say_who(good, 0);
	while (gate_deadline_ns(&gate) == UINT64_MAX)
		cr_assert_geq(ring_wait(ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
	close_gate();
	peer_expect_close(waiting);
	close(waiting);
	close(good);
}
