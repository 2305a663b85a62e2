/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/vmname.h"

static char folder[] = "/tmp/jaunt-vmname-XXXXXX";

static void set_up(void)
{
	cr_assert(mkdtemp(folder));
	cr_assert_eq(chdir(folder), 0);
	cr_assert_eq(mkdir("a", 0700), 0);
	cr_assert_eq(mkdir("b", 0700), 0);
	cr_assert_eq(symlink("a", "link"), 0);
}

static void tear_down(void)
{
	unlink("link");
	rmdir("a");
	rmdir("b");
	cr_assert_eq(chdir("/"), 0);
	cr_assert_eq(rmdir(folder), 0);
}

TestSuite(vmname, .init = set_up, .fini = tear_down, .timeout = 30);

/* In the runtime directory; one of several, so that two can be compared. */
static const char *name_of(const char *text)
{
	static char names[4][RUNTIME_NAME_MAX + 1];
	static unsigned next;
	struct jaunt_error error = {.code = 0};
	char *name = names[next++ % 4];

	cr_assert_eq(vmname_runtime(name, text, &error), 0, "%s: %s", text, error.text);
	cr_assert_eq(runtime_name_check(name, &error), 0, "%s: %s", name, error.text);
	return name;
}

static const char *under(const char *rest)
{
	static char text[PATH_MAX];

	snprintf(text, sizeof(text), "qemu:%s/%s", folder, rest);
	return text;
}

Test(vmname, of_a_vm_is_itself_and_of_a_qemu_its_socket)
{
	cr_assert_str_eq(name_of("web"), "web");
	cr_assert_null(vmname_monitor("web"));
	cr_assert_null(vmname_monitor("qemu"));
	cr_assert_str_eq(vmname_monitor("qemu:/run/web.qmp"), "/run/web.qmp");
}

Test(vmname, of_a_socket_is_the_same_however_it_is_spelt)
{
	const char *name = name_of(under("a/web.qmp"));

	cr_assert_eq(strncmp(name, "qemu-web.qmp-", 13), 0, "%s", name);
	cr_assert_str_eq(name_of("qemu:a/web.qmp"), name);
	cr_assert_str_eq(name_of("qemu:./b/../a//web.qmp"), name);
	cr_assert_str_eq(name_of("qemu:link/web.qmp"), name);
	cr_assert_eq(chdir("a"), 0);
	cr_assert_str_eq(name_of("qemu:web.qmp"), name);
	cr_assert_eq(chdir(".."), 0);
}

Test(vmname, of_two_sockets_are_two)
{
	char name[RUNTIME_NAME_MAX + 1];

	strcpy(name, name_of("qemu:a/web.qmp"));
	cr_assert_str_neq(name_of("qemu:b/web.qmp"), name);
	cr_assert_str_neq(name_of("qemu:a/web.qmp2"), name);
	/* What is not to be seen of the names tells them apart all the same. */
	strcpy(name, name_of("qemu:a/web vm"));
	cr_assert_str_neq(name_of("qemu:a/web/vm"), name);
	cr_assert_str_neq(name_of("qemu:a/web\nvm"), name);
}

Test(vmname, holds_nothing_that_is_no_name_of_a_file)
{
	cr_assert_eq(strncmp(name_of("qemu:a/a b\x1b[2J:ü"), "qemu-a_b__2J___", 15), 0, "%s",
		     name_of("qemu:a/a b\x1b[2J:ü"));
	cr_assert(!strchr(name_of("qemu:/sock"), '/'));
}

Test(vmname, of_a_long_socket_is_cut_and_stays_its_own)
{
	char first[512], second[512];

	memset(first, 'x', 300);
	memcpy(second, first, 300);
	memcpy(first, "qemu:", 5);
	memcpy(second, "qemu:", 5);
	strcpy(first + 300, "1");
	strcpy(second + 300, "2");
	cr_assert_str_neq(name_of(first), name_of(second));
}

Test(vmname, that_names_no_socket_is_refused)
{
	static const char *const none[] = {"qemu:", "qemu:/", "qemu:a/", "", "../web", "a:b"};
	char longest[2 * PATH_MAX];

	for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
		struct jaunt_error error = {.code = 0};
		cr_assert_eq(vmname_check(none[i], &error), -EINVAL, "%s", none[i]);
		cr_assert_str_eq(error.reason, "bad-name");
	}
	memset(longest, 'x', sizeof(longest));
	memcpy(longest, "qemu:/", 6);
	longest[sizeof(longest) - 1] = '\0';
	cr_assert_eq(vmname_check(longest, NULL), -EINVAL);
}
