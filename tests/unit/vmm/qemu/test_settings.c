/* SPDX-License-Identifier: Apache-2.0 */
/* What a process that died leaves of QEMU's settings, for the one that goes on. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/qemu/settings.h"

TestSuite(settings, .timeout = 60);

static struct settings some(void)
{
	/* One that Jaunt turns on and was off, one that it turns off and was on, and two that are
	 * as it wants them. */
	return (struct settings){
		.ahead = true,
		.capabilities = json_pack("[{s:s, s:b}, {s:s, s:b}, {s:s, s:b}, {s:s, s:b}]",
					  "capability", "events", "state", 0, "capability",
					  "multifd", "state", 1, "capability", "xbzrle", "state", 0,
					  "capability", "pause-before-switchover", "state", 1),
		.parameters = json_pack("{s:i, s:s}", "downtime-limit", 123, "tls-creds", "id")};
}

Test(settings, that_were_changed_are_found_by_the_next_process)
{
	struct settings before = some(), after = {0};
	char text[4096];

	cr_assert(settings_write(&before, text, sizeof(text)));
	cr_assert(settings_read(&after, text));
	cr_assert(after.ahead);
	json_t *wanted = json_pack("[{s:s, s:b}, {s:s, s:b}]", "capability", "events", "state", 0,
				   "capability", "multifd", "state", 1);
	cr_assert(json_equal(after.capabilities, wanted));
	cr_assert(json_equal(after.parameters, before.parameters));
	json_decref(wanted);
	settings_forget(&before);
	settings_forget(&after);
}

Test(settings, that_do_not_fit_are_not_written_in_part)
{
	struct settings before = some();
	char text[4096] = "";

	cr_assert_not(settings_write(&before, text, 40));
	cr_assert_str_eq(text, "");
	settings_forget(&before);
}

Test(settings, that_make_no_sense_are_none)
{
	static const char *const texts[] = {
		"",
		"x",
		"[]",
		"{}",
		"{\"ahead\": true, \"capabilities\": {}, \"parameters\": {}}",
		"{\"ahead\": 1, \"capabilities\": [], \"parameters\": {}}",
		"{\"ahead\": true, \"capabilities\": [], \"parameters\": []}"};
	struct settings settings = {0};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		cr_assert_not(settings_read(&settings, texts[i]), "%s", texts[i]);
		cr_assert_null(settings.capabilities);
		cr_assert_null(settings.parameters);
	}
}

/* --- Putting them back --------------------------------------------------------------------------
 */

static int listener;
static char told[4][1024]; /* to QEMU, line by line */
static size_t told_count;

/* In place of QEMU: agrees to everything. */
static void *agree(void *unused)
{
	static const char greeting[] = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, "
				       "\"minor\": 2, \"micro\": 0}}}}\n";
	int fd = accept(listener, NULL, NULL);
	FILE *lines = fdopen(fd, "r");

	send(fd, greeting, strlen(greeting), MSG_NOSIGNAL);
	while (told_count < 4 && fgets(told[told_count], sizeof(told[0]), lines)) {
		char text[64];
		int bytes = snprintf(text, sizeof(text), "{\"return\": {}, \"id\": %zu}\n",
				     ++told_count);
		send(fd, text, (size_t)bytes, MSG_NOSIGNAL);
	}
	fclose(lines);
	return unused;
}

static void check_told(size_t line, const char *command, json_t *arguments)
{
	json_error_t ignored;
	json_t *whole = json_loads(told[line], 0, &ignored);

	cr_assert_str_eq(json_string_value(json_object_get(whole, "execute")), command);
	cr_assert(json_equal(json_object_get(whole, "arguments"), arguments), "%s", told[line]);
	json_decref(whole);
	json_decref(arguments);
}

Test(settings, that_were_found_are_put_back)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char folder[] = "/tmp/jaunt-test-XXXXXX", text[4096];
	struct settings before = some(), after = {0};
	struct qmp *qmp = NULL;
	pthread_t peer;

	cr_assert(mkdtemp(folder));
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/qmp", folder);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	cr_assert_eq(listen(listener, 1), 0);
	cr_assert_eq(pthread_create(&peer, NULL, agree, NULL), 0);
	cr_assert_eq(qmp_open(&qmp, address.sun_path, 20000, NULL), 0);
	cr_assert(settings_write(&before, text, sizeof(text)));
	cr_assert(settings_read(&after, text));
	settings_restore(&after, qmp);
	qmp_close(qmp);
	pthread_join(peer, NULL);
	close(listener);
	unlink(address.sun_path);
	rmdir(folder);
	cr_assert_eq(told_count, 3);
	check_told(1, "migrate-set-capabilities",
		   json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "events",
			     "state", 0, "capability", "multifd", "state", 1));
	check_told(2, "migrate-set-parameters", json_incref(before.parameters));
	settings_forget(&before);
	/* Once only. */
	cr_assert_null(after.capabilities);
	cr_assert_null(after.parameters);
}
