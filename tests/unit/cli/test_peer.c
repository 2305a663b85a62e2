/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli/peer.h"

static struct peer parse(const char *text)
{
	struct jaunt_error error = {.code = 0};
	struct peer peer;
	cr_assert_eq(peer_parse(&peer, text, &error), 0, "%s: %s", text, error.text);
	return peer;
}

Test(peer, a_port_is_optional)
{
	struct peer peer = parse("tcp:host.example");
	cr_assert_str_eq(peer.host, "host.example");
	cr_assert_eq(peer.port, JAUNT_DEFAULT_PORT);
	cr_assert_eq(parse("tcp:10.0.0.2:9").port, 9);
	cr_assert_eq(parse("tcp:10.0.0.2:0").port, 0);
}

Test(peer, ipv6_stands_in_brackets)
{
	char text[300];
	struct peer peer = parse("tcp:[fe80::1%eth0]:7421");
	cr_assert_str_eq(peer.host, "fe80::1%eth0");
	cr_assert_eq(peer.port, 7421);
	peer_format(&peer, 1, text, sizeof(text));
	cr_assert_str_eq(text, "tcp:[fe80::1%eth0]:1");
	cr_assert_eq(parse("tcp:[::1]").port, JAUNT_DEFAULT_PORT);
}

Test(peer, rdma_has_options_behind_a_comma)
{
	char text[300];
	struct peer peer = parse("rdma:10.0.0.2:7421,retries=3,poll-us=20");
	cr_assert_str_eq(peer.scheme, "rdma");
	cr_assert_str_eq(peer.host, "10.0.0.2");
	cr_assert_eq(peer.port, 7421);
	cr_assert_str_eq(peer.options, ",retries=3,poll-us=20");
	peer_format(&peer, 1, text, sizeof(text));
	cr_assert_str_eq(text, "rdma:10.0.0.2:1");
	cr_assert_eq(parse("rdma:[fe80::1]").port, JAUNT_DEFAULT_PORT);
}

Test(peer, what_is_no_address_is_refused_with_examples)
{
	static const char *const wrong[] = {
		"",          "10.0.0.2",   "tcp",    "tcp:",     "tcp::7420",   "tcp:[::1",
		"tcp:::1",   "tcp:[::1]x", "tcp:a:", "tcp:a:b",  "tcp:a:70000", "tcp:a:-1",
		"tcp:a:1:2", "http://a",   "rdma:",  "tcp:a:1 ", "tcp:[]",      "rdmas:a",
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct jaunt_error error = {.code = 0};
		struct peer peer;
		cr_expect_eq(peer_parse(&peer, wrong[i], &error), -EINVAL, "\"%s\"", wrong[i]);
		cr_expect_str_eq(error.reason, "bad-address");
		cr_expect(strstr(error.text, "tcp:10.0.0.2"), "%s", error.text);
	}
	char longer[400] = "tcp:";
	memset(longer + 4, 'a', 300);
	longer[304] = '\0';
	struct peer peer;
	cr_assert_eq(peer_parse(&peer, longer, NULL), -EINVAL);
}

static int bind_loopback(unsigned *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert_geq(fd, 0);
	cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&address, &length), 0);
	*port = ntohs(address.sin_port);
	return fd;
}

Test(peer, a_probe_tells_a_listener_from_a_closed_port, .timeout = 20)
{
	struct jaunt_error error = {.code = 0};
	struct peer peer = parse("tcp:127.0.0.1");
	char found[200] = "";
	int fd = bind_loopback(&peer.port); /* bound but not listening: refused */

	cr_assert_eq(peer_probe(&peer, 5000, found, sizeof(found), &error), -ECONNREFUSED);
	cr_assert_str_eq(error.reason, "connect-refused");
	cr_assert_eq(listen(fd, 1), 0);
	cr_assert_eq(peer_probe(&peer, 5000, found, sizeof(found), &error), 0);
	cr_assert(strstr(found, "127.0.0.1"));
	close(fd);
}

Test(peer, a_name_that_does_not_resolve_is_said_to_be_that, .timeout = 60)
{
	struct jaunt_error error = {.code = 0};
	struct peer peer = parse("tcp:no-such-host.invalid");
	char found[200];

	cr_assert_lt(peer_probe(&peer, 1000, found, sizeof(found), &error), 0);
	cr_assert_str_eq(error.reason, "resolve");
}
