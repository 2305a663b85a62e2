/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <string.h>

#include "jaunt.h"
#include "transport/transport.h"

static struct address parsed(const char *text)
{
	struct address address;
	struct jaunt_error error = {0};

	cr_assert_eq(address_parse(&address, text, &error), 0, "%s: %s", text, error.text);
	return address;
}

static void expect(const char *text, const char *host, unsigned port, const char *formatted)
{
	struct address address = parsed(text);
	char again[300];

	cr_assert_str_eq(address.scheme, "tcp");
	cr_assert_str_eq(address.host, host);
	cr_assert_eq(address.port, port);
	address_format(&address, again, sizeof(again));
	cr_assert_str_eq(again, formatted);
	struct address second = parsed(again);
	cr_assert_str_eq(second.host, address.host);
	cr_assert_eq(second.port, address.port);
}

Test(address, a_host_without_a_port_gets_the_default_port)
{
	expect("tcp:web.example", "web.example", JAUNT_DEFAULT_PORT, "tcp:web.example:7420");
	expect("tcp:10.0.0.2", "10.0.0.2", JAUNT_DEFAULT_PORT, "tcp:10.0.0.2:7420");
	expect("tcp:[::1]", "::1", JAUNT_DEFAULT_PORT, "tcp:[::1]:7420");
}

Test(address, a_port_is_taken_as_given)
{
	expect("tcp:web:1", "web", 1, "tcp:web:1");
	expect("tcp:web:65535", "web", 65535, "tcp:web:65535");
	expect("tcp:web:0", "web", 0, "tcp:web:0");
	expect("tcp:[fe80::1%eth0]:99", "fe80::1%eth0", 99, "tcp:[fe80::1%eth0]:99");
}

static void refuse(const char *text, const char *advice)
{
	struct address address;
	struct jaunt_error error = {0};

	cr_assert_eq(address_parse(&address, text, &error), -EINVAL, "'%s' was taken", text);
	cr_assert_eq(error.code, EINVAL);
	cr_assert_str_eq(error.reason, "bad-address");
	cr_assert_not_null(strstr(error.text, advice), "'%s' says: %s", text, error.text);
}

Test(address, what_is_no_address_is_refused_and_told_how_to_write_one)
{
	refuse("", "write tcp:HOST[:PORT]");
	refuse("web", "write tcp:HOST[:PORT]");
	refuse(":1", "write tcp:HOST[:PORT]");
	refuse("tcp:", "no host");
	refuse("tcp::7420", "no host");
	refuse("tcp:we b:1", "is no host");
	refuse("tcp://web:1", "is no host");
	refuse("tcp:user@web", "is no host");
}

Test(address, an_unknown_transport_is_refused_and_the_known_ones_are_listed)
{
	refuse("carrier-pigeon:web:1", "known: tcp");
	refuse("udp:web:1", "unknown transport 'udp'");
	refuse("TCP:web:1", "known: tcp");
}

Test(address, a_bad_port_is_refused)
{
	refuse("tcp:web:", "is no port");
	refuse("tcp:web:65536", "is no port");
	refuse("tcp:web:-1", "is no port");
	refuse("tcp:web:+1", "is no port");
	refuse("tcp:web:1x", "is no port");
	refuse("tcp:web:99999999999999999999", "is no port");
	refuse("tcp:[::1]:", "is no port");
}

Test(address, ipv6_belongs_in_brackets)
{
	refuse("tcp:::1", "brackets");
	refuse("tcp:fe80::1:7420", "brackets");
	refuse("tcp:[::1", "brackets");
	refuse("tcp:[::1]7420", "brackets");
	refuse("tcp:[web]:1", "brackets");
	refuse("tcp:[]:1", "brackets");
}

Test(address, a_host_too_long_for_a_name_is_refused)
{
	char text[400] = "tcp:";

	memset(text + 4, 'a', 300);
	refuse(text, "too long");
}

static int is_loopback(const char *text)
{
	struct address address = parsed(text);
	struct jaunt_error error = {0};

	cr_assert_not(address_is_loopback(&address), "nothing is known of it yet");
	cr_assert_eq(address_resolve(&address, &error), 0, "%s", error.text);
	return address_is_loopback(&address);
}

Test(address, loopback_is_told_from_the_rest)
{
	cr_assert_eq(is_loopback("tcp:127.0.0.1"), 1);
	cr_assert_eq(is_loopback("tcp:127.8.9.10"), 1);
	cr_assert_eq(is_loopback("tcp:localhost"), 1);
	cr_assert_eq(is_loopback("tcp:[::1]"), 1);
	cr_assert_eq(is_loopback("tcp:[::ffff:127.0.0.1]"), 1);
	cr_assert_eq(is_loopback("tcp:0.0.0.0"), 0);
	cr_assert_eq(is_loopback("tcp:[::]"), 0);
	cr_assert_eq(is_loopback("tcp:10.0.0.1"), 0);
	cr_assert_eq(is_loopback("tcp:[::ffff:10.0.0.1]"), 0);
	cr_assert_eq(is_loopback("tcp:[2001:db8::1]"), 0);
}

Test(address, a_host_that_does_not_resolve_is_neither)
{
	struct address address = parsed("tcp:no-such-host.invalid");
	struct jaunt_error error = {0};

	cr_assert_lt(address_resolve(&address, &error), 0);
	cr_assert_not(address_is_loopback(&address));
	cr_assert_str_eq(error.reason, "resolve");
}

#ifdef JAUNT_RDMA
Test(address, rdma_takes_options_behind_a_comma)
{
	char text[300];
	struct address address = parsed("rdma:[fe80::1]:7421,traffic-class=106,retries=3");
	cr_assert_str_eq(address.scheme, "rdma");
	cr_assert_str_eq(address.host, "fe80::1");
	cr_assert_eq(address.port, 7421);
	cr_assert_str_eq(address.options, "traffic-class=106,retries=3");
	address_format(&address, text, sizeof(text));
	cr_assert_str_eq(text, "rdma:[fe80::1]:7421");
	parsed("rdma:host");
	parsed("rdma:host,odp=auto,retries=1");
	parsed("rdma:host,odp=on");
	parsed("rdma:host,odp=off");
	parsed("rdma:host,ack-timeout=31,poll-us=1000,traffic-class=0");
}

Test(address, options_that_are_none_are_refused)
{
	static const char *const wrong[] = {
		"rdma:host,",           "rdma:host,retries",     "rdma:host,retries=",
		"rdma:host,retries=8",  "rdma:host,retries=-1",  "rdma:host,retries=3x",
		"rdma:host,retries= 3", "rdma:host,retries=3,,", "rdma:host,ack-timeout=0",
		"rdma:host,nothing=1",  "tcp:host,retries=3",    "tcp:host,",
		"rdma:host,odp",        "rdma:host,odp=",        "rdma:host,odp=1",
		"rdma:host,odp=onn",    "rdma:host,odp=o",       "rdma:host,retries=on",
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct jaunt_error error = {0};
		struct address address;
		cr_expect_eq(address_parse(&address, wrong[i], &error), -EINVAL, "\"%s\"",
			     wrong[i]);
		cr_expect_str_eq(error.reason, "bad-address");
	}
}

Test(address, no_address_of_rdma_counts_as_loopback)
{
	struct jaunt_error error = {0};
	struct address address = parsed("rdma:127.0.0.1");
	cr_assert_eq(address_resolve(&address, &error), 0);
	cr_assert_not(address_is_loopback(&address));
	address = parsed("tcp:127.0.0.1");
	cr_assert_eq(address_resolve(&address, &error), 0);
	cr_assert(address_is_loopback(&address));
}
#endif
