/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/qemu/commit.h"
#include "vmm/qemu/qemu.h"

static char folder[] = "/tmp/jaunt-commit-XXXXXX", path[64];

static void set_up(void)
{
	cr_assert(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/vm.commit", folder);
}

static void tear_down(void)
{
	commit_remove(path);
	cr_assert_eq(rmdir(folder), 0, "something is left beside it");
}

TestSuite(commit, .init = set_up, .fini = tear_down, .timeout = 30);

static void write_text(const char *text, size_t bytes)
{
	FILE *file = fopen(path, "we");

	cr_assert_eq(fwrite(text, 1, bytes, file), bytes);
	cr_assert_eq(fclose(file), 0);
}

static size_t read_text(char *text, size_t room)
{
	FILE *file = fopen(path, "re");
	size_t bytes = fread(text, 1, room - 1, file);

	fclose(file);
	text[bytes] = '\0';
	return bytes;
}

static const struct commit handed_over = {.process = 4711,
					  .started = 987654321,
					  .begun = true,
					  .stopped = true,
					  .committed = true,
					  .peer = "tcp:[::1]:4455"};

Test(commit, says_what_was_written)
{
	struct commit commit;

	cr_assert_eq(commit_read(path, &commit), -ENOENT);
	cr_assert_eq(commit_write(path, &handed_over), 0);
	cr_assert_eq(commit_read(path, &commit), 0);
	cr_assert_eq(commit.process, 4711);
	cr_assert_eq(commit.started, 987654321);
	cr_assert(commit.begun);
	cr_assert(commit.stopped);
	cr_assert(commit.committed);
	cr_assert_str_eq(commit.peer, "tcp:[::1]:4455");
	/* Written again, it says the new and nothing of the old. */
	cr_assert_eq(commit_write(path, &(struct commit){.process = 1, .started = 2}), 0);
	cr_assert_eq(commit_read(path, &commit), 0);
	cr_assert_eq(commit.process, 1);
	cr_assert_not(commit.begun);
	cr_assert_not(commit.stopped);
	cr_assert_not(commit.committed);
	cr_assert_str_eq(commit.peer, "");
}

/* It is renamed into place whole; should a piece of it be found all the same, it never says less
 * than was written: that a VM was not handed over that was. */
Test(commit, that_is_torn_says_nothing_or_the_truth)
{
	struct commit commit;
	char whole[512];

	commit_write(path, &handed_over);
	size_t bytes = read_text(whole, sizeof(whole));
	for (size_t left = 0; left < bytes; left++) {
		write_text(whole, left);
		int result = commit_read(path, &commit);
		if (result)
			cr_assert_eq(result, -ENOENT, "%zu bytes", left);
		else
			cr_assert(commit.stopped && commit.committed && commit.process == 4711 &&
					  commit.started == 987654321,
				  "%zu bytes", left);
	}
}

Test(commit, that_is_garbled_says_nothing)
{
	static const char *const texts[] = {
		"nonsense",
		"jaunt-commit 2\nprocess 1\nstarted 2\nbegun 0\nstopped 1\ncommitted 1\npeer -\n",
		"jaunt-commit 1\nprocess one\nstarted 2\nbegun 0\nstopped 1\ncommitted 1\npeer -\n",
		"jaunt-commit 1\nprocess 1\nstopped 1\nstarted 2\ncommitted 1\npeer -\n",
	};
	struct commit commit;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		write_text(texts[i], strlen(texts[i]));
		cr_assert_eq(commit_read(path, &commit), -ENOENT, "%s", texts[i]);
	}
}

Test(commit, longer_than_it_may_be_is_cut_short)
{
	struct commit commit;
	char text[1024];
	int bytes = snprintf(
		text, sizeof(text),
		"jaunt-commit 1\nprocess 1\nstarted 2\nbegun 0\nstopped 1\ncommitted 1\npeer ");

	memset(text + bytes, 'x', 600);
	write_text(text, (size_t)bytes + 600);
	cr_assert_eq(commit_read(path, &commit), 0);
	cr_assert_eq(strlen(commit.peer), sizeof(commit.peer) - 1);
}

Test(commit, that_cannot_be_written_leaves_the_old_one)
{
	struct commit commit;
	char fresh[80];

	commit_write(path, &handed_over);
	snprintf(fresh, sizeof(fresh), "%s.new", path);
	cr_assert_eq(mkdir(fresh, 0700), 0);
	cr_assert_lt(commit_write(path, &(struct commit){.process = 1}), 0);
	rmdir(fresh);
	cr_assert_eq(commit_read(path, &commit), 0);
	cr_assert_eq(commit.process, 4711);
}

Test(commit, a_process_has_its_start_until_it_is_gone)
{
	uint64_t own = commit_started(getpid());
	pid_t child = fork();

	cr_assert_geq(child, 0);
	if (!child) {
		pause();
		_exit(0);
	}
	cr_assert_gt(own, 0);
	cr_assert_geq(commit_started(child), own);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	cr_assert_eq(commit_started(child), 0);
}

/* What is left by a process that died. */
static enum qemu_remains remains_of(const struct commit *commit)
{
	struct qemu_place place = {.monitor = "/nowhere", .record = path};
	struct jaunt_error error = {.code = 0};
	enum qemu_remains remains = QEMU_CONTINUED;

	cr_assert_eq(commit_write(path, commit), 0);
	cr_assert_eq(qemu_recover(&place, &remains, &error), 0, "%s", error.text);
	return remains;
}

Test(commit, binds_the_process_that_it_is_about_and_no_other)
{
	struct commit commit = handed_over;

	/* Its QEMU, here this process, is alive. */
	commit.process = getpid();
	commit.started = commit_started(getpid());
	cr_assert_eq(remains_of(&commit), QEMU_COMMITTED);
	cr_assert_eq(access(path, F_OK), 0);
	/* Another has its number now. */
	commit.started--;
	cr_assert_eq(remains_of(&commit), QEMU_NOTHING);
	cr_assert_neq(access(path, F_OK), 0);
	/* Nobody has it. */
	commit.process = fork();
	if (!commit.process)
		_exit(0);
	waitpid(commit.process, NULL, 0);
	cr_assert_eq(remains_of(&commit), QEMU_NOTHING);
	cr_assert_neq(access(path, F_OK), 0);
}

/* A monitor whose QEMU is this process: greets, and returns whether it was told anything more. */
static void *greet(void *listener)
{
	static const char greeting[] = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, "
				       "\"minor\": 2, \"micro\": 0}}}}\n";
	static const char agreed[] = "{\"return\": {}, \"id\": 1}\n";
	char byte = 0;
	int fd = accept(*(int *)listener, NULL, NULL);

	send(fd, greeting, strlen(greeting), MSG_NOSIGNAL);
	while (byte != '\n' && recv(fd, &byte, 1, 0) == 1)
		;
	send(fd, agreed, strlen(agreed), MSG_NOSIGNAL);
	bool told = recv(fd, &byte, 1, 0) == 1;
	close(fd);
	return told ? listener : NULL;
}

Test(commit, says_nothing_of_another_that_listens_at_the_same_place)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct jaunt_error error = {.code = 0};
	enum qemu_remains remains = QEMU_CONTINUED;
	pthread_t monitor;
	void *told;
	pid_t child = fork();

	if (!child) {
		pause();
		_exit(0);
	}
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/qmp", folder);
	cr_assert_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	cr_assert_eq(listen(listener, 1), 0);
	cr_assert_eq(pthread_create(&monitor, NULL, greet, &listener), 0);
	struct commit commit = {
		.process = child, .started = commit_started(child), .stopped = true};
	struct qemu_place place = {.monitor = address.sun_path, .record = path};
	cr_assert_eq(commit_write(path, &commit), 0);
	cr_assert_eq(qemu_recover(&place, &remains, &error), 0, "%s", error.text);
	cr_assert_eq(remains, QEMU_NOTHING);
	pthread_join(monitor, &told);
	cr_assert_null(told, "it was told what to do");
	cr_assert_neq(access(path, F_OK), 0);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(listener);
	unlink(address.sun_path);
}
