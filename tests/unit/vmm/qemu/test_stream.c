/* SPDX-License-Identifier: Apache-2.0 */
/* The device state, with a thread in place of QEMU that writes and reads what it is told to. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"
#include "vmm/qemu/stream.h"
#include "vmm/qemu/vm.h"

#define PATIENT 20000

/* --- QEMU ---------------------------------------------------------------------------------------
 */

static struct {
	size_t saves;     /* bytes of its state */
	size_t ahead;     /* of them, while the guest runs; 0: it does not wait then */
	const char *last; /* word of its migration */
	bool deaf;        /* closes the channel and reads nothing */
	bool dies;        /* while it loads */
	char *loaded;
	size_t loaded_bytes;
	atomic_bool cancelled, stopped;
} qemu = {.last = "completed"};
static struct peer peer;

static char byte_of(size_t at)
{
	return (char)(at * 7 + at / 4096);
}

static void check_bytes(const char *some, size_t from, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (some[i] != byte_of(from + i))
			cr_assert_fail("byte %zu", from + i);
}

static void tell_end(void)
{
	peer_close_channel(&peer);
	peer_say(&peer, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"%s\"}}\n", qemu.last);
}

static void write_state(size_t done, size_t end)
{
	char some[65536];

	while (done < end) {
		size_t count = end - done < sizeof(some) ? end - done : sizeof(some);
		for (size_t i = 0; i < count; i++)
			some[i] = byte_of(done + i);
		ssize_t sent = send(peer.channel, some, count, MSG_NOSIGNAL);
		if (sent <= 0)
			break;
		done += (size_t)sent;
	}
}

static void save(void)
{
	write_state(0, qemu.ahead ? qemu.ahead : qemu.saves);
	if (qemu.ahead)
		peer_say(&peer, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"%s\"}}\n",
			 "pre-switchover");
	else
		tell_end();
}

static void save_rest(void)
{
	write_state(qemu.ahead, qemu.saves);
	tell_end();
}

static void load(void)
{
	ssize_t got = qemu.deaf ? 0 : 1;

	while (got > 0) {
		got = recv(peer.channel, qemu.loaded + qemu.loaded_bytes, 65536, 0);
		qemu.loaded_bytes += got > 0 ? (size_t)got : 0;
	}
	if (qemu.dies)
		shutdown(peer.client, SHUT_RDWR);
	tell_end();
}

static void obey(const char *word, int id)
{
	char answer[96];
	bool asks = strcmp(word, "query-migrate") == 0;

	snprintf(answer, sizeof(answer), "{\"return\": {%s}, \"id\": %d}\n",
		 asks ? "\"error-desc\": \"no such device\"" : "", id);
	if (strcmp(word, "migrate_cancel") == 0)
		atomic_store(&qemu.cancelled, true);
	peer_say(&peer, "%s", answer);
	if (strcmp(word, "migrate") == 0)
		save();
	else if (strcmp(word, "migrate-continue") == 0)
		save_rest();
	else if (strcmp(word, "stop") == 0)
		atomic_store(&qemu.stopped, true);
	else if (strcmp(word, "migrate-incoming") == 0)
		load();
}

/* ------------------------------------------------------------------------------------------------
 */

static const struct qemu_place place = {.monitor = peer.path};
static struct qemu vm = {.place = &place, .pidfd = -1, .stream_fd = -1, .attach.fd = -1};
static struct jaunt_error error;

static void set_up(void)
{
	peer_listen(&peer);
	cr_assert(qemu.loaded = malloc(8u << 20));
	peer_start(&peer, obey);
	cr_assert_eq(qmp_open(&vm.qmp, peer.path, PATIENT, &error), 0, "%s", error.text);
}

static void tear_down(void)
{
	cr_assert_eq(vm.stream_fd, -1);
	qmp_close(vm.qmp);
	peer_join(&peer);
	free(qemu.loaded);
	peer_forget(&peer);
}

TestSuite(stream, .init = set_up, .fini = tear_down, .timeout = 60);

/* Saves all of what QEMU writes, in order. */
static void check_save(size_t bytes)
{
	void *state = NULL;
	size_t count = 0;

	qemu.saves = bytes;
	cr_assert_eq(stream_save(&vm, &state, &count, &error), 0, "%s", error.text);
	cr_assert_eq(count, bytes);
	for (size_t i = 0; i < bytes; i++)
		if (((const char *)state)[i] != byte_of(i))
			cr_assert_fail("byte %zu of %zu", i, bytes);
	free(state);
}

Test(stream, saves_all_that_qemu_writes)
{
	cr_assert_eq(stream_offer(&vm, &error), 0, "%s", error.text);
	check_save(300000);
	/* More than a channel holds, and one that was not offered before. */
	check_save(5000001);
	cr_assert_not(atomic_load(&qemu.cancelled));
}

Test(stream, does_not_take_the_end_of_an_earlier_migration_for_its_own)
{
	check_save(1);
	qemu.last = "failed";
	void *state;
	size_t count;
	/* What was said of the first is heard; QEMU says it again, and another word after it. */
	peer_say(&peer, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"%s\"}}\n",
		 "completed");
	cr_assert_eq(stream_save(&vm, &state, &count, &error), -EIO);
	free(state);
}

Test(stream, that_qemu_cannot_save_says_why_and_is_called_off)
{
	void *state = NULL;
	size_t count;

	qemu.saves = 1000;
	qemu.last = "failed";
	cr_assert_eq(stream_save(&vm, &state, &count, &error), -EIO);
	cr_assert_str_eq(error.reason, "qemu-state");
	cr_assert(strstr(error.text, "no such device"), "%s", error.text);
	/* What came of it is told. */
	cr_assert_eq(count, qemu.saves);
	check_bytes(state, 0, count);
	free(state);
	cr_assert(atomic_load(&qemu.cancelled));
	/* The guest goes on, and can be moved again. */
	qemu.last = "completed";
	check_save(1000);
}

Test(stream, that_is_larger_than_can_be_sent_is_refused)
{
	void *state = NULL;
	size_t count;

	qemu.saves = STREAM_MAX + 1;
	cr_assert_eq(stream_save(&vm, &state, &count, &error), -EMSGSIZE);
	cr_assert_str_eq(error.reason, "state-too-large");
	free(state);
	cr_assert(atomic_load(&qemu.cancelled));
}

/* A whole state, of as many bytes. */
static int load_bytes(size_t bytes)
{
	char *state = malloc(bytes);

	for (size_t i = 0; i < bytes; i++)
		state[i] = byte_of(i);
	vm.incoming = true;
	int result = stream_load(&vm, state, bytes, &error);
	free(state);
	return result;
}

Test(stream, gives_qemu_all_of_it_and_its_end)
{
	cr_assert_eq(load_bytes(5000001), 0, "%s", error.text);
	cr_assert_eq(qemu.loaded_bytes, 5000001);
	for (size_t i = 0; i < qemu.loaded_bytes; i++)
		if (qemu.loaded[i] != byte_of(i))
			cr_assert_fail("byte %zu", i);
	cr_assert(vm.spent);
}

Test(stream, that_qemu_cannot_load_says_why)
{
	qemu.deaf = true;
	qemu.last = "failed";
	cr_assert_eq(load_bytes(5000001), -EIO);
	cr_assert_str_eq(error.reason, "qemu-state");
	cr_assert(strstr(error.text, "load") && strstr(error.text, "no such device"), "%s",
		  error.text);
	cr_assert(vm.spent);
}

Test(stream, at_which_qemu_dies_has_failed)
{
	qemu.dies = true;
	cr_assert_eq(load_bytes(1000), -EIO);
	cr_assert_str_eq(error.reason, "qemu-state");
	cr_assert(vm.spent);
}

/* --- Ahead --------------------------------------------------------------------------------------
 */

#define MIB (1u << 20)

static bool stood_still; /* before all of it was told */

/* What it tells until it says that the guest is to be stopped. */
static size_t take_ahead(void)
{
	static char buffer[100000];
	size_t all = 0, bytes;
	int more = 1;

	while (more) {
		bool held = more == 2;
		more = stream_ahead(&vm, buffer, sizeof(buffer), &bytes, &error);
		cr_assert_geq(more, 0, "%s", error.text);
		cr_assert_not(held && more == 1, "what stands still does not run again");
		stood_still |= more == 2;
		check_bytes(buffer, all, bytes);
		all += bytes;
	}
	return all;
}

static void begin(size_t ahead, size_t saves)
{
	qemu.ahead = ahead;
	qemu.saves = saves;
	vm.ahead = true;
	cr_assert_eq(stream_begin(&vm, &error), 0, "%s", error.text);
}

static void check_rest(size_t from)
{
	void *state = NULL;
	size_t count = 0;

	cr_assert_eq(stream_save(&vm, &state, &count, &error), 0, "%s", error.text);
	cr_assert_eq(from + count, qemu.saves);
	check_bytes(state, from, count);
	free(state);
	cr_assert_not(vm.under_way);
}

Test(stream, ahead_ends_where_qemu_waits_and_the_rest_follows)
{
	begin(3 * MIB + 1, 4 * MIB);
	size_t all = take_ahead();
	cr_assert_eq(all, qemu.ahead);
	cr_assert(vm.held);
	check_rest(all);
}

Test(stream, ahead_says_when_the_guest_stands_still_before_all_is_told)
{
	begin(500000, MIB);
	/* What was written is less than the channel holds, so QEMU says so by itself. */
	struct pollfd said = {.fd = qmp_fd(vm.qmp), .events = POLLIN};
	poll(&said, 1, 1000);
	size_t all = take_ahead();
	cr_assert_eq(all, qemu.ahead);
	cr_assert(stood_still);
	check_rest(all);
}

Test(stream, ahead_that_does_not_end_is_left_to_the_pause)
{
	begin(50 * MIB, 51 * MIB);
	size_t all = take_ahead();
	cr_assert_gt(all, 32 * MIB);
	cr_assert_lt(all, 33 * MIB);
	cr_assert_not(vm.held);
	check_rest(all);
}

Test(stream, that_nobody_asked_for_ahead_is_saved_at_once)
{
	qemu.ahead = MIB;
	vm.ahead = true; /* QEMU waits all the same */
	check_save(2 * MIB);
}

Test(stream, ahead_is_called_off_while_qemu_writes_it)
{
	static char buffer[1000];
	size_t bytes;

	begin(5 * MIB, 6 * MIB);
	cr_assert_eq(stream_ahead(&vm, buffer, sizeof(buffer), &bytes, &error), 1);
	cr_assert_eq(stream_cancel(&vm, &error), 0, "%s", error.text);
	cr_assert(atomic_load(&qemu.cancelled));
	cr_assert_not(vm.under_way);
	vm.ahead = false;
	qemu.ahead = 0;
	check_save(1000);
}

Test(stream, ahead_that_fails_says_why)
{
	static char buffer[MIB];
	size_t bytes;
	int result = 1;

	qemu.last = "failed";
	begin(0, 1000);
	while (result > 0)
		result = stream_ahead(&vm, buffer, sizeof(buffer), &bytes, &error);
	cr_assert_eq(result, -EIO);
	cr_assert(strstr(error.text, "no such device"), "%s", error.text);
	cr_assert_eq(stream_cancel(&vm, &error), 0);
}

/* The channel holds what comes ahead here, since QEMU is a thread that reads it all at once. */
static int load_ahead_bytes(size_t from, size_t count)
{
	char *state = malloc(count);

	for (size_t i = 0; i < count; i++)
		state[i] = byte_of(from + i);
	vm.incoming = true;
	int result = stream_load_ahead(&vm, state, count, &error);
	free(state);
	return result;
}

Test(stream, is_loaded_as_it_comes_by_a_qemu_that_is_not_to_run_it)
{
	char last[100];

	cr_assert_eq(load_ahead_bytes(0, MIB), 0, "%s", error.text);
	cr_assert(atomic_load(&qemu.stopped));
	cr_assert(vm.spent);
	cr_assert_eq(load_ahead_bytes(MIB, 2 * MIB), 0, "%s", error.text);
	for (size_t i = 0; i < sizeof(last); i++)
		last[i] = byte_of(3 * MIB + i);
	cr_assert_eq(stream_load(&vm, last, sizeof(last), &error), 0, "%s", error.text);
	cr_assert_eq(qemu.loaded_bytes, 3 * MIB + sizeof(last));
	check_bytes(qemu.loaded, 0, qemu.loaded_bytes);
}

Test(stream, that_qemu_does_not_want_ahead_says_why)
{
	qemu.deaf = true;
	qemu.last = "failed";
	cr_assert_eq(load_ahead_bytes(0, 8 * MIB), -EIO);
	cr_assert(strstr(error.text, "no such device"), "%s", error.text);
	stream_withdraw(&vm);
}
