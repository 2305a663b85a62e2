/* SPDX-License-Identifier: Apache-2.0 */
/* Who has stopped the guest, and who may continue it, with a thread in place of QEMU that stops,
 * saves and continues as QEMU does. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"
#include "vmm/qemu/commit.h"
#include "vmm/qemu/stream.h"
#include "vmm/qemu/vm.h"

#define PATIENT 20000
#define PAGES   5000 /* bytes that it writes while the guest runs */

/* --- QEMU ---------------------------------------------------------------------------------------
 */

static struct {
	pthread_mutex_t mutex;
	const char *status;    /* of the guest */
	const char *migration; /* of its state's */
	const char *before;    /* of the guest when its state's last part began */
	bool fails;            /* it cannot save */
	bool breaks;           /* its monitor is gone when it has saved all */
	bool silent;           /* its state does not say what the guest did */
	bool stuck;            /* gives up, and does not continue the guest */
	unsigned continued;    /* by Jaunt */
} qemu = {.mutex = PTHREAD_MUTEX_INITIALIZER};
static char record[96];
static struct peer peer;

static void tell(const char *event)
{
	peer_say(&peer, "{\"event\": \"%s\"}\n", event);
}

static void tell_migration(const char *status)
{
	qemu.migration = status;
	peer_say(&peer, "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"%s\"}}\n", status);
}

static void stop_as(const char *status)
{
	bool ran = strcmp(qemu.status, "running") == 0;

	qemu.status = ran || strcmp(status, "paused") != 0 ? status : qemu.status;
	if (ran)
		tell("STOP");
}

static void go_on(void)
{
	qemu.status = "running";
	tell("RESUME");
}

/* All of its memory is written. */
static void pass_ends(void)
{
	qemu.before = qemu.status;
	stop_as("finish-migrate");
	tell_migration("pre-switchover");
}

static void give_up(const char *status)
{
	peer_close_channel(&peer);
	tell_migration(status);
	if (qemu.stuck)
		return;
	if (qemu.before && strcmp(qemu.before, "running") == 0)
		go_on();
	else if (strcmp(qemu.status, "finish-migrate") == 0)
		qemu.status = "postmigrate";
}

static void write_rest(void)
{
	char section[6 + 11 + 12 + 100 + 5] = {0};

	if (qemu.fails) {
		give_up("failed");
		return;
	}
	section[0] = 4;
	section[4] = 7;
	memcpy(section + 5, "\x0bglobalstate", 12);
	section[24] = 1;
	section[28] = (char)(strlen(qemu.before) + 1);
	strcpy(section + 29, qemu.before);
	section[129] = 0x7e;
	section[133] = 7;
	if (!qemu.silent)
		send(peer.channel, section, sizeof(section), MSG_NOSIGNAL);
	send(peer.channel, "the devices", 11, MSG_NOSIGNAL);
	peer_close_channel(&peer);
	qemu.status = "postmigrate";
	if (!qemu.breaks)
		tell_migration("completed");
}

static void answer(const char *word, const char *id)
{
	char text[128];

	if (strcmp(word, "query-status") == 0 || strcmp(word, "query-migrate") == 0)
		snprintf(text, sizeof(text), "{\"return\": {\"status\": \"%s\"}, \"id\": %s}\n",
			 word[6] == 's' ? qemu.status : qemu.migration, id);
	else
		snprintf(text, sizeof(text), "{\"return\": {}, \"id\": %s}\n", id);
	peer_say(&peer, "%s", text);
}

static void obey(const char *word)
{
	if (strcmp(word, "stop") == 0) {
		stop_as("paused");
	} else if (strcmp(word, "cont") == 0) {
		qemu.continued++;
		go_on();
	} else if (strcmp(word, "migrate") == 0) {
		static const char pages[PAGES];
		qemu.before = NULL;
		tell_migration("active");
		send(peer.channel, pages, sizeof(pages), MSG_NOSIGNAL);
	} else if (strcmp(word, "migrate-continue") == 0) {
		write_rest();
	} else if (strcmp(word, "migrate_cancel") == 0 &&
		   (strcmp(qemu.migration, "active") == 0 ||
		    strcmp(qemu.migration, "pre-switchover") == 0)) {
		give_up("cancelled");
	}
}

static void live(const char *word, int number)
{
	char id[16];

	snprintf(id, sizeof(id), "%d", number);
	pthread_mutex_lock(&qemu.mutex);
	/* As QEMU does: an event comes before the answer to what caused it. */
	if (strncmp(word, "query", 5) != 0)
		obey(word);
	answer(word, id);
	if (qemu.breaks && strcmp(word, "migrate-continue") == 0)
		shutdown(peer.client, SHUT_WR);
	pthread_mutex_unlock(&qemu.mutex);
}

/* Somebody else, or QEMU itself, does it now. */
static void does(void (*what)(void))
{
	pthread_mutex_lock(&qemu.mutex);
	what();
	pthread_mutex_unlock(&qemu.mutex);
}

static void operator_stops(void)
{
	stop_as("paused");
}

static void is_stopped_and_ends(void)
{
	operator_stops();
	pass_ends();
}

static void is_stopped_and_continued(void)
{
	operator_stops();
	go_on();
}

/* ------------------------------------------------------------------------------------------------
 */

static const struct qemu_place place = {.monitor = peer.path, .record = record};
static struct qemu vm;
static struct jaunt_error error;

static void set_up(void)
{
	peer_listen(&peer);
	snprintf(record, sizeof(record), "%s/vm.commit", peer.folder);
	qemu.status = "running";
	qemu.migration = "none";
	peer_start(&peer, live);
	vm = (struct qemu){
		.place = &place, .pidfd = -1, .stream_fd = -1, .attach.fd = -1, .ahead = true};
	cr_assert_eq(qmp_open(&vm.qmp, peer.path, PATIENT, &error), 0, "%s", error.text);
	vm.started = commit_started(getpid());
}

static void tear_down(void)
{
	stream_withdraw(&vm);
	qmp_close(vm.qmp);
	peer_join(&peer);
	unlink(record);
	peer_forget(&peer);
}

TestSuite(stop, .init = set_up, .fini = tear_down, .timeout = 60);

static void begin(void)
{
	cr_assert_eq(qemu_ops.save_begin(&vm, &error), 0, "%s", error.text);
}

/* Until it says that it is time for the pause, or fails. */
static int go_ahead(void)
{
	char buffer[1000];
	size_t bytes;
	int more;

	while ((more = qemu_ops.save_ahead(&vm, buffer, sizeof(buffer), &bytes, &error)) > 0)
		;
	return more;
}

static int pause_it(void)
{
	uint64_t when;
	return qemu_ops.pause(&vm, &when, &error);
}

static int save_it(void)
{
	void *state = NULL;
	size_t bytes = 0;
	int result = qemu_ops.save(&vm, &state, &bytes, &error);

	cr_assert_eq(result == 0, state != NULL);
	free(state);
	return result;
}

static void check_record(bool begun, bool by_qemu, bool stopped)
{
	struct commit commit;

	cr_assert_eq(commit_read(record, &commit), 0);
	cr_assert_eq(commit.begun, begun);
	cr_assert_eq(commit.by_qemu, by_qemu);
	cr_assert_eq(commit.stopped, stopped);
}

static int go_back(void)
{
	struct jaunt_error ignored = {.code = 0};
	uint64_t when;
	return qemu_ops.resume(&vm, &when, &ignored);
}

/* It was another who stopped it: it is not continued, and nothing is left to be done. */
static void is_left(void)
{
	cr_assert_eq(go_back(), 0);
	cr_assert_eq(qemu.continued, 0);
	cr_assert_str_neq(qemu.status, "running");
	check_record(false, false, false);
}

static void runs_again(unsigned continued)
{
	cr_assert_eq(go_back(), 0);
	cr_assert_eq(qemu.continued, continued);
	cr_assert_str_eq(qemu.status, "running");
	check_record(false, false, false);
}

static void was_anothers(int result)
{
	cr_assert_eq(result, -EINVAL);
	cr_assert_str_eq(error.reason, "qemu-state");
	cr_assert(strstr(error.text, "had stopped before"), "%s", error.text);
}

Test(stop, by_qemu_is_committed_or_continued)
{
	begin();
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	check_record(true, false, false);
	cr_assert_eq(save_it(), 0, "%s", error.text);
	check_record(true, true, true);
	cr_assert_eq(qemu_ops.committed(&vm, "peer", &error), 0, "%s", error.text);
	runs_again(1);
}

Test(stop, by_another_while_state_goes_ahead_is_seen_at_once)
{
	begin();
	does(operator_stops);
	was_anothers(go_ahead());
	/* QEMU was still at it: nothing is inactive, and its word for the guest is as it was. */
	cr_assert_str_eq(qemu.status, "paused");
	is_left();
}

/* QEMU tells one STOP in both cases, and says the same of both guests. */
Test(stop, by_another_just_before_qemus_own_is_told_by_the_state)
{
	begin();
	does(is_stopped_and_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	was_anothers(save_it());
	is_left();
}

Test(stop, by_another_that_was_undone_is_nothing)
{
	begin();
	does(is_stopped_and_continued);
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), 0, "%s", error.text);
	cr_assert_eq(qemu_ops.committed(&vm, "peer", &error), 0, "%s", error.text);
	runs_again(1);
}

/* The pause is decided on while QEMU goes on, and QEMU is at its end when it is asked. */
Test(stop, by_another_and_qemus_own_before_the_pause_is_told_by_the_state)
{
	begin();
	does(operator_stops);
	qemu.before = "paused";
	qemu.status = "finish-migrate";
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	check_record(true, false, false);
	tell_migration("pre-switchover");
	was_anothers(save_it());
	is_left();
}

Test(stop, by_another_after_the_last_look_is_seen_by_the_pause)
{
	begin();
	does(operator_stops);
	was_anothers(pause_it());
	is_left();
}

Test(stop, by_us_while_qemu_goes_on_is_ours)
{
	begin();
	does(is_stopped_and_continued);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	check_record(true, false, true);
	does(pass_ends);
	cr_assert_eq(save_it(), 0, "%s", error.text);
	check_record(true, false, true);
	cr_assert_eq(qemu_ops.committed(&vm, "peer", &error), 0, "%s", error.text);
	runs_again(1);
}

Test(stop, by_us_that_another_undoes_is_not_committed)
{
	begin();
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	does(pass_ends);
	cr_assert_eq(save_it(), 0, "%s", error.text);
	does(go_on);
	cr_assert_eq(qemu_ops.committed(&vm, "peer", &error), -EBUSY);
	runs_again(0);
}

/* It is QEMU's to continue what it has stopped. */
Test(stop, by_qemu_whose_state_cannot_be_saved_is_undone_by_qemu)
{
	qemu.fails = true;
	begin();
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), -EIO);
	runs_again(0);
}

Test(stop, by_another_of_a_guest_whose_state_cannot_be_saved_stays)
{
	qemu.fails = true;
	begin();
	does(is_stopped_and_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), -EIO);
	is_left();
}

Test(stop, by_qemu_is_ours_also_if_the_end_of_the_state_is_not_heard)
{
	qemu.breaks = true;
	begin();
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), -ECONNRESET);
	/* By whoever comes next. */
	check_record(true, true, true);
}

Test(stop, of_which_the_state_says_nothing_is_not_undone)
{
	qemu.silent = true;
	begin();
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), -EINVAL);
	cr_assert(strstr(error.text, "does not say"), "%s", error.text);
	is_left();
}

Test(stop, that_qemu_does_not_undo_is_told)
{
	qemu.stuck = true;
	begin();
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(go_back(), -ETIMEDOUT);
	/* Somebody has to look after it. */
	check_record(true, false, false);
}

/* --- What a process that died leaves ------------------------------------------------------------
 */

/* Another process comes, and is told what the record says. */
static enum qemu_remains recover(int wanted)
{
	enum qemu_remains remains = QEMU_COMMITTED;

	stream_withdraw(&vm);
	qmp_close(vm.qmp);
	vm.qmp = NULL;
	peer_join(&peer);
	peer_start(&peer, live);
	cr_assert_eq(qemu_recover(&place, &remains, &error), wanted, "%s", error.text);
	return remains;
}

Test(stop, by_qemu_that_waits_for_the_dead_is_undone_by_qemu)
{
	begin();
	does(pass_ends);
	cr_assert_eq(recover(0), QEMU_CONTINUED);
	cr_assert_eq(qemu.continued, 0);
	cr_assert_str_eq(qemu.status, "running");
	cr_assert_neq(access(record, F_OK), 0);
}

Test(stop, by_another_before_a_death_stays)
{
	begin();
	does(is_stopped_and_ends);
	cr_assert_eq(recover(0), QEMU_NOTHING);
	cr_assert_eq(qemu.continued, 0);
	cr_assert_str_eq(qemu.status, "postmigrate");
}

/* It dies when QEMU was told to write the rest, and nobody has read what that says. */
static void dies_at_the_rest(void (*ends)(void))
{
	begin();
	does(ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	vm.by_qemu = true;
	cr_assert_eq(qemu_note(&vm, false, false, "", &error), 0);
	does(write_rest);
}

Test(stop, by_qemu_that_has_written_all_at_a_death_is_undone_by_the_next)
{
	dies_at_the_rest(pass_ends);
	cr_assert_eq(recover(0), QEMU_CONTINUED);
	cr_assert_eq(qemu.continued, 1);
	cr_assert_str_eq(qemu.status, "running");
	cr_assert_neq(access(record, F_OK), 0);
}

Test(stop, by_another_whose_state_failed_at_a_death_stays)
{
	qemu.fails = true;
	dies_at_the_rest(is_stopped_and_ends);
	cr_assert_eq(recover(0), QEMU_NOTHING);
	cr_assert_eq(qemu.continued, 0);
	cr_assert_str_eq(qemu.status, "postmigrate");
}

/* What the state said is in the record, should the process die before it has told anybody. */
Test(stop, by_another_that_the_state_told_of_stays_after_a_death)
{
	begin();
	does(is_stopped_and_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), -EINVAL);
	cr_assert_eq(recover(0), QEMU_NOTHING);
	cr_assert_eq(qemu.continued, 0);
	cr_assert_str_eq(qemu.status, "postmigrate");
}

/* It has written all, and not all was read. */
Test(stop, by_qemu_whose_state_was_lost_on_the_way_is_ours)
{
	uint64_t when;

	dies_at_the_rest(pass_ends);
	cr_assert_eq(qemu_ops.resume(&vm, &when, &error), 0, "%s", error.text);
	cr_assert_eq(qemu.continued, 1);
	cr_assert_str_eq(qemu.status, "running");
}

Test(stop, by_qemu_that_gave_up_at_a_death_is_undone_by_qemu)
{
	qemu.fails = true;
	dies_at_the_rest(pass_ends);
	cr_assert_eq(recover(0), QEMU_CONTINUED);
	cr_assert_eq(qemu.continued, 0);
	cr_assert_str_eq(qemu.status, "running");
}

Test(stop, that_was_ours_is_undone_by_the_next)
{
	begin();
	does(pass_ends);
	cr_assert_eq(go_ahead(), 0);
	cr_assert_eq(pause_it(), 0, "%s", error.text);
	cr_assert_eq(save_it(), 0, "%s", error.text);
	cr_assert_eq(recover(0), QEMU_CONTINUED);
	cr_assert_eq(qemu.continued, 1);
	cr_assert_str_eq(qemu.status, "running");
}
