/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cli/notify.h"

static void receive(const struct sockaddr_un *address, socklen_t length, const char *environment)
{
	char got[64] = "";
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	cr_assert_eq(bind(fd, (const struct sockaddr *)address, length), 0);
	setenv("NOTIFY_SOCKET", environment, 1);
	cr_assert_eq(notify_send("READY=1"), 0);
	cr_assert_eq(recv(fd, got, sizeof(got), MSG_DONTWAIT), 7);
	cr_assert_str_eq(got, "READY=1");
	close(fd);
}

Test(notify, a_socket_in_the_file_system_is_told)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	const char *folder = getenv("TMPDIR");
	int length = snprintf(address.sun_path, sizeof(address.sun_path), "%s/jaunt-notify-%ld",
			      folder && *folder ? folder : "/tmp", (long)getpid());
	if ((size_t)length >= sizeof(address.sun_path))
		cr_skip("the path of TMPDIR is too long for a socket");
	receive(&address, sizeof(address), address.sun_path);
	unlink(address.sun_path);
}

Test(notify, an_abstract_socket_is_told)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char environment[64];

	snprintf(environment, sizeof(environment), "@jaunt-notify-%ld", (long)getpid());
	memcpy(address.sun_path, environment, strlen(environment));
	address.sun_path[0] = '\0';
	receive(&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(environment)),
		environment);
}

Test(notify, nobody_asked_is_no_error_and_nonsense_is)
{
	unsetenv("NOTIFY_SOCKET");
	cr_assert_eq(notify_send("READY=1"), 0);
	setenv("NOTIFY_SOCKET", "relative", 1);
	cr_assert_eq(notify_send("READY=1"), -EINVAL);
	setenv("NOTIFY_SOCKET", "/no/such/socket", 1);
	cr_assert_lt(notify_send("READY=1"), 0);
}
