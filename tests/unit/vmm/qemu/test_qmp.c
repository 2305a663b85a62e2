/* SPDX-License-Identifier: Apache-2.0 */
/* The client of QMP against peers that play a script, word for word. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"
#include "vmm/qemu/events.h"
#include "vmm/qemu/qmp.h"

#define GREETING                                                                                   \
	"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2, \"micro\": 22}, "         \
	"\"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define AGREED  "{\"return\": {}, \"id\": 1}\r\n"
#define PATIENT 20000
#define HASTY   50

/* The peer says the first line at once and each of the following after it has read a command; a
 * NULL ends it. `then` says what it does after that. */
static const char *const *script;
static enum { HANG, HANG_UP, RAVE, CHATTER } then;
static atomic_uint said; /* lines of it */
static struct peer peer; /* played here, word for word */
static bool has_peer;

static bool read_command(int fd)
{
	char byte = 0;
	while (byte != '\n')
		if (recv(fd, &byte, 1, 0) != 1)
			return false;
	return true;
}

static void *play(void *unused)
{
	static const char chatter[] = "{\"event\": \"A\"}\n{\"event\": \"B\"}\n";
	static char noise[65536];
	int fd = accept(peer.listener, NULL, NULL);
	bool heard = true;

	for (size_t i = 0; script[i] && heard; i++) {
		heard = i == 0 || read_command(fd);
		send(fd, script[i], strlen(script[i]), MSG_NOSIGNAL);
		atomic_fetch_add(&said, 1);
	}
	memset(noise, 'x', sizeof(noise));
	while (then == RAVE && send(fd, noise, sizeof(noise), MSG_NOSIGNAL) > 0)
		;
	while (then == CHATTER && send(fd, chatter, strlen(chatter), MSG_NOSIGNAL) > 0)
		;
	while (then == HANG && heard && read_command(fd))
		;
	close(fd);
	return NULL;
}

static void begin(const char *const *lines, int end)
{
	script = lines;
	then = end;
	cr_assert_eq(pthread_create(&peer.thread, NULL, play, NULL), 0);
	has_peer = true;
}

static void set_up(void)
{
	peer_listen(&peer);
}

static void tear_down(void)
{
	if (has_peer)
		pthread_join(peer.thread, NULL);
	peer_forget(&peer);
}

TestSuite(qmp, .init = set_up, .fini = tear_down, .timeout = 60);

static struct qmp *open_it(void)
{
	struct jaunt_error error = {0};
	struct qmp *qmp = NULL;
	cr_assert_eq(qmp_open(&qmp, peer.path, PATIENT, &error), 0, "%s", error.text);
	return qmp;
}

static struct jaunt_error open_fails(unsigned timeout_ms, int code)
{
	struct jaunt_error error = {0};
	struct qmp *qmp = NULL;
	cr_assert_eq(qmp_open(&qmp, peer.path, timeout_ms, &error), -code, "%s", error.text);
	cr_assert_eq(error.code, code);
	return error;
}

Test(qmp, negotiates_and_knows_whom_it_speaks_to)
{
	begin((const char *const[]){GREETING, AGREED, NULL}, HANG);
	struct qmp *qmp = open_it();
	cr_assert_eq(qmp_version(qmp), 70222);
	cr_assert_eq(qmp_process(qmp), getpid());
	qmp_close(qmp);
}

Test(qmp, takes_the_last_of_its_name_and_forgets_what_led_to_it)
{
	begin((const char *const[]){GREETING, AGREED,
				    "{\"event\": \"STOP\", \"data\": 1}\n"
				    "{\"event\": \"RESUME\", \"data\": 2}\n"
				    "{\"event\": \"OTHER\"}\n"
				    "{\"event\": \"STOP\", \"data\": 3}\n"
				    "{\"event\": \"RESUME\", \"data\": 4}\n"
				    "{\"return\": {}, \"id\": 2}\n",
				    NULL},
	      HANG);
	struct qmp *qmp = open_it();
	json_t *event = NULL;
	cr_assert_eq(qmp_execute(qmp, "stop", NULL, PATIENT, NULL, NULL), 0);
	cr_assert_eq(qmp_wait_last(qmp, "STOP", "RESUME", PATIENT, &event, NULL), 0);
	cr_assert_eq(json_integer_value(json_object_get(event, "data")), 3);
	json_decref(event);
	/* One that came later is of something else. */
	cr_assert_eq(qmp_wait(qmp, "RESUME", 0, &event, NULL), 0);
	cr_assert_eq(json_integer_value(json_object_get(event, "data")), 4);
	json_decref(event);
	cr_assert_eq(qmp_wait(qmp, "RESUME", 0, NULL, NULL), -ETIMEDOUT);
	cr_assert_eq(qmp_wait(qmp, "OTHER", 0, NULL, NULL), 0);
	cr_assert_eq(qmp_wait_last(qmp, "STOP", "RESUME", HASTY, NULL, NULL), -ETIMEDOUT);
	qmp_close(qmp);
}

Test(qmp, returns_what_a_command_returned)
{
	begin((const char *const[]){GREETING, AGREED,
				    "{\"return\": {\"status\": \"running\"}, \"id\": 2}\r\n", NULL},
	      HANG);
	struct qmp *qmp = open_it();
	json_t *result = NULL;
	cr_assert_eq(qmp_execute(qmp, "query-status", NULL, PATIENT, &result, NULL), 0);
	cr_assert_str_eq(json_string_value(json_object_get(result, "status")), "running");
	json_decref(result);
	qmp_close(qmp);
}

Test(qmp, tells_a_refusal_in_the_words_of_qemu_and_goes_on)
{
	begin(
		(const char *const[]){
			GREETING, AGREED,
			"{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
			"{\"id\": 3, \"error\": {\"class\": \"CommandNotFound\", \"desc\": "
			"\"?\"}}\n",
			"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse "
			"error\"}}\n",
			"{\"return\": 1, \"id\": 5}\n", NULL},
		HANG);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, PATIENT, NULL, &error), -EINVAL);
	cr_assert_str_eq(error.reason, "qemu-refused");
	cr_assert_str_eq(error.text, "QEMU: cont: no");
	cr_assert_eq(qmp_execute(qmp, "x", NULL, PATIENT, NULL, &error), -ENOSYS);
	cr_assert_eq(qmp_execute(qmp, "y", NULL, PATIENT, NULL, &error), -EINVAL);
	cr_assert_eq(qmp_execute(qmp, "z", json_object(), PATIENT, NULL, &error), 0);
	qmp_close(qmp);
}

Test(qmp, keeps_events_that_come_before_somebody_waits_and_waits_for_others)
{
	begin(
		(const char *const[]){
			GREETING, AGREED,
			"{\"event\": \"A\", \"data\": {\"n\": 1}}\n{\"event\": \"B\"}\n"
			"{\"event\": \"A\", \"data\": {\"n\": 2}}\n{\"return\": {}, \"id\": 2}\n"
			"{\"event\": \"C\"}\n{\"event\": \"D\"}\n{\"event\": \"D\"}\n",
			NULL},
		HANG);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	json_t *event = NULL;
	cr_assert_eq(qmp_execute(qmp, "x", NULL, PATIENT, NULL, NULL), 0);
	cr_assert_eq(qmp_wait(qmp, "C", PATIENT, NULL, NULL), 0);
	for (int n = 1; n <= 2; n++) {
		cr_assert_eq(qmp_wait(qmp, "A", PATIENT, &event, NULL), 0);
		json_t *data = json_object_get(event, "data");
		cr_assert_eq(json_integer_value(json_object_get(data, "n")), n);
		json_decref(event);
	}
	qmp_forget(qmp, "B");
	cr_assert_eq(qmp_wait(qmp, "B", HASTY, NULL, &error), -ETIMEDOUT);
	cr_assert_str_eq(error.reason, "qemu-silent");
	cr_assert_eq(qmp_wait(qmp, "D", PATIENT, NULL, NULL), 0);
	cr_assert_eq(qmp_wait(qmp, "D", PATIENT, NULL, NULL), 0);
	qmp_close(qmp);
}

Test(qmp, drops_the_answer_to_a_command_that_was_given_up)
{
	/* Nothing for the second command; the third is answered with both. */
	begin((const char *const[]){GREETING, AGREED, "",
				    "{\"return\": \"late\", \"id\": 2}\n"
				    "{\"return\": \"right\", \"id\": 3}\n",
				    NULL},
	      HANG);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	json_t *result = NULL;
	cr_assert_eq(qmp_execute(qmp, "slow", NULL, HASTY, &result, &error), -ETIMEDOUT);
	cr_assert_str_eq(error.reason, "qemu-silent");
	cr_assert_eq(qmp_execute(qmp, "next", NULL, PATIENT, &result, &error), 0);
	cr_assert_str_eq(json_string_value(result), "right");
	json_decref(result);
	qmp_close(qmp);
}

/* Sends a command whose answer nobody waits for; returns when so many lines of the script were
 * said, and lie in the socket. */
static void until_it_has_said(struct qmp *qmp, unsigned lines)
{
	cr_assert_eq(qmp_execute(qmp, "sent", NULL, 0, NULL, NULL), -ETIMEDOUT);
	while (atomic_load(&said) < lines)
		usleep(1000);
}

Test(qmp, hears_without_waiting_what_was_said_already)
{
	struct jaunt_error error = {0};

	begin(
		(const char *const[]){
			GREETING, AGREED,
			"{\"return\": {}, \"id\": 2}\n{\"event\": \"A\"}\n"
			"{\"event\": \"B\"}\n{\"event\": \"C\"}\n{\"eve",
			"nt\": \"C\"}\n{\"event\": \"D\"}\n{\"return\": 3, \"id\": 3}\n", NULL},
		HANG);
	struct qmp *qmp = open_it();
	until_it_has_said(qmp, 3);
	cr_assert_eq(qmp_wait(qmp, "B", 0, NULL, &error), 0, "%s", error.text);
	cr_assert_eq(error.code, 0);
	cr_assert_eq(qmp_wait(qmp, "B", 0, NULL, &error), -ETIMEDOUT);
	/* Half of a message that is on its way is nothing yet, and is not lost. */
	until_it_has_said(qmp, 4);
	cr_assert_eq(qmp_wait(qmp, "C", 0, NULL, NULL), 0);
	cr_assert_eq(qmp_wait(qmp, "C", 0, NULL, NULL), 0);
	cr_assert_eq(qmp_wait(qmp, "D", 0, NULL, NULL), 0);
	qmp_close(qmp);
}

Test(qmp, forgets_what_was_said_and_not_yet_read)
{
	json_t *result = NULL;

	begin((const char *const[]){GREETING, AGREED, "{\"event\": \"STOP\"}\n",
				    "{\"return\": \"late\", \"id\": 2}\n{\"event\": \"STOP\"}\n"
				    "{\"return\": \"right\", \"id\": 3}\n",
				    NULL},
	      HANG);
	struct qmp *qmp = open_it();
	until_it_has_said(qmp, 3);
	qmp_forget(qmp, "STOP");
	cr_assert_eq(qmp_wait(qmp, "STOP", 0, NULL, NULL), -ETIMEDOUT);
	cr_assert_eq(qmp_execute(qmp, "stop", NULL, PATIENT, &result, NULL), 0);
	cr_assert_str_eq(json_string_value(result), "right");
	cr_assert_eq(qmp_wait(qmp, "STOP", 0, NULL, NULL), 0);
	cr_assert_eq(qmp_wait(qmp, "STOP", 0, NULL, NULL), -ETIMEDOUT);
	json_decref(result);
	qmp_close(qmp);
}

Test(qmp, does_not_listen_for_ever_to_one_who_never_stops_talking)
{
	begin((const char *const[]){GREETING, AGREED, NULL}, CHATTER);
	struct qmp *qmp = open_it();
	qmp_forget(qmp, "STOP");
	cr_assert_eq(qmp_wait(qmp, "STOP", 0, NULL, NULL), -ETIMEDOUT);
	qmp_close(qmp);
}

Test(qmp, puts_together_what_comes_in_pieces_and_takes_long_answers)
{
	static char answer[1 << 20];
	size_t at = (size_t)sprintf(answer, "{\"id\": 2, \"return\": \"");
	memset(answer + at, 'y', sizeof(answer) - at);
	strcpy(answer + sizeof(answer) - 5, "\"}\n");
	begin((const char *const[]){GREETING, AGREED, answer, NULL}, HANG);
	struct qmp *qmp = open_it();
	json_t *result = NULL;
	cr_assert_eq(qmp_execute(qmp, "schema", NULL, PATIENT, &result, NULL), 0);
	cr_assert_eq(json_string_length(result), sizeof(answer) - 5 - at);
	json_decref(result);
	qmp_close(qmp);
}

Test(qmp, asks_many_questions_at_once_and_keeps_each_answer_to_its_own)
{
	struct jaunt_error error = {0};
	json_t *arguments[3], *results[3];

	begin(
		(const char *const[]){
			GREETING, AGREED, "{\"return\": \"a\", \"id\": 2}\n",
			"{\"event\": \"STOP\"}\n{\"error\": {\"class\": \"GenericError\", "
			"\"desc\": \"no\"}, \"id\": 3}\n",
			"{\"return\": \"c\", \"id\": 4}\n", NULL},
		HANG);
	struct qmp *qmp = open_it();
	for (int i = 0; i < 3; i++)
		arguments[i] = json_object();
	cr_assert_eq(qmp_execute_each(qmp, "qom-get", arguments, 3, PATIENT, results, &error), 0,
		     "%s", error.text);
	cr_assert_eq(error.code, 0);
	cr_assert_str_eq(json_string_value(results[0]), "a");
	cr_assert_null(results[1]);
	cr_assert_str_eq(json_string_value(results[2]), "c");
	cr_assert_eq(qmp_wait(qmp, "STOP", PATIENT, NULL, &error), 0);
	json_decref(results[0]);
	json_decref(results[2]);
	qmp_close(qmp);
}

Test(qmp, ends_many_questions_when_qemu_dies_under_them)
{
	struct jaunt_error error = {0};
	json_t *arguments[100], *results[100];

	begin((const char *const[]){GREETING, AGREED, "{\"return\": \"a\", \"id\": 2}\n", "\n",
				    NULL},
	      HANG_UP);
	struct qmp *qmp = open_it();
	for (int i = 0; i < 100; i++)
		arguments[i] = json_object();
	cr_assert_lt(qmp_execute_each(qmp, "qom-get", arguments, 100, PATIENT, results, &error), 0);
	/* Whether the one answer was still read depends on who was first. */
	for (int i = 1; i < 100; i++)
		cr_assert_null(results[i]);
	json_decref(results[0]);
	qmp_close(qmp);
}

Test(qmp, takes_numbers_beyond_63_bits)
{
	struct jaunt_error error = {0};
	json_t *result = NULL;

	begin((const char *const[]){GREETING, AGREED,
				    "{\"return\": 18446744073709551615, \"id\": 2}\n", NULL},
	      HANG);
	struct qmp *qmp = open_it();
	cr_assert_eq(qmp_execute(qmp, "qom-get", NULL, PATIENT, &result, &error), 0, "%s",
		     error.text);
	cr_assert_gt(json_number_value(result), 1.8e19);
	json_decref(result);
	qmp_close(qmp);
}

Test(qmp, forgets_the_oldest_of_too_many_events)
{
	static char flood[EVENTS_MAX * 40 + 200];
	size_t at = 0;
	for (int i = 0; i <= EVENTS_MAX; i++)
		at += (size_t)sprintf(flood + at, "{\"event\": \"%d\"}\n", i);
	strcpy(flood + at, "{\"return\": {}, \"id\": 2}\n");
	begin((const char *const[]){GREETING, AGREED, flood, NULL}, HANG);
	struct qmp *qmp = open_it();
	cr_assert_eq(qmp_execute(qmp, "x", NULL, PATIENT, NULL, NULL), 0);
	cr_assert_eq(qmp_wait(qmp, "0", HASTY, NULL, NULL), -ETIMEDOUT);
	cr_assert_eq(qmp_wait(qmp, "1", HASTY, NULL, NULL), 0);
	for (int i = EVENTS_MAX; i > 1; i--) {
		char name[8];
		sprintf(name, "%d", i);
		cr_assert_eq(qmp_wait(qmp, name, HASTY, NULL, NULL), 0);
	}
	qmp_close(qmp);
}

/* Of each name the last is told, however many come of another. */
Test(qmp, forgets_none_that_was_not_told_again)
{
	static char flood[EVENTS_MAX * 3 * 40 + 200];
	size_t at = (size_t)sprintf(flood, "{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n");
	for (int i = 0; i < EVENTS_MAX * 3; i++)
		at += (size_t)sprintf(flood + at, "{\"event\": \"MORE\"}\n");
	strcpy(flood + at, "{\"return\": {}, \"id\": 2}\n");
	begin((const char *const[]){GREETING, AGREED, flood, NULL}, HANG);
	struct qmp *qmp = open_it();
	cr_assert_eq(qmp_execute(qmp, "x", NULL, PATIENT, NULL, NULL), 0);
	cr_assert_not(qmp_stands(qmp, "STOP", "RESUME"));
	cr_assert(qmp_stands(qmp, "RESUME", "STOP"));
	cr_assert_eq(qmp_wait(qmp, "RESUME", 0, NULL, NULL), 0);
	qmp_close(qmp);
}

Test(qmp, says_so_when_qemu_dies_under_a_command_and_ever_after)
{
	begin((const char *const[]){GREETING, AGREED, "{\"event\": \"LAST\"}\n{\"retu", NULL},
	      HANG_UP);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	cr_assert_eq(qmp_execute(qmp, "stop", NULL, PATIENT, NULL, &error), -ECONNRESET);
	cr_assert_str_eq(error.reason, "qemu-gone");
	cr_assert_eq(qmp_execute(qmp, "stop", NULL, PATIENT, NULL, &error), -ECONNRESET);
	cr_assert_eq(qmp_wait(qmp, "LAST", PATIENT, NULL, &error), 0);
	cr_assert_eq(qmp_wait(qmp, "LAST", PATIENT, NULL, &error), -ECONNRESET);
	qmp_close(qmp);
}

Test(qmp, ends_a_message_without_an_end)
{
	begin((const char *const[]){GREETING, AGREED, NULL}, RAVE);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	cr_assert_eq(qmp_execute(qmp, "stop", NULL, PATIENT, NULL, &error), -EPROTO);
	cr_assert_str_eq(error.reason, "qmp-protocol");
	qmp_close(qmp);
}

Test(qmp, refuses_what_is_not_qmp)
{
	static const char *const wrong[] = {"SSH-2.0-x\r\n",
					    "[1]\n",
					    "{}\n",
					    "{\"QMP\": 1}\n",
					    "{\"QMP\": {\"version\": {\"qemu\": {\"major\": -1, "
					    "\"minor\": 2, \"micro\": 3}}}}\n",
					    "\n",
					    "{\"QMP\": \"\xff\"}\n"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		const char *const lines[] = {wrong[i], NULL};
		begin(lines, HANG_UP);
		struct jaunt_error error = open_fails(PATIENT, EPROTO);
		cr_assert_str_eq(error.reason, "qmp-protocol");
		pthread_join(peer.thread, NULL);
		has_peer = false;
	}
}

Test(qmp, refuses_answers_that_are_none)
{
	begin((const char *const[]){GREETING, AGREED, "{\"id\": 2}\n", NULL}, HANG);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	cr_assert_eq(qmp_execute(qmp, "x", NULL, PATIENT, NULL, &error), -EPROTO);
	qmp_close(qmp);
}

Test(qmp, does_not_wait_for_ever_behind_another_client)
{
	/* Connected by the kernel, accepted by nobody. */
	struct jaunt_error error = open_fails(HASTY, ETIMEDOUT);
	cr_assert_str_eq(error.reason, "qemu-silent");
	cr_assert(strstr(error.text, "one client at a time"));
}

static struct qmp *connect_it(void)
{
	struct jaunt_error error = {0};
	struct qmp *qmp = NULL;
	cr_assert_eq(qmp_connect(&qmp, peer.path, &error), 0, "%s", error.text);
	cr_assert_not(qmp_is_negotiated(qmp));
	return qmp;
}

Test(qmp, sends_nothing_before_it_is_greeted)
{
	/* Behind another client, which leaves. */
	struct qmp *qmp = connect_it();
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, HASTY, NULL, NULL), -ETIMEDOUT);
	cr_assert_not(qmp_is_negotiated(qmp));
	begin((const char *const[]){GREETING, AGREED, "{\"return\": {}, \"id\": 2}\n", NULL}, HANG);
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, PATIENT, NULL, NULL), 0);
	cr_assert(qmp_is_negotiated(qmp));
	qmp_close(qmp);
}

Test(qmp, goes_on_when_the_negotiation_is_answered_late)
{
	struct jaunt_error error = {0};

	begin((const char *const[]){GREETING, "",
				    AGREED
				    "{\"id\": 2, \"error\": {\"class\": \"CommandNotFound\", "
				    "\"desc\": \"already complete\"}}\n",
				    "{\"return\": {}, \"id\": 3}\n", NULL},
	      HANG);
	struct qmp *qmp = connect_it();
	while (atomic_load(&said) < 1)
		usleep(1000);
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, HASTY, NULL, NULL), -ETIMEDOUT);
	cr_assert_not(qmp_is_negotiated(qmp));
	cr_assert_eq(qmp_execute(qmp, "cont", NULL, PATIENT, NULL, &error), 0, "%s", error.text);
	cr_assert_eq(error.code, 0);
	cr_assert(qmp_is_negotiated(qmp));
	qmp_close(qmp);
}

Test(qmp, says_when_nobody_is_there)
{
	unlink(peer.path);
	struct jaunt_error error = open_fails(PATIENT, ENOENT);
	cr_assert_str_eq(error.reason, "qemu-unreachable");
	cr_assert(strstr(error.text, peer.path));
}

Test(qmp, gives_up_a_command_that_a_peer_does_not_read)
{
	begin((const char *const[]){GREETING, AGREED, NULL}, HANG_UP);
	struct qmp *qmp = open_it();
	struct jaunt_error error = {0};
	static char large[1 << 20];
	memset(large, 'z', sizeof(large) - 1);
	cr_assert_lt(qmp_execute(qmp, "x", json_pack("{s:s}", "a", large), PATIENT, NULL, &error),
		     0);
	cr_assert_str_eq(error.reason, "qemu-gone");
	qmp_close(qmp);
}
