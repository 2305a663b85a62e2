/* SPDX-License-Identifier: Apache-2.0 */
/* A name service that answers differently each time: what was checked is what is used. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "engine/migration.h"
#include "engine/source/source.h"

TestSuite(peer_address, .timeout = 60);

#define TURNCOAT "turncoat.invalid"

static unsigned lookups;
static const char *answers[4]; /* to the first, the second, … lookup of TURNCOAT */

/* In place of the C library's. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
		struct addrinfo **list)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		(__typeof__(&getaddrinfo))dlsym(RTLD_NEXT, "getaddrinfo");

	if (strcmp(host, TURNCOAT) == 0 && !(hints->ai_flags & AI_NUMERICHOST))
		host = answers[lookups++];
	return real(host, port, hints, list);
}

static struct jaunt_options options_for(const char *peer)
{
	struct jaunt_options options;

	jaunt_options_init(&options);
	options.peer = peer;
	return options;
}

Test(peer_address, what_is_connected_to_is_what_was_found_to_be_loopback)
{
	struct jaunt_options here = options_for("tcp:127.0.0.1:0");
	struct jaunt_error error = {0};
	struct listener *listener;
	struct address address;
	struct channel *channel;
	char peer[64];

	cr_assert_eq(migration_check_address(&here, &address, true, &error), 0, "%s", error.text);
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	snprintf(peer, sizeof(peer), "tcp:" TURNCOAT ":%u", listener_port(listener));
	struct jaunt_options there = options_for(peer);
	/* The second is this host too, but nobody listens there: connecting would be refused. */
	answers[0] = "127.0.0.1";
	answers[1] = answers[2] = "127.0.0.2";
	cr_assert_eq(migration_check_address(&there, &address, false, &error), 0, "%s", error.text);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(transport_connect(&channel, &address, 5000, &error), 0, "%s",
			     error.text);
		channel_free(channel);
	}
	cr_assert_eq(lookups, 1);
	listener_free(listener);
}

Test(peer_address, what_is_listened_on_is_what_was_found_to_be_loopback)
{
	struct jaunt_options here = options_for("tcp:" TURNCOAT ":0");
	struct jaunt_error error = {0};
	struct listener *listener;
	struct address address;

	answers[0] = "127.0.0.1";
	answers[1] = "192.0.2.1"; /* not this host's */
	cr_assert_eq(migration_check_address(&here, &address, true, &error), 0, "%s", error.text);
	cr_assert_eq(transport_listen(&listener, &address, &error), 0, "%s", error.text);
	cr_assert_eq(lookups, 1);
	listener_free(listener);
}

Test(peer_address, beyond_loopback_the_name_is_looked_up_once_too)
{
	struct jaunt_options there = options_for("tcp:" TURNCOAT ":7420");
	struct jaunt_error error = {0};
	struct address address;

	answers[0] = answers[1] = "192.0.2.1";
	cr_assert_eq(migration_check_address(&there, &address, false, &error), -EPERM);
	cr_assert_str_eq(error.reason, "insecure");
	there.insecure = true;
	lookups = 0;
	cr_assert_eq(migration_check_address(&there, &address, false, &error), 0);
	cr_assert_eq(address.resolved.count, 1);
	cr_assert_eq(lookups, 1);
}

Test(peer_address, connecting_may_take_as_long_as_its_transport_needs_or_as_was_said)
{
	struct jaunt_options options = options_for("tcp:127.0.0.1:1");
	struct jaunt_error error = {0};
	struct address address;

	cr_assert_eq(migration_check_address(&options, &address, false, &error), 0);
	cr_assert_eq(options.connect_timeout_ms, transport_connect_ms(&address));
	cr_assert_gt(options.connect_timeout_ms, 0);
	options.connect_timeout_ms = 7;
	cr_assert_eq(migration_check_address(&options, &address, false, &error), 0);
	cr_assert_eq(options.connect_timeout_ms, 7);
}

Test(peer_address, what_one_session_exposes_is_not_for_the_channels_of_another)
{
	static struct source sources[2];
	struct jaunt_error error = {0};

	for (int i = 0; i < 2; i++) {
		sources[i].base.options = options_for("tcp:127.0.0.1:1");
		cr_assert_lt(source_connect(&sources[i], &error), 0, "somebody listens there");
		cr_assert_neq(sources[i].peer.group, 0);
	}
	cr_assert_neq(sources[0].peer.group, sources[1].peer.group);
}
