/* SPDX-License-Identifier: Apache-2.0 */
/* TCP's own: what a peer that is no channel of ours, or a network that is broken, can do to it. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "tests/unit/transport/harness.h"

TestSuite(tcp, .timeout = 60);

static struct ring *ring;
static struct listener *listener;
static struct address address;
static struct end end;

static void accepted(void *user, struct channel *channel, int error)
{
	cr_assert_eq(error, 0);
	end.channel = channel;
}

static void listen_on(const char *text)
{
	struct jaunt_error error = {0};

	cr_assert_eq(address_parse(&address, text, &error), 0, "%s", error.text);
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	address.port = (uint16_t)listener_port(listener);
	cr_assert_eq(ring_create(&ring, 16), 0);
	cr_assert_eq(listener_bind(listener, ring, accepted, NULL), 0);
}

static int dial_raw(int family, const char *host)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(address.port)};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(address.port)};
	bool v6 = family == AF_INET6;
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert_geq(fd, 0);
	inet_pton(family, host, v6 ? (void *)&in6.sin6_addr : (void *)&in.sin_addr);
	if (connect(fd, v6 ? (void *)&in6 : (void *)&in, v6 ? sizeof(in6) : sizeof(in))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* A raw socket whose other end is `end`, bound. */
static int raw_peer(size_t receive_bytes)
{
	listen_on("tcp:127.0.0.1:0");
	int fd = dial_raw(AF_INET, "127.0.0.1");
	cr_assert_geq(fd, 0);
	wait_until(ring, end.channel);
	cr_assert_eq(channel_bind(end.channel, ring, &end_events, &end, receive_bytes), 0);
	return fd;
}

static void done(void)
{
	channel_free(end.channel);
	listener_free(listener);
	ring_destroy(ring);
	free(end.bytes);
}

/* close() then resets the connection instead of ending it. */
static void reset(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};

	cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	close(fd);
}

Test(tcp, a_reset_closes_the_channel_with_ECONNRESET)
{
	int fd = raw_peer(4096);

	settle_ring(ring);
	reset(fd);
	wait_until(ring, end.closed);
	cr_assert_eq(end.error, -ECONNRESET);
	done();
}

Test(tcp, a_reset_is_noticed_by_a_paused_channel)
{
	int fd = raw_peer(4096);

	channel_pause(end.channel, true);
	settle_ring(ring);
	/* The receive that was in flight takes this, then nothing but the poll is left. */
	cr_assert_eq(write(fd, "x", 1), 1);
	settle_ring(ring);
	cr_assert_eq(end.offers, 0);
	reset(fd);
	wait_until(ring, end.closed);
	cr_assert_eq(end.error, -ECONNRESET);
	done();
}

Test(tcp, a_reset_before_binding_is_noticed_after_it)
{
	listen_on("tcp:127.0.0.1:0");
	int fd = dial_raw(AF_INET, "127.0.0.1");
	wait_until(ring, end.channel);
	reset(fd);
	cr_assert_eq(channel_bind(end.channel, ring, &end_events, &end, 4096), 0);
	wait_until(ring, end.closed);
	cr_assert_lt(end.error, 0);
	done();
}

Test(tcp, what_a_peer_said_before_it_went_is_delivered_although_sending_fails)
{
	uint8_t *data = pattern(MIB(16), 1);
	int fd = raw_peer(4096);

	channel_pause(end.channel, true);
	cr_assert_eq(channel_send(end.channel, NULL, 0, data, MIB(16), 1), 0);
	settle_ring(ring);
	cr_assert_eq(write(fd, "x", 1), 1); /* for the receive that was in flight */
	settle_ring(ring);
	cr_assert_eq(write(fd, "the reason", 10), 10);
	shutdown(fd, SHUT_WR);
	channel_pause(end.channel, false);
	wait_until(ring, end.closed);
	cr_assert_eq(end.count, 11);
	cr_assert_eq(memcmp(end.bytes, "xthe reason", 11), 0);
	close(fd);
	done();
	free(data);
}

Test(tcp, a_slow_reader_gets_every_byte_of_a_send_in_many_pieces)
{
	size_t bytes = MIB(8), got = 0;
	uint8_t *data = pattern(bytes, 2), *copy = malloc(bytes);
	int fd = raw_peer(4096);

	cr_assert_eq(channel_send(end.channel, data, 13, data + 13, bytes - 13, 1), 0);
	while (got < bytes) {
		struct pollfd readable = {.fd = fd, .events = POLLIN};
		cr_assert_geq(ring_wait(ring, 0), 0);
		if (poll(&readable, 1, 0) > 0) {
			ssize_t n = read(fd, copy + got, bytes - got < 7001 ? bytes - got : 7001);
			cr_assert_gt(n, 0);
			got += (size_t)n;
		}
	}
	wait_until(ring, end.sent == 1);
	expect_pattern(copy, bytes, 2);
	close(fd);
	done();
	free(data);
	free(copy);
}

Test(tcp, a_message_behind_one_that_is_already_submitted_goes_out_with_the_next_wait)
{
	char bytes[11];

	listen_on("tcp:127.0.0.1:0");
	int fd = dial_raw(AF_INET, "127.0.0.1");
	wait_until(ring, end.channel);
	cr_assert_eq(channel_bind(end.channel, ring, &quiet_events, &end, 4096), 0);
	cr_assert_eq(channel_send(end.channel, "first", 5, NULL, 0, 0), 0);
	cr_assert_eq(ring_submit(ring), 0);
	cr_assert_eq(channel_send(end.channel, "second", 6, NULL, 0, 0), 0);
	cr_assert_eq(ring_wait(ring, 1000000), 0);
	cr_assert_eq(recv(fd, bytes, sizeof(bytes), MSG_WAITALL), sizeof(bytes));
	cr_assert_eq(memcmp(bytes, "firstsecond", sizeof(bytes)), 0);
	close(fd);
	done();
}

/* From now on the host behind this socket is as good as switched off: what arrives is dropped,
 * nothing is acknowledged. */
static void fall_silent(int fd)
{
	struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = {.len = 1, .filter = &drop};

	cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)), 0);
}

Test(tcp, a_peer_that_acknowledges_nothing_counts_as_dead)
{
	int fd = raw_peer(4096);

	cr_assert_eq(channel_timeout(end.channel, 300), 0);
	fall_silent(fd);
	cr_assert_eq(channel_send(end.channel, "are you there", 13, NULL, 0, 1), 0);
	wait_until(ring, end.closed);
	cr_assert_eq(end.error, -ETIMEDOUT);
	close(fd);
	done();
}

Test(tcp, a_timeout_that_was_set_before_binding_holds_after_it)
{
	listen_on("tcp:127.0.0.1:0");
	int fd = dial_raw(AF_INET, "127.0.0.1");
	wait_until(ring, end.channel);
	cr_assert_eq(channel_timeout(end.channel, 300), 0);
	cr_assert_eq(channel_bind(end.channel, ring, &end_events, &end, 4096), 0);
	fall_silent(fd);
	cr_assert_eq(channel_send(end.channel, "are you there", 13, NULL, 0, 1), 0);
	wait_until(ring, end.closed);
	cr_assert_eq(end.error, -ETIMEDOUT);
	close(fd);
	done();
}

Test(tcp, an_idle_peer_that_falls_silent_counts_as_dead)
{
	int fd = raw_peer(4096);

	cr_assert_eq(channel_timeout(end.channel, 300), 0);
	settle_ring(ring);
	fall_silent(fd);
	wait_until(ring, end.closed);
	cr_assert_eq(end.error, -ETIMEDOUT);
	close(fd);
	done();
}

Test(tcp, a_peer_that_does_not_read_for_longer_than_the_timeout_is_not_dead)
{
	uint8_t *data = pattern(MIB(16), 3), *copy = malloc(MIB(16));
	int fd = raw_peer(4096);
	size_t got = 0;

	cr_assert_eq(channel_timeout(end.channel, 100), 0);
	cr_assert_eq(channel_send(end.channel, NULL, 0, data, MIB(16), 1), 0);
	for (uint64_t until = clock_ns() + 2000000000; clock_ns() < until;)
		cr_assert_geq(ring_wait(ring, 50000000), 0);
	cr_assert_eq(end.closed, 0, "closed: %s", strerror(-end.error));
	while (got < MIB(16)) {
		struct pollfd readable = {.fd = fd, .events = POLLIN};
		cr_assert_geq(ring_wait(ring, 0), 0);
		if (poll(&readable, 1, 0) > 0) {
			ssize_t n = read(fd, copy + got, MIB(16) - got);
			cr_assert_gt(n, 0);
			got += (size_t)n;
		}
	}
	expect_pattern(copy, MIB(16), 3);
	cr_assert_eq(channel_timeout(end.channel, 0), 0);
	close(fd);
	done();
	free(data);
	free(copy);
}

Test(tcp, a_listener_that_answers_nothing_times_out_and_says_so)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t bytes = sizeof(in);
	struct jaunt_error error = {0};
	struct channel *channel = NULL;
	int fillers[8];

	/* A full accept queue drops what knocks. */
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(fd, (void *)&in, sizeof(in)), 0);
	cr_assert_eq(listen(fd, 0), 0);
	cr_assert_eq(getsockname(fd, (void *)&in, &bytes), 0);
	for (int i = 0; i < 8; i++) {
		fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		connect(fillers[i], (void *)&in, sizeof(in));
	}
	struct address full = {.scheme = "tcp", .host = "127.0.0.1", .port = ntohs(in.sin_port)};
	cr_assert_eq(transport_connect(&channel, &full, 200, &error), -ETIMEDOUT);
	cr_assert_null(channel);
	cr_assert_str_eq(error.reason, "connect-timeout");
	cr_assert_not_null(strstr(error.text, "firewall"));
	for (int i = 0; i < 8; i++)
		close(fillers[i]);
	close(fd);
}

Test(tcp, a_network_without_a_route_is_unreachable)
{
	struct jaunt_error error = {0};
	struct channel *channel;
	/* Class E: no route can lead there, whatever this host's network. */
	struct address nowhere = {.scheme = "tcp", .host = "255.255.255.255", .port = 1};

	cr_assert_lt(transport_connect(&channel, &nowhere, 200, &error), 0);
	cr_assert_str_eq(error.reason, "unreachable", "%s", error.text);
}

static bool has_ipv6(void)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool has = fd >= 0 && !bind(fd, (void *)&in6, sizeof(in6));

	if (fd >= 0)
		close(fd);
	return has;
}

Test(tcp, listening_on_every_ipv6_address_takes_ipv4_too)
{
	if (!has_ipv6())
		cr_skip_test("no IPv6 on this host");
	listen_on("tcp:[::]:0");
	int v4 = dial_raw(AF_INET, "127.0.0.1"), v6 = dial_raw(AF_INET6, "::1");
	cr_assert_geq(v4, 0);
	cr_assert_geq(v6, 0);
	close(v4);
	close(v6);
	done();
}

Test(tcp, listening_on_every_ipv4_address_does_not_take_ipv6)
{
	if (!has_ipv6())
		cr_skip_test("no IPv6 on this host");
	listen_on("tcp:0.0.0.0:0");
	int v4 = dial_raw(AF_INET, "127.0.0.1");
	cr_assert_geq(v4, 0);
	cr_assert_lt(dial_raw(AF_INET6, "::1"), 0);
	close(v4);
	done();
}

Test(tcp, accepting_goes_on_after_descriptors_ran_out)
{
	struct rlimit limit, before;

	listen_on("tcp:127.0.0.1:0");
	listener_unbind(listener);
	int fd = dial_raw(AF_INET, "127.0.0.1");
	cr_assert_geq(fd, 0);
	getrlimit(RLIMIT_NOFILE, &before);
	limit = before;
	limit.rlim_cur = 3;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	/* An entry takes the limit of when it was queued. */
	cr_assert_eq(listener_bind(listener, ring, accepted, NULL), 0);
	settle_ring(ring);
	cr_assert_null(end.channel);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
	wait_until(ring, end.channel);
	close(fd);
	done();
}

Test(tcp, a_scheme_that_nobody_implements_is_refused_when_connecting)
{
	struct jaunt_error error = {0};
	struct channel *channel;
	struct address unknown = {.scheme = "smoke", .host = "127.0.0.1", .port = 1};

	cr_assert_eq(transport_connect(&channel, &unknown, 200, &error), -EINVAL);
	cr_assert_str_eq(error.reason, "bad-address");
}
