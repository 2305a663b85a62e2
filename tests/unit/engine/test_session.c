/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/session.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/engine/world.h"
#include "transport/provider.h"
#include "transport/ring.h"

TestSuite(session, .timeout = 60);

static struct session session = {.mutex = PTHREAD_MUTEX_INITIALIZER};

Test(session, no_two_sessions_are_alike)
{
	struct session other = {.verify = false};

	cr_assert_eq(session_create(&session), 0);
	cr_assert_eq(session_create(&other), 0);
	cr_assert_neq(memcmp(session.id, other.id, sizeof(other.id)), 0);
	cr_assert_neq(memcmp(session.secret, other.secret, sizeof(other.secret)), 0);
}

Test(session, the_first_loss_counts_and_each_wakes_the_owner)
{
	struct ring *ring;

	cr_assert_eq(ring_create(&ring, 8), 0);
	session_set_owner(&session, ring);
	session_lose(&session, "first", "page %d", 7);
	cr_assert_gt(ring_wait(ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
	session_lose(&session, "second", "another");
	cr_assert_gt(ring_wait(ring, (int64_t)WORLD_WAIT_MS * 1000000), 0);
	cr_assert(atomic_load(&session.lost));
	cr_assert_str_eq(session.why.reason, "first");
	cr_assert(strstr(session.why.text, "page 7"));
	session_set_owner(&session, NULL);
	session_wake(&session); /* nobody to wake: nothing happens */
	session_lose(&session, "third", "still");
	cr_assert_str_eq(session.why.reason, "first");
	cr_assert(atomic_load(&session.local), "new channels would not help");
	session_reattach(&session, 1);
	cr_assert_not(atomic_load(&session.local));
	session_lose_of(&session, atomic_load(&session.attachment), "cut", "a stream");
	session_lose(&session, "later", "a fault");
	cr_assert_not(atomic_load(&session.local), "the first loss counts");
	ring_destroy(ring);
}

Test(session, what_an_older_attachment_lost_is_no_matter)
{
	uint32_t first = atomic_load(&session.attachment);

	session_lose_of(&session, first, "old", "of the first");
	cr_assert(atomic_load(&session.lost));
	uint32_t second = session_reattach(&session, 7);
	cr_assert_neq(first, second);
	cr_assert_eq(atomic_load(&session.epoch), 7);
	cr_assert_not(atomic_load(&session.lost));
	session_lose_of(&session, first, "late", "of the first");
	cr_assert_not(atomic_load(&session.lost), "that one is gone already");
	session_lose_of(&session, second, "new", "of the second");
	cr_assert(atomic_load(&session.lost));
	cr_assert_str_eq(session.why.reason, "new");
}

Test(session, each_side_proves_itself_by_its_own_half_alone)
{
	struct attach attach = {.role = ATTACH_CONTROL};
	size_t half = SESSION_SECRET_BYTES / 2;

	cr_assert_eq(session_create(&session), 0);
	cr_assert_not(session_named(&attach), "it begins one");
	memcpy(attach.session, session.id, SESSION_ID_BYTES);
	cr_assert(session_named(&attach));
	cr_assert_not(session_proves(&session, &attach, true));
	cr_assert_not(session_proves(&session, &attach, false));
	memcpy(attach.secret, session.secret, half);
	cr_assert(session_proves(&session, &attach, true));
	cr_assert_not(session_proves(&session, &attach, false), "it was told that half itself");
	attach.secret[half - 1] ^= 1;
	cr_assert_not(session_proves(&session, &attach, true));
	memset(attach.secret, 0, half);
	memcpy(attach.secret + half, session.secret + half, half);
	cr_assert(session_proves(&session, &attach, false));
	cr_assert_not(session_proves(&session, &attach, true));
	attach.session[0] ^= 1;
	cr_assert_not(session_proves(&session, &attach, false), "another session");
}

static const char *broken_cable(const struct channel *channel)
{
	(void)channel;
	return "port 1: the cable is broken";
}

Test(session, of_a_channel_that_died_what_its_device_said_is_told)
{
	const struct channel_ops ops = {.failure = broken_cable};
	const struct channel channel = {.ops = &ops};
	struct session closed = {.mutex = PTHREAD_MUTEX_INITIALIZER};

	session_lose_channel(&session, SESSION_NOW, &channel, -ETIMEDOUT, "a stream");
	cr_assert_str_eq(session.why.reason, "link-lost");
	cr_assert(strstr(session.why.text, "a stream"));
	cr_assert(strstr(session.why.text, strerror(ETIMEDOUT)));
	cr_assert(strstr(session.why.text, "the cable is broken"));
	session_lose_channel(&closed, SESSION_NOW, &channel, 0, "a stream");
	cr_assert(strstr(closed.why.text, "closed by the peer"));
	cr_assert_null(strstr(closed.why.text, "cable"), "nothing failed");
}

static void send_preamble(enum attach_role role, uint8_t bytes[PREAMBLE_BYTES])
{
	static const struct channel_events events;
	struct channel *channel;
	struct ring *ring;
	int fd;

	cr_assert_eq(session_create(&session), 0);
	cr_assert_eq(ring_create(&ring, 8), 0);
	peer_open(&channel, &fd);
	cr_assert_eq(channel_bind(channel, ring, &events, NULL, 4096), 0);
	cr_assert_eq(preamble_send(channel, &session, role, 5), 0);
	cr_assert_eq(ring_submit(ring), 0);
	cr_assert(peer_read(fd, bytes, PREAMBLE_BYTES));
	channel_free(channel);
	ring_destroy(ring);
	close(fd);
}

Test(session, a_preamble_arrives_as_it_was_sent)
{
	uint8_t bytes[PREAMBLE_BYTES];
	struct attach attach;
	const char *why;

	send_preamble(ATTACH_STREAM, bytes);
	cr_assert(preamble_parse(bytes, &attach, &why));
	cr_assert_eq(attach.role, ATTACH_STREAM);
	cr_assert_eq(attach.index, 5);
	cr_assert(session_equal(attach.session, session.id, SESSION_ID_BYTES));
	cr_assert(session_equal(attach.secret, session.secret, SESSION_SECRET_BYTES));
}

Test(session, on_control_the_secret_is_not_told)
{
	static const uint8_t nothing[SESSION_SECRET_BYTES];
	uint8_t bytes[PREAMBLE_BYTES];
	struct attach attach;
	const char *why;

	send_preamble(ATTACH_CONTROL, bytes);
	cr_assert(preamble_parse(bytes, &attach, &why));
	cr_assert_arr_eq(attach.secret, nothing, SESSION_SECRET_BYTES);
	cr_assert_arr_eq(attach.session, nothing, SESSION_ID_BYTES);
}

Test(session, no_byte_of_a_preamble_can_be_changed_in_its_head_or_its_reserve)
{
	uint8_t bytes[PREAMBLE_BYTES];
	struct attach attach;
	const char *why;
	unsigned refused = 0;

	send_preamble(ATTACH_URGENT, bytes);
	for (unsigned i = 0; i < PREAMBLE_BYTES; i++) {
		bytes[i] ^= 0x80;
		why = NULL;
		if (!preamble_parse(bytes, &attach, &why)) {
			cr_assert_not_null(why);
			cr_assert_gt(strlen(why), 10);
			refused++;
		} else { /* then it names another session or index, which the target compares */
			cr_assert_geq(i, FRAME_BYTES);
		}
		bytes[i] ^= 0x80;
	}
	cr_assert_geq(refused, FRAME_BYTES);
	cr_assert(preamble_parse(bytes, &attach, &why));
}

Test(session, a_good_frame_that_is_no_attach_is_no_preamble)
{
	struct frame frame = {.type = FRAME_FETCH, .page_count = 1};
	uint8_t bytes[PREAMBLE_BYTES] = {0};
	struct attach attach;
	const char *why = NULL;

	frame_encode(&frame, bytes);
	cr_assert_not(preamble_parse(bytes, &attach, &why));
	cr_assert_not_null(why);
}

Test(session, while_there_is_a_link_only_what_knows_the_secret_is_admitted)
{
	uint8_t token[CONNECT_TOKEN_BYTES];
	struct session other = {.verify = false};

	cr_assert_eq(session_create(&session), 0);
	cr_assert_eq(session_create(&other), 0);
	for (unsigned role = ATTACH_URGENT; role < ATTACH_ROLES; role++) {
		session_token(&session, (enum attach_role)role, false, token);
		cr_assert(session_admits(&session, true, token));
		cr_assert_not(session_admits(&session, false, token), "there is no session");
		token[CONNECT_TOKEN_BYTES - 1] ^= 1;
		cr_assert_not(session_admits(&session, true, token));
		session_token(&other, (enum attach_role)role, false, token);
		cr_assert_not(session_admits(&session, true, token));
	}
	session_token(&session, ATTACH_CONTROL, false, token);
	cr_assert(session_admits(&session, false, token));
	cr_assert_not(session_admits(&session, true, token), "one VM at a time");
	session_token(&session, ATTACH_CONTROL, true, token);
	cr_assert(session_admits(&session, true, token), "its own source comes back");
	session_token(&other, ATTACH_CONTROL, true, token);
	cr_assert_not(session_admits(&session, true, token));
}
