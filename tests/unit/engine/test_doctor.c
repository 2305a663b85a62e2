/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "jaunt.h"

#define ROOM 64

static struct jaunt_check checks[ROOM];
static size_t count;

static const struct jaunt_check *finding(const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(checks[i].name, name))
			return &checks[i];
	cr_assert(0, "no finding %s", name);
	return NULL;
}

static void ask(void)
{
	count = jaunt_doctor(checks, ROOM);
}

TestSuite(doctor, .init = ask, .timeout = 30);

Test(doctor, looks_at_everything_that_a_migration_needs)
{
	const char *names[] = {"kernel",
			       "kvm",
			       "userfaultfd",
			       "tracker.write-protect",
			       "io_uring",
			       "userfaultfd.syscall",
			       "memory",
			       "hugepages",
			       "userfaultfd.device",
			       "shm",
			       "limit.nofile",
			       "limit.memlock",
			       "memory.cgroup",
			       "tracker.soft-dirty"};
	cr_assert_lt(count, ROOM);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		finding(names[i]);
	if (finding("userfaultfd")->ok) {
		cr_assert(finding("uffd.MINOR_SHMEM")->required);
		cr_assert_not(finding("uffd.MINOR_HUGETLBFS")->required);
		cr_assert_not(finding("uffd.WP_ASYNC")->required);
		cr_assert_not(finding("uffd.POISON")->required);
	}
}

Test(doctor, says_what_it_found_and_advises_exactly_where_something_is_wrong)
{
	for (size_t i = 0; i < count; i++) {
		cr_assert_neq(checks[i].found[0], '\0', "%s", checks[i].name);
		cr_assert_eq(checks[i].ok, checks[i].advice[0] == '\0', "%s", checks[i].name);
		for (size_t k = 0; k < i; k++)
			cr_assert_str_neq(checks[i].name, checks[k].name);
	}
}

Test(doctor, keeps_to_the_room_it_is_given)
{
	struct jaunt_check few[4];
	memset(few, 0x55, sizeof(few));
	struct jaunt_check untouched = few[3];
	cr_assert_eq(jaunt_doctor(few, 3), 3);
	cr_assert_str_eq(few[2].name, checks[2].name);
	cr_assert_arr_eq(&few[3], &untouched, sizeof(untouched));
	cr_assert_eq(jaunt_doctor(NULL, 0), 0);
}

Test(doctor, leaves_no_file_open)
{
	int before = open("/dev/null", O_RDONLY);
	close(before);
	ask();
	int after = open("/dev/null", O_RDONLY);
	cr_assert_eq(before, after);
	close(after);
}

Test(doctor, finds_too_few_open_files)
{
	struct rlimit limit = {.rlim_cur = 100, .rlim_max = 100};
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	ask();
	cr_assert_not(finding("limit.nofile")->ok);
	cr_assert(finding("limit.nofile")->required);
	cr_assert(strstr(finding("limit.nofile")->advice, "ulimit -n"));
}

Test(doctor, tells_an_ordinary_user_how_to_get_the_permissions)
{
	if (setgid(65534) || setuid(65534))
		cr_skip_test("needs root to give root up");
	ask();
	if (finding("userfaultfd")->ok || finding("kvm")->ok)
		cr_skip_test("this host gives these permissions to everybody");
	cr_assert(finding("userfaultfd")->required);
	cr_assert(strstr(finding("userfaultfd")->advice, "CAP_SYS_PTRACE"));
	cr_assert(strstr(finding("userfaultfd.device")->advice, "/dev/userfaultfd"));
	cr_assert_neq(finding("kvm")->advice[0], '\0');
}

/* Answers one system call with an error from here on. */
static void forbid(int call, int code)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
	cr_assert_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		cr_skip_test("no seccomp here: %s", strerror(errno));
}

Test(doctor, finds_io_uring_forbidden_by_a_filter)
{
	forbid(SYS_io_uring_setup, EPERM);
	ask();
	cr_assert_not(finding("io_uring")->ok);
	cr_assert(finding("io_uring")->required);
	cr_assert(strstr(finding("io_uring")->found, strerror(EPERM)));
}

Test(doctor, finds_the_device_where_the_system_call_is_forbidden)
{
	if (!finding("userfaultfd.device")->ok)
		cr_skip_test("no way through /dev/userfaultfd here");
	forbid(SYS_userfaultfd, EPERM);
	ask();
	cr_assert_not(finding("userfaultfd.syscall")->ok);
	cr_assert(finding("userfaultfd.device")->ok);
	cr_assert(finding("userfaultfd")->ok, "%s", finding("userfaultfd")->found);
}
