/* SPDX-License-Identifier: Apache-2.0 */
/* What transport.h promises of listening and connecting, for the transport of JAUNT_TEST_ADDRESS.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "tests/unit/transport/harness.h"

#define MANY 100

TestSuite(listener, .timeout = 60);

static struct channel *channels[MANY];
static unsigned channel_count;

static void collect(void *user, struct channel *channel, int error)
{
	cr_assert_eq(error, 0);
	cr_assert_lt(channel_count, MANY);
	channels[channel_count++] = channel;
}

static struct listener *listen_here(struct address *address)
{
	struct jaunt_error error = {0};
	struct listener *listener;

	*address = test_address();
	int result = transport_listen(&listener, address, &error);
	if (result == -EADDRNOTAVAIL || result == -EAFNOSUPPORT)
		cr_skip_test("this host lacks the address: %s", error.text);
	cr_assert_eq(result, 0, "%s", error.text);
	address->port = (uint16_t)listener_port(listener);
	return listener;
}

static struct channel *dial(const struct address *address, struct ring *ring)
{
	struct dial dial;

	dial_start(&dial, address, ring);
	return dial_finish(&dial, ring);
}

Test(listener, many_connections_are_accepted)
{
	static struct channel *dialed[MANY];
	struct address address;
	struct listener *listener = listen_here(&address);
	struct ring *ring;

	cr_assert_eq(ring_create(&ring, 8), 0);
	cr_assert_eq(listener_bind(listener, ring, collect, NULL), 0);
	for (unsigned i = 0; i < MANY; i++) {
		dialed[i] = dial(&address, ring);
	}
	wait_until(ring, channel_count == MANY);
	for (unsigned i = 0; i < MANY; i++) {
		channel_free(dialed[i]);
		channel_free(channels[i]);
	}
	listener_free(listener);
	ring_destroy(ring);
}

Test(listener, a_connection_made_while_unbound_is_accepted_after_binding_again)
{
	struct address address;
	struct dial dial;
	struct listener *listener = listen_here(&address);
	struct ring *ring;

	cr_assert_eq(ring_create(&ring, 8), 0);
	cr_assert_eq(listener_bind(listener, ring, collect, NULL), 0);
	cr_assert_eq(listener_bind(listener, ring, collect, NULL), -EBUSY);
	settle_ring(ring);
	listener_unbind(listener);
	dial_start(&dial, &address, ring);
	settle_ring(ring);
	cr_assert_eq(channel_count, 0);
	cr_assert_eq(listener_bind(listener, ring, collect, NULL), 0);
	struct channel *channel = dial_finish(&dial, ring);
	wait_until(ring, channel_count == 1);
	channel_free(channel);
	channel_free(channels[0]);
	listener_free(listener);
	ring_destroy(ring);
}

static struct listener *freed_in_callback;

static void free_listener(void *user, struct channel *channel, int error)
{
	cr_assert_eq(error, 0);
	cr_assert_not_null(freed_in_callback);
	channels[channel_count++] = channel;
	listener_free(freed_in_callback);
	freed_in_callback = NULL;
}

Test(listener, the_callback_may_free_the_listener)
{
	struct address address;
	struct listener *listener = listen_here(&address);
	struct dial first, second;
	struct ring *ring;

	freed_in_callback = listener;
	cr_assert_eq(ring_create(&ring, 8), 0);
	dial_start(&first, &address, ring);
	dial_start(&second, &address, ring);
	cr_assert_eq(listener_bind(listener, ring, free_listener, NULL), 0);
	wait_until(ring, channel_count == 1);
	/* One of the two is connected; what becomes of the other is left open. */
	struct channel *one = dial_outcome(&first, ring), *other = dial_outcome(&second, ring);
	cr_assert(one || other);
	settle_ring(ring);
	cr_assert_eq(channel_count, 1);
	channel_free(one);
	channel_free(other);
	channel_free(channels[0]);
	ring_destroy(ring);
}

Test(listener, connecting_to_nobody_is_refused_and_says_what_to_do)
{
	struct jaunt_error error = {0};
	struct address address;
	struct channel *channel = NULL;

	listener_free(listen_here(&address));
	cr_assert_lt(transport_connect(&channel, &address, 5000, &error), 0);
	cr_assert_null(channel);
	cr_assert_str_eq(error.reason, "connect-refused");
	cr_assert_not_null(strstr(error.text, "start the receiver"));
}

Test(listener, a_port_that_is_taken_is_refused_by_name_and_free_again_after_listener_free)
{
	struct jaunt_error error = {0};
	struct address address;
	struct listener *listener = listen_here(&address), *second = NULL;
	struct ring *ring;

	cr_assert_eq(ring_create(&ring, 8), 0);
	cr_assert_eq(listener_bind(listener, ring, collect, NULL), 0);
	cr_assert_lt(transport_listen(&second, &address, &error), 0);
	cr_assert_str_eq(error.reason, "port-in-use");
	channel_free(dial(&address, ring)); /* leaves traces of the port behind */
	wait_until(ring, channel_count == 1);
	channel_free(channels[0]);
	listener_free(listener);
	error = (struct jaunt_error){0};
	cr_assert_eq(transport_listen(&second, &address, &error), 0, "%s", error.text);
	listener_free(second);
	ring_destroy(ring);
}

Test(listener, connecting_to_port_0_is_refused)
{
	struct jaunt_error error = {0};
	struct address address = test_address();
	struct channel *channel;

	address.port = 0;
	cr_assert_eq(transport_connect(&channel, &address, 1000, &error), -EINVAL);
	cr_assert_str_eq(error.reason, "bad-address");
}

Test(listener, a_host_that_does_not_resolve_is_said_to)
{
	struct jaunt_error error = {0};
	struct address address = test_address();
	struct channel *channel;
	struct listener *listener;

	strcpy(address.host, "no-such-host.invalid");
	address.port = 1;
	cr_assert_lt(transport_connect(&channel, &address, 5000, &error), 0);
	cr_assert_str_eq(error.reason, "resolve");
	cr_assert_not_null(strstr(error.text, "no-such-host.invalid"));
	error = (struct jaunt_error){0};
	cr_assert_lt(transport_listen(&listener, &address, &error), 0);
	cr_assert_str_eq(error.reason, "resolve");
}
