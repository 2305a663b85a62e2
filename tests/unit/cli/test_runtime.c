/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/runtime.h"

static char directory[64];

static void set_up(void)
{
	snprintf(directory, sizeof(directory), "/tmp/jaunt-test-XXXXXX");
	cr_assert(mkdtemp(directory));
	setenv("JAUNT_RUNTIME_DIR", directory, 1);
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	return remove(path);
}

static void tear_down(void)
{
	nftw(directory, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(runtime, .init = set_up, .fini = tear_down, .timeout = 30);

static bool exists(const char *name)
{
	char path[4200];
	struct stat status;
	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return lstat(path, &status) == 0;
}

/* A child that claims a name and waits to be killed. */
static pid_t claim_in_child(const char *name)
{
	int pipes[2];
	char byte;

	cr_assert_eq(pipe(pipes), 0);
	pid_t child = fork();
	if (child == 0) {
		struct runtime_claim claim;
		if (runtime_claim(&claim, name, NULL) || write(pipes[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(pipes[1]);
	cr_assert_eq(read(pipes[0], &byte, 1), 1);
	close(pipes[0]);
	return child;
}

static void kill_child(pid_t child)
{
	kill(child, SIGKILL);
	cr_assert_eq(waitpid(child, NULL, 0), child);
}

Test(runtime, the_directory_is_made_for_its_owner_alone)
{
	struct stat status;
	char path[4200];

	snprintf(path, sizeof(path), "%s/inner", directory);
	setenv("JAUNT_RUNTIME_DIR", path, 1);
	int fd = runtime_open(NULL);
	cr_assert_geq(fd, 0);
	cr_assert_eq(fstat(fd, &status), 0);
	cr_assert_eq(status.st_mode & 07777, 0700);
	close(fd);
}

Test(runtime, a_directory_that_others_may_write_to_is_refused)
{
	struct jaunt_error error = {.code = 0};

	cr_assert_eq(chmod(directory, 0777), 0);
	cr_assert_eq(runtime_open(&error), -EPERM);
	cr_assert_str_eq(error.reason, "unsafe-runtime-dir");
	cr_assert(strstr(error.text, "chmod 700"));
}

Test(runtime, a_file_in_place_of_the_directory_is_refused)
{
	struct jaunt_error error = {.code = 0};

	setenv("JAUNT_RUNTIME_DIR", "/dev/null", 1);
	cr_assert_lt(runtime_open(&error), 0);
	cr_assert_str_eq(error.reason, "no-runtime-dir");
}

Test(runtime, names_are_short_and_harmless)
{
	char longest[RUNTIME_NAME_MAX + 2];

	memset(longest, 'a', sizeof(longest));
	longest[RUNTIME_NAME_MAX] = '\0';
	cr_assert(runtime_name_valid(longest));
	longest[RUNTIME_NAME_MAX] = 'a';
	longest[RUNTIME_NAME_MAX + 1] = '\0';
	cr_assert_not(runtime_name_valid(longest));
	cr_assert(runtime_name_valid("web-1.prod_2"));
	static const char *const wrong[] = {"",    ".",  "..", "a/b", "../a",
					    "a b", "-a", ".a", "a\n", "\xc3\xa4"};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		cr_expect_not(runtime_name_valid(wrong[i]), "\"%s\"", wrong[i]);
}

Test(runtime, a_name_that_is_taken_is_refused_with_the_process_that_has_it)
{
	struct jaunt_error error = {.code = 0};
	struct runtime_claim claim;
	char number[32];
	pid_t child = claim_in_child("web");

	cr_assert_eq(runtime_claim(&claim, "web", &error), -EEXIST);
	cr_assert_str_eq(error.reason, "name-taken");
	snprintf(number, sizeof(number), "process %ld", (long)child);
	cr_assert(strstr(error.text, number), "%s", error.text);
	kill_child(child);
}

Test(runtime, what_a_killed_process_left_behind_is_not_in_the_way)
{
	struct runtime_claim claim;
	pid_t child = claim_in_child("web");

	kill_child(child);
	cr_assert(exists("web.sock"));
	cr_assert_eq(runtime_claim(&claim, "web", NULL), 0);
	runtime_release(&claim);
	cr_assert_not(exists("web.sock"));
	cr_assert_not(exists("web.lock"));
}

Test(runtime, the_dead_are_not_listed_and_tidied_away)
{
	struct runtime_claim claim;
	char **names;
	size_t count;
	pid_t child = claim_in_child("dead");

	kill_child(child);
	cr_assert_eq(runtime_claim(&claim, "alive", NULL), 0);
	cr_assert_eq(runtime_list(&names, &count, NULL), 0);
	cr_assert_eq(count, 1);
	cr_assert_str_eq(names[0], "alive");
	runtime_list_free(names, count);
	cr_assert_not(exists("dead.sock"));
	runtime_release(&claim);
}

Test(runtime, names_are_listed_in_order)
{
	struct runtime_claim b, a, c;
	char **names;
	size_t count;

	cr_assert_eq(runtime_claim(&b, "b", NULL), 0);
	cr_assert_eq(runtime_claim(&a, "a", NULL), 0);
	cr_assert_eq(runtime_claim(&c, "c", NULL), 0);
	cr_assert_eq(runtime_list(&names, &count, NULL), 0);
	cr_assert_eq(count, 3);
	cr_assert_str_eq(names[0], "a");
	cr_assert_str_eq(names[2], "c");
	runtime_list_free(names, count);
	runtime_release(&a);
	runtime_release(&b);
	runtime_release(&c);
}

Test(runtime, an_unknown_name_is_answered_with_those_there_are)
{
	struct jaunt_error error = {.code = 0};
	struct runtime_claim claim;

	cr_assert_eq(runtime_claim(&claim, "web", NULL), 0);
	cr_assert_eq(runtime_connect("wbe", &error), -ENOENT);
	cr_assert_str_eq(error.reason, "unknown-vm");
	cr_assert(strstr(error.text, "web"), "%s", error.text);
	runtime_release(&claim);
}

Test(runtime, a_client_reaches_the_owner_in_a_directory_deeper_than_a_socket_path)
{
	struct runtime_claim claim;
	char path[600];

	snprintf(path, sizeof(path), "%s/", directory);
	memset(path + strlen(path), 'd', 200);
	path[strlen(directory) + 1 + 200] = '\0';
	setenv("JAUNT_RUNTIME_DIR", path, 1);
	cr_assert_eq(runtime_claim(&claim, "web", NULL), 0);
	int fd = runtime_connect("web", NULL);
	cr_assert_geq(fd, 0);
	int accepted = accept(claim.listen_fd, NULL, NULL);
	cr_assert_geq(accepted, 0);
	close(accepted);
	close(fd);
	runtime_release(&claim);
}

Test(runtime, a_symbolic_link_in_place_of_a_lock_is_not_followed)
{
	struct runtime_claim claim;
	char link[4200], victim[4200];

	snprintf(link, sizeof(link), "%s/web.lock", directory);
	snprintf(victim, sizeof(victim), "%s/victim", directory);
	cr_assert_eq(symlink(victim, link), 0);
	cr_assert_lt(runtime_claim(&claim, "web", NULL), 0);
	cr_assert_not(exists("victim"));
}
