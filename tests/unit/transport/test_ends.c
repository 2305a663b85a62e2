/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What transport.h promises of the ends of a channel, and of moving it from thread to thread, for
 * whichever transport JAUNT_TEST_ADDRESS names.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "tests/unit/transport/harness.h"

static struct pair pair;

TestSuite(ends, .timeout = 60);

/* --- Ends ---------------------------------------------------------------------------- */

Test(ends, what_the_peer_sent_before_it_closed_is_delivered_first)
{
	uint8_t *data = pattern(KIB(300), 11);

	pair_bind(&pair, KIB(16));
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, KIB(300), 1), 0);
	wait_until(pair.ring, pair.left.sent == 1);
	channel_free(pair.left.channel);
	pair.left.channel = NULL;
	wait_until(pair.ring, pair.right.closed);
	cr_assert_eq(pair.right.error, 0);
	cr_assert_eq(pair.right.count, KIB(300));
	expect_pattern(pair.right.bytes, KIB(300), 11);
	cr_assert_eq(channel_send(pair.right.channel, "x", 1, NULL, 0, 1), -EPIPE);
	cr_assert_eq(channel_room(pair.right.channel), 0);
	pair_close(&pair);
	free(data);
}

Test(ends, a_peer_that_leaves_bytes_unread_closes_the_channel_and_ends_its_sends)
{
	uint8_t *data = pattern(MIB(32), 12);

	pair_bind(&pair, KIB(16));
	channel_pause(pair.right.channel, true);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(32), 1), 0);
	settle_ring(pair.ring);
	channel_free(pair.right.channel);
	pair.right.channel = NULL;
	wait_until(pair.ring, pair.left.closed);
	cr_assert_eq(pair.left.sent, 0);
	cr_assert_eq(channel_send(pair.left.channel, "x", 1, NULL, 0, 1), -EPIPE);
	pair_close(&pair);
	free(data);
}

static void *shut_down(void *channel)
{
	channel_shutdown(channel);
	return NULL;
}

static void shutdown_from_another_thread(bool paused)
{
	pthread_t thread;

	pair_bind(&pair, KIB(16));
	channel_pause(pair.right.channel, paused);
	settle_ring(pair.ring);
	cr_assert_eq(pthread_create(&thread, NULL, shut_down, pair.right.channel), 0);
	wait_until(pair.ring, pair.right.closed && pair.left.closed);
	pthread_join(thread, NULL);
	cr_assert_eq(pair.right.error, -ECANCELED);
	cr_assert_eq(pair.left.error, 0);
	pair_close(&pair);
}

Test(ends, a_shutdown_from_another_thread_closes_both_ends)
{
	shutdown_from_another_thread(false);
}

Test(ends, a_shutdown_is_noticed_by_a_paused_channel)
{
	shutdown_from_another_thread(true);
}

Test(ends, a_shutdown_before_binding_is_noticed_after_it)
{
	pair_open(&pair);
	channel_shutdown(pair.left.channel);
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &end_events, &pair.left, 4096), 0);
	wait_until(pair.ring, pair.left.closed);
	cr_assert_eq(pair.left.error, -ECANCELED);
	pair_close(&pair);
}

static void shut_down_own(struct end *end)
{
	channel_shutdown(end->channel);
	end->hook = NULL;
}

Test(ends, a_callback_may_shut_its_own_channel_down)
{
	pair_bind(&pair, 4096);
	pair.right.hook = shut_down_own;
	cr_assert_eq(channel_send(pair.left.channel, "x", 1, NULL, 0, 1), 0);
	wait_until(pair.ring, pair.right.closed);
	cr_assert_eq(pair.right.error, -ECANCELED);
	pair_close(&pair);
}

Test(ends, a_channel_that_is_dropped_ends_at_the_peer_too)
{
	uint8_t *data = pattern(MIB(8), 21);

	pair_bind(&pair, KIB(16));
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(8), 1), 0);
	wait_until(pair.ring, pair.right.count > 0);
	channel_drop(pair.left.channel);
	pair.left.channel = NULL;
	/* The payload is the owner's again. */
	free(data);
	wait_until(pair.ring, pair.right.closed);
	expect_pattern(pair.right.bytes, pair.right.count, 21);
	cr_assert_eq(pair.left.closed, 0, "whoever frees is not told");
	channel_drop(pair.right.channel); /* a dead one, too */
	channel_drop(NULL);
	pair.right.channel = NULL;
	pair_close(&pair);
}

static void free_other(struct end *end)
{
	struct end *other = end->hook_user;

	channel_free(other->channel);
	other->channel = NULL;
	end->hook = NULL;
}

Test(ends, a_callback_may_free_another_channel_that_is_busy)
{
	struct pair second;
	uint8_t *data = pattern(MIB(8), 13);

	pair_bind(&pair, KIB(16));
	pair_bind(&second, KIB(16));
	/* Both on the first ring. */
	channel_unbind(second.left.channel);
	channel_unbind(second.right.channel);
	cr_assert_eq(channel_bind(second.left.channel, pair.ring, &end_events, &second.left, 4096),
		     0);
	cr_assert_eq(
		channel_bind(second.right.channel, pair.ring, &end_events, &second.right, 4096), 0);
	cr_assert_eq(channel_send(second.left.channel, NULL, 0, data, MIB(8), 1), 0);
	cr_assert_eq(channel_send(second.right.channel, NULL, 0, data, MIB(8), 1), 0);
	wait_until(pair.ring, second.right.count > 0 && second.left.count > 0);
	pair.right.hook = free_other;
	pair.right.hook_user = &second.right;
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(8), 1), 0);
	wait_until(pair.ring, pair.right.count == MIB(8) && second.left.closed);
	expect_pattern(pair.right.bytes, MIB(8), 13);
	cr_assert_eq(second.right.closed, 0);
	/* The ring of its channels goes first in pair_close(). */
	channel_unbind(second.left.channel);
	pair_close(&pair);
	pair_close(&second);
	free(data);
}

/* --- From thread to thread ----------------------------------------------------------- */

struct mover {
	struct end *end;
	size_t until;
	struct ring *to_wake;
	_Atomic bool done;
};

/* Binds the channel to a ring of its own and receives at least until `until`. */
static void *receive_some(void *argument)
{
	struct mover *mover = argument;
	struct ring *ring;

	cr_assert_eq(ring_create(&ring, 16), 0);
	cr_assert_eq(channel_bind(mover->end->channel, ring, &end_events, mover->end, KIB(32)), 0);
	wait_until(ring, mover->end->count >= mover->until || mover->end->closed);
	channel_unbind(mover->end->channel);
	ring_destroy(ring);
	atomic_store(&mover->done, true);
	ring_wake(mover->to_wake);
	return NULL;
}

Test(ends, a_channel_moves_between_threads_without_losing_what_arrives_meanwhile)
{
	size_t bytes = MIB(8);
	uint8_t *data = pattern(bytes, 14);
	struct mover mover = {.end = &pair.right};
	pthread_t thread;

	pair_open(&pair);
	mover.to_wake = pair.ring;
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &end_events, &pair.left, 4096), 0);
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, bytes, 1), 0);
	pair.right.unit = 1000; /* so that there mostly is a rest to keep */
	for (mover.until = bytes / 16; mover.until < bytes; mover.until += bytes / 16) {
		atomic_store(&mover.done, false);
		cr_assert_eq(pthread_create(&thread, NULL, receive_some, &mover), 0);
		wait_until(pair.ring, atomic_load(&mover.done));
		pthread_join(thread, NULL);
	}
	cr_assert_eq(channel_bind(pair.right.channel, pair.ring, &end_events, &pair.right, KIB(32)),
		     0);
	pair.right.unit = 1;
	wait_until(pair.ring, pair.right.count == bytes);
	expect_pattern(pair.right.bytes, bytes, 14);
	pair_close(&pair);
	free(data);
}

Test(ends, nothing_is_called_back_after_unbinding)
{
	uint8_t *data = pattern(MIB(1), 15);

	pair_bind(&pair, KIB(16));
	cr_assert_eq(channel_send(pair.left.channel, NULL, 0, data, MIB(1), 1), 0);
	wait_until(pair.ring, pair.right.count > 0);
	channel_unbind(pair.right.channel);
	size_t count = pair.right.count;
	unsigned offers = pair.right.offers;
	channel_free(pair.left.channel);
	pair.left.channel = NULL;
	settle_ring(pair.ring);
	cr_assert_eq(pair.right.count, count);
	cr_assert_eq(pair.right.offers, offers);
	cr_assert_eq(pair.right.closed, 0);
	cr_assert_eq(channel_send(pair.right.channel, "x", 1, NULL, 0, 1), -EPIPE);
	pair_close(&pair);
	free(data);
}

Test(ends, a_bound_channel_is_not_bound_twice_and_a_dead_one_not_again)
{
	pair_bind(&pair, KIB(16));
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &end_events, &pair.left, 4096),
		     -EBUSY);
	channel_shutdown(pair.left.channel);
	wait_until(pair.ring, pair.left.closed);
	channel_unbind(pair.left.channel);
	cr_assert_eq(channel_bind(pair.left.channel, pair.ring, &end_events, &pair.left, 4096),
		     -EPIPE);
	pair_close(&pair);
}
