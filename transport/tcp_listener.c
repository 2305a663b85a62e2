/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP: listening and accepting.
 *
 * A listener has one socket for each address that its host resolves to ("localhost" is often both
 * ::1 and 127.0.0.1, and a peer may use either), all on one port. Addresses that this host has not
 * are left out as long as one remains. "[::]" alone takes IPv4 too; beside an IPv4 address it does
 * not. SO_REUSEADDR is set, so that a port is free again as soon as its listener is gone; on Linux
 * this does not let two listeners share one.
 *
 * Accepting is one multishot entry per socket. What the owner does not free stays, so the owner
 * bounds how many it keeps; a channel that was not bound costs a few hundred bytes and a
 * descriptor. When descriptors or memory run out, accepting rests for a moment instead of spinning.
 */
#include "transport/tcp.h"

#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "transport/resolve.h"
#include "transport/ring.h"

#define BACKLOG       128
#define REST_NS       100000000 /* between attempts when descriptors or memory are short */
#define PORT_ATTEMPTS 16        /* to find a port that is free in all address families */

struct tcp_socket {
	struct ring_operation accept, rest;
	struct tcp_listener *listener;
	int fd;
};

struct tcp_listener {
	struct listener base;
	unsigned count;
	struct tcp_socket sockets[RESOLVE_MAX];
	unsigned port;
	bool one_by_one; /* the kernel has no multishot accept (before Linux 5.19) */
	struct __kernel_timespec rest_time;
	/* NULL: not bound */
	struct ring *ring;
	void (*accepted)(void *user, struct channel *channel, int error);
	void *user;
};

static void accept_arm(struct tcp_socket *socket)
{
	struct tcp_listener *listener = socket->listener;
	struct io_uring_sqe *sqe = ring_prepare(listener->ring, &socket->accept);

	if (listener->one_by_one)
		io_uring_prep_accept(sqe, socket->fd, NULL, NULL, SOCK_CLOEXEC);
	else
		io_uring_prep_multishot_accept(sqe, socket->fd, NULL, NULL, SOCK_CLOEXEC);
}

static void rest_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_socket *socket = container_of(operation, struct tcp_socket, rest);

	if (socket->listener->ring)
		accept_arm(socket);
}

static void accept_failed(struct tcp_socket *socket, int error)
{
	struct tcp_listener *listener = socket->listener;
	struct io_uring_sqe *sqe;

	switch (-error) {
	case EINVAL:
		if (listener->one_by_one)
			break;
		listener->one_by_one = true;
		accept_arm(socket);
		return;
	case EMFILE:
	case ENFILE:
	case ENOBUFS:
	case ENOMEM:
		if (socket->rest.in_flight)
			return;
		sqe = ring_prepare(listener->ring, &socket->rest);
		io_uring_prep_timeout(sqe, &listener->rest_time, 0, 0);
		return;
	case EBADF:
	case ENOTSOCK:
	case EOPNOTSUPP:
	case EFAULT:
	case EPERM:
		break;
	default:
		/* Of the connection that was to be accepted, not of the listener (accept(2)). */
		accept_arm(socket);
		return;
	}
	listener->accepted(listener->user, NULL, error);
}

static void accept_done(struct ring_operation *operation, int result, unsigned flags)
{
	struct tcp_socket *socket = container_of(operation, struct tcp_socket, accept);
	struct tcp_listener *listener = socket->listener;
	struct channel *channel;

	if (!listener->ring) {
		if (result >= 0)
			close(result);
		return;
	}
	if (result < 0) {
		if (!operation->in_flight)
			accept_failed(socket, result);
		return;
	}
	/* Before the callback, which may unbind or free the listener. */
	if (!operation->in_flight)
		accept_arm(socket);
	if (tcp_channel_create(&channel, result, false))
		close(result); /* gone again already, or out of memory */
	else
		listener->accepted(listener->user, channel, 0);
}

static struct tcp_listener *of(struct listener *base)
{
	return container_of(base, struct tcp_listener, base);
}

static int bind_listener(struct listener *base, struct ring *ring,
			 void (*accepted)(void *user, struct channel *channel, int error),
			 void *user)
{
	struct tcp_listener *listener = of(base);

	if (listener->ring)
		return -EBUSY;
	listener->ring = ring;
	listener->accepted = accepted;
	listener->user = user;
	for (unsigned i = 0; i < listener->count; i++)
		accept_arm(&listener->sockets[i]);
	return 0;
}

static void unbind_listener(struct listener *base)
{
	struct tcp_listener *listener = of(base);
	struct ring *ring = listener->ring;

	if (!ring)
		return;
	listener->ring = NULL;
	for (unsigned i = 0; i < listener->count; i++) {
		ring_cancel(ring, &listener->sockets[i].accept);
		ring_cancel(ring, &listener->sockets[i].rest);
	}
}

static void close_sockets(struct tcp_listener *listener)
{
	for (unsigned i = 0; i < listener->count; i++)
		close(listener->sockets[i].fd);
	listener->count = 0;
}

static void free_listener(struct listener *base)
{
	close_sockets(of(base));
	free(of(base));
}

static unsigned port_of_listener(const struct listener *base)
{
	return container_of(base, const struct tcp_listener, base)->port;
}

static const struct listener_ops listener_ops = {
	.port = port_of_listener,
	.bind = bind_listener,
	.unbind = unbind_listener,
	.free = free_listener,
};

/* --- Opening ------------------------------------------------------------------------- */

/* Returns a listening socket or -errno. */
static int listen_one(const struct sockaddr_storage *address, socklen_t bytes, bool only_v6)
{
	int on = 1, v6_only = only_v6;
	int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    (address->ss_family == AF_INET6 &&
	     setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof(v6_only))) ||
	    bind(fd, (const struct sockaddr *)address, bytes) || listen(fd, BACKLOG)) {
		int error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

static unsigned port_of_socket(int fd)
{
	struct sockaddr_storage address = {0};
	socklen_t bytes = sizeof(address);

	if (getsockname(fd, (struct sockaddr *)&address, &bytes))
		return 0;
	return ntohs(*resolve_port(&address));
}

/* Opens a socket for each address; 0, or the -errno that stands for all of them. */
static int open_sockets(struct tcp_listener *listener, struct resolved *resolved, unsigned port)
{
	bool has_v4 = false;
	int failed = 0;

	for (unsigned i = 0; i < resolved->count; i++)
		has_v4 |= resolved->entries[i].address.ss_family == AF_INET;
	listener->port = port;
	for (unsigned i = 0; i < resolved->count; i++) {
		struct sockaddr_storage *address = &resolved->entries[i].address;
		*resolve_port(address) = htons((uint16_t)listener->port);
		int fd = listen_one(address, resolved->entries[i].bytes, has_v4);
		if (fd >= 0) {
			struct tcp_socket *socket = &listener->sockets[listener->count++];
			socket->accept.done = accept_done;
			socket->rest.done = rest_done;
			socket->listener = listener;
			socket->fd = fd;
			listener->port = port_of_socket(fd);
		} else if (fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT) {
			failed = fd;
		} else {
			close_sockets(listener);
			return fd;
		}
	}
	return listener->count ? 0 : failed;
}

static int report(const struct address *address, int result, struct jaunt_error *error)
{
	char text[300];

	address_format(address, text, sizeof(text));
	switch (-result) {
	case EADDRINUSE:
		return error_set(
			error, EADDRINUSE, "port-in-use",
			"listen on %s: the port is in use; stop what listens there (ss -ltnp) "
			"or give another port",
			text);
	case EACCES:
		return error_set(error, EACCES, "listen",
				 "listen on %s: no permission for this port; give one above 1023",
				 text);
	case EADDRNOTAVAIL:
	case EAFNOSUPPORT:
		return error_set(error, -result, "listen",
				 "listen on %s: this host has no such address; give one of its own "
				 "(ip address)",
				 text);
	default:
		return error_set(error, -result, "listen", "listen on %s: %s", text,
				 strerror(-result));
	}
}

int tcp_listen(struct listener **out, const struct address *address, struct jaunt_error *error)
{
	struct resolved resolved;

	int result = resolve_address(&resolved, address, RESOLVE_TIMEOUT_MS, error);
	if (result)
		return result;
	struct tcp_listener *listener = calloc(1, sizeof(*listener));
	if (!listener)
		return error_set(error, ENOMEM, "listen", "out of memory");
	listener->base.ops = &listener_ops;
	listener->rest_time.tv_nsec = REST_NS;
	/* A port that the kernel picked for the first address may be taken on the second. */
	unsigned attempts = address->port ? 1 : PORT_ATTEMPTS;
	do {
		result = open_sockets(listener, &resolved, address->port);
	} while (result == -EADDRINUSE && --attempts);
	if (result) {
		free(listener);
		return report(address, result, error);
	}
	*out = &listener->base;
	return 0;
}
