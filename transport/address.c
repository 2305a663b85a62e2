/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as a person writes them: "tcp:HOST[:PORT]", IPv6 in brackets. */
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "transport/provider.h"
#include "transport/resolve.h"
#include "transport/transport.h"

static int parse_scheme(struct address *address, const char *text, const char **rest,
			struct jaunt_error *error)
{
	const char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	char known[64];

	if (!length)
		return error_set(error, EINVAL, "bad-address",
				 "'%s' names no transport; write tcp:HOST[:PORT]", text);
	if (length < sizeof(address->scheme)) {
		memcpy(address->scheme, text, length);
		address->scheme[length] = '\0';
	}
	if (length >= sizeof(address->scheme) || !transport_find(address->scheme)) {
		transport_schemes(known, sizeof(known));
#ifndef JAUNT_RDMA
		if (!strcmp(address->scheme, "rdma"))
			return error_set(error, EINVAL, "bad-address",
					 "'%s': this jaunt was built without RDMA (the headers of "
					 "libibverbs-dev and librdmacm-dev were not there); known: "
					 "%s",
					 text, known);
#endif
		return error_set(
			error, EINVAL, "bad-address",
			"unknown transport '%.*s' in '%s'; known: %s (write tcp:HOST[:PORT])",
			(int)length, text, text, known);
	}
	*rest = colon + 1;
	return 0;
}

static int parse_port(struct address *address, const char *digits, const char *text,
		      struct jaunt_error *error)
{
	unsigned port = 0;
	size_t length = strlen(digits);

	for (size_t i = 0; i < length; i++) {
		if (!isdigit((unsigned char)digits[i]) || length > 5)
			goto bad;
		port = port * 10 + (unsigned)(digits[i] - '0');
	}
	if (!length || port > UINT16_MAX)
		goto bad;
	address->port = (uint16_t)port;
	return 0;
bad:
	return error_set(error, EINVAL, "bad-address",
			 "'%s' is no port in '%s'; it is a number up to 65535", digits, text);
}

static int parse_host(struct address *address, const char *host, size_t length, const char *text,
		      struct jaunt_error *error)
{
	if (!length)
		return error_set(error, EINVAL, "bad-address",
				 "no host in '%s'; write tcp:HOST[:PORT]", text);
	if (length >= sizeof(address->host))
		return error_set(error, EINVAL, "bad-address", "the host in '%.80s…' is too long",
				 text);
	for (size_t i = 0; i < length; i++)
		if (!isgraph((unsigned char)host[i]) || strchr("/[]@", host[i]))
			return error_set(error, EINVAL, "bad-address",
					 "'%.*s' is no host in '%s'; write tcp:HOST[:PORT]",
					 (int)length, host, text);
	memcpy(address->host, host, length);
	address->host[length] = '\0';
	return 0;
}

/* Takes what is behind the first comma off `text`, which holds the rest then. */
static int parse_options(struct address *address, char *text, struct jaunt_error *error)
{
	const struct transport *transport = transport_find(address->scheme);
	char *comma = strchr(text, ',');

	if (!comma)
		return 0;
	*comma = '\0';
	if (!transport->check_options)
		return error_set(error, EINVAL, "bad-address",
				 "%s: addresses take no options: ',%s'", address->scheme,
				 comma + 1);
	size_t length = strlen(comma + 1);
	if (!length || length >= sizeof(address->options))
		return error_set(error, EINVAL, "bad-address", "the options behind '%s,' are %s",
				 text, length ? "too long" : "missing");
	memcpy(address->options, comma + 1, length + 1);
	return transport->check_options(address, error);
}

static int parse_place(struct address *address, const char *text, const char *host,
		       struct jaunt_error *error)
{
	const char *end, *port = NULL;

	if (*host == '[') {
		host++;
		end = strchr(host, ']');
		if (!end || (end[1] && end[1] != ':') || !memchr(host, ':', (size_t)(end - host)))
			return error_set(error, EINVAL, "bad-address",
					 "brackets in '%s' do not hold an IPv6 address; write "
					 "%s:[ADDRESS]:PORT",
					 text, address->scheme);
		if (end[1])
			port = end + 2;
	} else {
		end = strchr(host, ':');
		if (end && strchr(end + 1, ':'))
			return error_set(
				error, EINVAL, "bad-address",
				"'%s' has too many colons; put an IPv6 address in brackets: "
				"%s:[ADDRESS]:PORT",
				text, address->scheme);
		if (end)
			port = end + 1;
		else
			end = host + strlen(host);
	}
	int result = parse_host(address, host, (size_t)(end - host), text, error);
	if (!result && port)
		result = parse_port(address, port, text, error);
	return result;
}

int address_parse(struct address *address, const char *text, struct jaunt_error *error)
{
	const char *host = text;

	memset(address, 0, sizeof(*address));
	address->port = JAUNT_DEFAULT_PORT;
	int result = parse_scheme(address, text, &host, error);
	if (result)
		return result;
	char *place = strdup(host);
	if (!place)
		return error_set(error, ENOMEM, "bad-address", "out of memory");
	result = parse_options(address, place, error);
	if (!result)
		result = parse_place(address, text, place, error);
	free(place);
	return result;
}

void address_format(const struct address *address, char *text, size_t room)
{
	snprintf(text, room, strchr(address->host, ':') ? "%s:[%s]:%u" : "%s:%s:%u",
		 address->scheme, address->host, address->port);
}

static bool is_loopback(const struct sockaddr_storage *address)
{
	if (address->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)address;
		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	}
	const struct in6_addr *in6 =
		&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
	if (IN6_IS_ADDR_V4MAPPED(in6))
		return in6->s6_addr[12] == 127;
	return IN6_IS_ADDR_LOOPBACK(in6);
}

int address_resolve(struct address *address, struct jaunt_error *error)
{
	struct resolved resolved;

	int result = resolve_address(&resolved, address, RESOLVE_TIMEOUT_MS, error);
	if (result == 0)
		address->resolved = resolved;
	return result;
}

bool address_is_loopback(const struct address *address)
{
	const struct transport *transport = transport_find(address->scheme);

	if (transport && transport->never_loopback)
		return false;
	for (unsigned i = 0; i < address->resolved.count; i++)
		if (!is_loopback(&address->resolved.entries[i].address))
			return false;
	return address->resolved.count > 0;
}
