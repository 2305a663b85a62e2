/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/transport/harness.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static size_t received(void *user, const uint8_t *data, size_t bytes)
{
	struct end *end = user;
	size_t taken = 0;

	cr_assert_eq(end->closed, 0, "bytes after closed");
	cr_assert_gt(bytes, 0);
	end->offers++;
	if (bytes > end->largest_offer)
		end->largest_offer = bytes;
	if (end->hook)
		end->hook(end);
	if (end->keep)
		return 0;
	taken = end->unit ? bytes / end->unit * end->unit : bytes;
	if (end->count + taken > end->room) {
		end->room = (end->count + taken) * 2;
		end->bytes = realloc(end->bytes, end->room);
		cr_assert_not_null(end->bytes);
	}
	if (taken)
		memcpy(end->bytes + end->count, data, taken);
	end->count += taken;
	if (end->want && end->unit)
		channel_want(end->channel, end->unit - (bytes - taken));
	return taken;
}

static void sent(void *user, uint64_t cookie)
{
	struct end *end = user;

	cr_assert_eq(end->closed, 0, "sent after closed");
	end->cookies[end->sent++ % ENDS_COOKIES] = cookie;
}

static void closed(void *user, int error)
{
	struct end *end = user;

	end->closed++;
	end->error = error;
	cr_assert_eq(end->closed, 1, "closed twice");
}

const struct channel_events end_events = {received, sent, closed};
const struct channel_events quiet_events = {received, NULL, closed};

struct address test_address(void)
{
	const char *text = getenv("JAUNT_TEST_ADDRESS");
	struct address address;
	struct jaunt_error error = {0};

	cr_assert_eq(address_parse(&address, text ? text : "tcp:127.0.0.1:0", &error), 0, "%s",
		     error.text);
	return address;
}

static void *dial_thread(void *argument)
{
	struct dial *dial = argument;

	dial->result = transport_connect(&dial->channel, &dial->address, 20000, &dial->error);
	atomic_store_explicit(&dial->done, true, memory_order_release);
	if (dial->wake)
		ring_wake(dial->wake);
	return NULL;
}

void dial_start(struct dial *dial, const struct address *address, struct ring *wake)
{
	memset(dial, 0, sizeof(*dial));
	dial->address = *address;
	dial->wake = wake;
	cr_assert_eq(pthread_create(&dial->thread, NULL, dial_thread, dial), 0);
}

struct channel *dial_outcome(struct dial *dial, struct ring *ring)
{
	if (ring)
		wait_until(ring, atomic_load_explicit(&dial->done, memory_order_acquire));
	pthread_join(dial->thread, NULL);
	return dial->result ? NULL : dial->channel;
}

struct channel *dial_finish(struct dial *dial, struct ring *ring)
{
	struct channel *channel = dial_outcome(dial, ring);

	cr_assert_eq(dial->result, 0, "%s", dial->error.text);
	return channel;
}

static void accepted(void *user, struct channel *channel, int error)
{
	struct pair *pair = user;

	cr_assert_eq(error, 0);
	cr_assert_null(pair->right.channel);
	pair->right.channel = channel;
}

void pair_open(struct pair *pair)
{
	struct jaunt_error error = {0};
	struct dial dial;

	memset(pair, 0, sizeof(*pair));
	pair->address = test_address();
	cr_assert_eq(ring_create(&pair->ring, 64), 0);
	int result = transport_listen(&pair->listener, &pair->address, &error);
	if (result == -EADDRNOTAVAIL || result == -EAFNOSUPPORT)
		cr_skip_test("this host lacks the address: %s", error.text);
	cr_assert_eq(result, 0, "%s", error.text);
	pair->address.port = (uint16_t)listener_port(pair->listener);
	cr_assert_neq(pair->address.port, 0);
	cr_assert_eq(listener_bind(pair->listener, pair->ring, accepted, pair), 0);
	dial_start(&dial, &pair->address, pair->ring);
	pair->left.channel = dial_finish(&dial, pair->ring);
	wait_until(pair->ring, pair->right.channel);
}

void pair_bind(struct pair *pair, size_t receive_bytes)
{
	pair_open(pair);
	cr_assert_eq(channel_bind(pair->left.channel, pair->ring, &end_events, &pair->left,
				  receive_bytes),
		     0);
	cr_assert_eq(channel_bind(pair->right.channel, pair->ring, &end_events, &pair->right,
				  receive_bytes),
		     0);
}

void pair_close(struct pair *pair)
{
	channel_free(pair->left.channel);
	channel_free(pair->right.channel);
	listener_free(pair->listener);
	ring_destroy(pair->ring);
	free(pair->left.bytes);
	free(pair->right.bytes);
}

void settle_ring(struct ring *ring)
{
	while (ring_wait(ring, 0) > 0)
		;
}

static uint8_t pattern_byte(uint32_t index, uint32_t seed)
{
	uint32_t word = (index / 4 + 1) * 2654435761u + seed;

	return (uint8_t)(word >> (index % 4 * 8));
}

uint8_t *pattern(size_t bytes, uint32_t seed)
{
	uint8_t *data = malloc(bytes);

	cr_assert_not_null(data);
	for (size_t i = 0; i < bytes; i++)
		data[i] = pattern_byte((uint32_t)i, seed);
	return data;
}

void expect_pattern(const uint8_t *bytes, size_t count, uint32_t seed)
{
	for (size_t i = 0; i < count; i++)
		if (bytes[i] != pattern_byte((uint32_t)i, seed))
			cr_assert_fail("byte %zu of %zu is wrong", i, count);
}
