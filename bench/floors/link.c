/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors/link.h"
#include "bench/floors/program.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void no_delay(int link)
{
	int on = 1;
	if (setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		program_fail("TCP_NODELAY");
}

int link_listen_at(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 16))
		program_fail("listen on loopback");
	return listener;
}

int link_listen(uint16_t *port)
{
	struct sockaddr_in address;
	socklen_t bytes = sizeof(address);
	int listener = link_listen_at(0);
	if (getsockname(listener, (struct sockaddr *)&address, &bytes))
		program_fail("listen on loopback");
	*port = ntohs(address.sin_port);
	return listener;
}

int link_accept(int listener)
{
	int link = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (link < 0)
		program_fail("accept");
	no_delay(link);
	return link;
}

int link_connect(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int link = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (link < 0 || connect(link, (struct sockaddr *)&address, sizeof(address)))
		program_fail("connect to loopback port %u", port);
	no_delay(link);
	return link;
}

void link_send(int link, const void *bytes, size_t count)
{
	const char *next = bytes;
	while (count) {
		ssize_t sent = send(link, next, count, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			program_fail("send");
		next += sent;
		count -= (size_t)sent;
	}
}

void link_send_two(int link, const void *head, size_t head_bytes, const void *body,
		   size_t body_bytes)
{
	struct iovec parts[2] = {{(void *)(uintptr_t)head, head_bytes},
				 {(void *)(uintptr_t)body, body_bytes}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t sent = sendmsg(link, &message, MSG_NOSIGNAL);
	if (sent < 0)
		program_fail("send");
	size_t done = (size_t)sent;
	if (done < head_bytes) {
		link_send(link, (const char *)head + done, head_bytes - done);
		done = head_bytes;
	}
	link_send(link, (const char *)body + (done - head_bytes), body_bytes - (done - head_bytes));
}

int link_receive(int link, void *bytes, size_t count)
{
	size_t done = 0;
	while (done < count) {
		ssize_t got = recv(link, (char *)bytes + done, count - done, MSG_WAITALL);
		if (got < 0 && errno == EINTR)
			continue;
		if (got == 0 && done == 0)
			return 0;
		if (got == 0)
			errno = EPIPE;
		if (got <= 0)
			program_fail("receive");
		done += (size_t)got;
	}
	return 1;
}
