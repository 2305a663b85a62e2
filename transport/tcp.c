/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP: making connections.
 *
 * Every address that the host resolves to is tried in turn, each with an equal share of the time
 * that is left, so that one that swallows packets (IPv6 without a route, say) does not use up all
 * of it. The error that is reported is that of the attempt that got furthest: a refusal tells the
 * user more than a missing route.
 */
#include "transport/tcp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "transport/resolve.h"

/* Waits for a connection attempt to end: 0 or -errno. */
static int finish_connecting(int fd, uint64_t deadline_ns)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
	socklen_t bytes = sizeof(int);
	int error;

	for (;;) {
		uint64_t now = clock_ns();
		uint64_t left_ms = now < deadline_ns ? (deadline_ns - now + 999999) / 1000000 : 0;
		int ready = poll(&poll_fd, 1, (int)left_ms);
		if (ready > 0)
			break;
		if (ready < 0 && errno != EINTR)
			return -errno;
		if (!ready && !left_ms)
			return -ETIMEDOUT;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes))
		return -errno;
	return -error;
}

/* A loopback connection to a port that nobody listens on can meet itself (simultaneous open) when
 * the kernel picks that very port for our end. */
static bool is_own_end(int fd)
{
	struct sockaddr_storage local = {0}, remote = {0};
	socklen_t local_bytes = sizeof(local), remote_bytes = sizeof(remote);

	return !getsockname(fd, (struct sockaddr *)&local, &local_bytes) &&
	       !getpeername(fd, (struct sockaddr *)&remote, &remote_bytes) &&
	       local_bytes == remote_bytes && !memcmp(&local, &remote, local_bytes);
}

/* Returns a connected, blocking socket or -errno. */
static int connect_one(const struct sockaddr_storage *address, socklen_t bytes,
		       uint64_t deadline_ns)
{
	int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	int result = 0;
	if (connect(fd, (const struct sockaddr *)address, bytes))
		result = errno == EINPROGRESS ? finish_connecting(fd, deadline_ns) : -errno;
	if (!result && is_own_end(fd))
		result = -ECONNREFUSED;
	/* io_uring fails with EAGAIN instead of waiting on a non-blocking socket. */
	if (!result && fcntl(fd, F_SETFL, 0))
		result = -errno;
	if (result) {
		close(fd);
		return result;
	}
	return fd;
}

static int report(const struct address *address, int result, uint32_t timeout_ms,
		  struct jaunt_error *error)
{
	char text[300];

	address_format(address, text, sizeof(text));
	switch (-result) {
	case ECONNREFUSED:
		return error_set(
			error, ECONNREFUSED, "connect-refused",
			"connect to %s: connection refused; start the receiver there first, "
			"and check the port",
			text);
	case ETIMEDOUT:
		return error_set(
			error, ETIMEDOUT, "connect-timeout",
			"connect to %s: no answer within %u ms; check the address, and that no "
			"firewall drops the port",
			text, timeout_ms);
	case ENETUNREACH:
	case EHOSTUNREACH:
	case EADDRNOTAVAIL:
	case EAFNOSUPPORT:
		return error_set(error, -result, "unreachable",
				 "connect to %s: %s; check the address and this host's routes",
				 text, strerror(-result));
	default:
		return error_set(error, -result, "connect", "connect to %s: %s", text,
				 strerror(-result));
	}
}

static int tcp_connect(struct channel **out, const struct address *address, uint32_t timeout_ms,
		       struct jaunt_error *error)
{
	uint64_t deadline = clock_ns() + (uint64_t)timeout_ms * 1000000;
	struct resolved resolved;

	if (!address->port)
		return error_set(error, EINVAL, "bad-address",
				 "cannot connect to port 0 of '%s'; give the port it listens on",
				 address->host);
	int result = resolve_address(&resolved, address, timeout_ms, error);
	if (result)
		return result;
	int best = 0;
	for (unsigned i = 0; i < resolved.count; i++) {
		uint64_t now = clock_ns();
		uint64_t left = now < deadline ? deadline - now : 0;
		int fd = connect_one(&resolved.entries[i].address, resolved.entries[i].bytes,
				     now + left / (resolved.count - i));
		if (fd < 0) {
			if (!best || resolve_rank(fd) > resolve_rank(best))
				best = fd;
			continue;
		}
		result = tcp_channel_create(out, fd, true);
		if (!result)
			return 0;
		close(fd);
		/* The peer may have closed it again already: then it is as good as refused. */
		best = result == -ENOTCONN ? -ECONNREFUSED : result;
		break;
	}
	return report(address, best, timeout_ms, error);
}

const struct transport tcp_transport = {
	.scheme = "tcp",
	.connect_ms = 5000, /* lost requests are repeated after 1 s and 3 s */
	.connect = tcp_connect,
	.listen = tcp_listen,
};
