/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/peer.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/quantity.h"

static int bad(struct jaunt_error *error, const char *text, const char *why)
{
	return error_set(error, EINVAL, "bad-address",
			 "\"%s\" is not an address: %s; write it like tcp:10.0.0.2, "
			 "tcp:host.example:7420, tcp:[fe80::1]:7420 or rdma:10.0.0.2",
			 text, why);
}

int peer_parse(struct peer *peer, const char *text, struct jaunt_error *error)
{
	const char *host, *end, *port;
	uint64_t number = JAUNT_DEFAULT_PORT;

	snprintf(peer->scheme, sizeof(peer->scheme), strncmp(text, "rdma:", 5) ? "tcp" : "rdma");
	if (strncmp(text, "tcp:", 4) != 0 && strncmp(text, "rdma:", 5) != 0)
		return bad(error, text, "it does not begin with tcp: or rdma:");
	/* The options of a transport are its own affair. */
	const char *comma = strchrnul(text, ',');
	char place[sizeof(peer->host) + 64];
	if ((size_t)(comma - text) >= sizeof(place) || strlen(comma) >= sizeof(peer->options))
		return bad(error, text, "it is too long");
	snprintf(place, sizeof(place), "%.*s", (int)(comma - text), text);
	snprintf(peer->options, sizeof(peer->options), "%s", comma);
	host = strchr(place, ':') + 1;
	peer->bracketed = *host == '[';
	if (peer->bracketed) {
		end = strchr(++host, ']');
		if (!end)
			return bad(error, text, "a bracket is not closed");
		port = end + 1;
	} else {
		end = strchrnul(host, ':');
		port = end;
		if (*end && strchr(end + 1, ':'))
			return bad(error, text, "an IPv6 address stands in brackets");
	}
	size_t length = (size_t)(end - host);
	if (!length)
		return bad(error, text, "it names no host");
	if (length >= sizeof(peer->host))
		return bad(error, text, "the name of the host is too long");
	if (*port && *port != ':')
		return bad(error, text, "something odd follows the bracket");
	if (*port && quantity_count("port", port + 1, 0, 65535, &number, NULL))
		return bad(error, text, "a port is a number up to 65535");
	memcpy(peer->host, host, length);
	peer->host[length] = '\0';
	peer->port = (unsigned)number;
	return 0;
}

void peer_format(const struct peer *peer, unsigned port, char *text, size_t room)
{
	snprintf(text, room, peer->bracketed ? "%s:[%s]:%u" : "%s:%s:%u", peer->scheme, peer->host,
		 port);
}

static int try_address(const struct addrinfo *address, unsigned timeout_ms)
{
	int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int code = 0;

	if (fd < 0)
		return errno;
	if (connect(fd, address->ai_addr, address->ai_addrlen)) {
		struct pollfd polled = {.fd = fd, .events = POLLOUT};
		socklen_t length = sizeof(code);
		code = errno;
		if (code == EINPROGRESS) {
			int ready = poll(&polled, 1, (int)timeout_ms);
			if (ready == 0)
				code = ETIMEDOUT;
			else if (ready < 0 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &length))
				code = errno;
		}
	}
	close(fd);
	return code;
}

int peer_probe(const struct peer *peer, unsigned timeout_ms, char *found, size_t room,
	       struct jaunt_error *error)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	struct addrinfo *list = NULL;
	char port[16], numeric[NI_MAXHOST];
	int code = 0;

	if (strcmp(peer->scheme, "tcp") != 0)
		return error_set(error, ENOTSUP, "not-probed",
				 "whether %s takes RDMA connections is not asked here; `jaunt "
				 "migrate NAME PEER --dry-run' does",
				 peer->host);
	snprintf(port, sizeof(port), "%u", peer->port);
	int unresolved = getaddrinfo(peer->host, port, &hints, &list);
	if (unresolved == EAI_ADDRFAMILY || unresolved == EAI_NONAME) {
		/* AI_ADDRCONFIG hides loopback of a family that has no other address. */
		const struct addrinfo any = {.ai_socktype = SOCK_STREAM};
		unresolved = getaddrinfo(peer->host, port, &any, &list);
	}
	if (unresolved)
		return error_set(error, ENOENT, "resolve",
				 "the name %s does not resolve: %s; check its spelling, or write "
				 "the address itself",
				 peer->host, gai_strerror(unresolved));
	for (const struct addrinfo *at = list; at; at = at->ai_next) {
		code = try_address(at, timeout_ms);
		if (code)
			continue;
		if (getnameinfo(at->ai_addr, at->ai_addrlen, numeric, sizeof(numeric), NULL, 0,
				NI_NUMERICHOST))
			snprintf(numeric, sizeof(numeric), "%s", peer->host);
		snprintf(found, room, "%s port %u takes connections", numeric, peer->port);
		break;
	}
	freeaddrinfo(list);
	if (!code)
		return 0;
	return error_set(error, code,
			 code == ECONNREFUSED ? "connect-refused"
			 : code == ETIMEDOUT  ? "connect-timeout"
					      : "unreachable",
			 "cannot connect to %s port %u: %s; is `jaunt receive` waiting there, and "
			 "does a firewall let it through?",
			 peer->host, peer->port, strerror(code));
}
