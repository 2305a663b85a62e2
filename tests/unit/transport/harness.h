/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two connected channels that record what happens to them, for tests of transports. The address
 * comes from JAUNT_TEST_ADDRESS, so that every transport is held to the same suite; tests that use
 * this see transport.h and ring.h only. Everything is asserted with Criterion.
 */
#ifndef TESTS_UNIT_TRANSPORT_HARNESS_H
#define TESTS_UNIT_TRANSPORT_HARNESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/ring.h"
#include "transport/transport.h"

#define ENDS_COOKIES 4096

struct end {
	struct channel *channel;
	/* What was consumed. */
	uint8_t *bytes;
	size_t count, room;
	/* How: units of this size, 0: whatever there is; `want`: whether to tell the channel. */
	size_t unit;
	bool want;
	bool keep; /* consume nothing */
	unsigned offers;
	size_t largest_offer;
	/* Runs in `received`, before anything else. */
	void (*hook)(struct end *end);
	void *hook_user;
	uint64_t cookies[ENDS_COOKIES];
	unsigned sent;
	unsigned closed;
	int error;
};

extern const struct channel_events end_events;
extern const struct channel_events quiet_events; /* without `sent` */

struct pair {
	struct ring *ring;
	struct listener *listener;
	struct address address; /* with the port that is listened on */
	struct end left, right; /* left dialed */
};

/* A connection being made by a thread of its own: it may need the listener to be served meanwhile.
 */
struct dial {
	struct address address;
	struct ring *wake; /* when it is done; NULL: nobody */
	pthread_t thread;
	_Atomic bool done; /* release; what follows is valid then */
	struct channel *channel;
	int result;
	struct jaunt_error error;
};

void dial_start(struct dial *dial, const struct address *address, struct ring *wake);
/* Serves `ring` (or nothing, if NULL) until it is connected; asserts that it is. */
struct channel *dial_finish(struct dial *dial, struct ring *ring);
/* The same, and it may have failed: NULL. */
struct channel *dial_outcome(struct dial *dial, struct ring *ring);

/* Listens and connects; neither end is bound. Skips the test if this host lacks the address. */
void pair_open(struct pair *pair);
/* pair_open(), and both ends bound to one ring, with receive buffers of so many bytes. */
void pair_bind(struct pair *pair, size_t receive_bytes);
void pair_close(struct pair *pair);

/* The address under test, port 0. */
struct address test_address(void);

/* Waits until the condition holds; a test that waits in vain ends by its time limit. */
#define wait_until(ring, condition)                                                                \
	do {                                                                                       \
		while (!(condition))                                                               \
			cr_assert_geq(ring_wait((ring), -1), 0);                                   \
	} while (0)

/* Everything that can happen without waiting has happened. */
void settle_ring(struct ring *ring);

/* malloc()ed bytes in which every position tells (the pattern has no period below 2^32). */
uint8_t *pattern(size_t bytes, uint32_t seed);
void expect_pattern(const uint8_t *bytes, size_t count, uint32_t seed);

#endif
