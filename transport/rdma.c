/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA: making connections.
 *
 * The connection manager finds the device, the port and the GID by the address, as routing does for
 * TCP, resolves the path, and carries a greeting each way. Its steps are asynchronous: each is
 * waited for by its event, within the time that is left. As with TCP every address of the host is
 * tried in turn, and the error reported is that of the attempt that got furthest.
 */
#include "transport/rdma.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "transport/resolve.h"

#define STEP_LEAST_MS 1

/* Reasons of a rejection by the peer's connection manager (InfiniBand, volume 1, 12.6.7.2). */
#define REJECT_NO_SUCH_SERVICE 8
#define REJECT_BY_PEER         28

int rdma_unblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
		return -1;
	return fcntl(fd, F_SETFD, FD_CLOEXEC);
}

struct rdma_event_channel *rdma_events_create(const struct rdma_library *library)
{
	struct rdma_event_channel *events = library->cm.create_event_channel();

	if (!events)
		return NULL;
	if (rdma_unblock(events->fd)) {
		int code = errno;
		library->cm.destroy_event_channel(events);
		errno = code;
		return NULL;
	}
	return events;
}

static int left_ms(uint64_t deadline_ns)
{
	uint64_t now = clock_ns();

	return now < deadline_ns ? (int)((deadline_ns - now) / 1000000) + STEP_LEAST_MS
				 : STEP_LEAST_MS;
}

/* What an event that was not the expected one means; never 0. */
static int errno_of(const struct rdma_cm_event *event)
{
	int status = event->status;

	switch (event->event) {
	case RDMA_CM_EVENT_REJECTED:
		if (rdma_is_refusal(event->param.conn.private_data,
				    event->param.conn.private_data_len))
			return -EBUSY;
		return status == REJECT_NO_SUCH_SERVICE || status == REJECT_BY_PEER ? -ECONNREFUSED
										    : -ECONNRESET;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		return -ENODEV;
	case RDMA_CM_EVENT_UNREACHABLE:
		return -ETIMEDOUT;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
		return status < 0 ? status : -EHOSTUNREACH;
	default:
		return status < 0 ? status : -EIO;
	}
}

/* Waits for the event that ends a step; ESTABLISHED brings the peer's greeting. 0 or -errno. */
static int wait_for(const struct rdma_library *library, struct rdma_event_channel *events,
		    enum rdma_cm_event_type expected, uint64_t deadline_ns,
		    struct rdma_greeting *greeting)
{
	struct pollfd ready = {.fd = events->fd, .events = POLLIN};
	struct rdma_cm_event *event;

	while (library->cm.get_cm_event(events, &event)) {
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		if (clock_ns() >= deadline_ns)
			return -ETIMEDOUT;
		if (poll(&ready, 1, left_ms(deadline_ns)) < 0 && errno != EINTR)
			return -errno;
	}
	int result = event->event == expected ? 0 : errno_of(event);
	if (!result && greeting)
		result = rdma_greeting_decode(greeting, event->param.conn.private_data,
					      event->param.conn.private_data_len);
	library->cm.ack_cm_event(event);
	return result;
}

static int set_options(const struct rdma_library *library, struct rdma_cm_id *id,
		       const struct rdma_options *options)
{
	uint8_t traffic_class = (uint8_t)options->traffic_class;
	uint8_t ack_timeout = (uint8_t)options->ack_timeout;

	if (options->traffic_class >= 0 &&
	    library->cm.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &traffic_class,
				   sizeof(traffic_class)))
		return -errno;
	if (options->ack_timeout >= 0 &&
	    library->cm.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &ack_timeout,
				   sizeof(ack_timeout)))
		return -errno;
	return 0;
}

struct attempt {
	const struct rdma_library *library;
	const struct rdma_options *options;
	struct rdma_event_channel *events;
	struct rdma_cm_id *id;
	uint64_t group;
	const uint8_t *token;
	uint64_t deadline_ns;
	struct jaunt_error error; /* code 0: the result says it all */
};

/* From an address to a device, a port and a path. */
static int resolve_path(struct attempt *at, const struct sockaddr_storage *address)
{
	const struct rdma_library *library = at->library;

	if (library->cm.create_id(at->events, &at->id, NULL, RDMA_PS_TCP))
		return -errno;
	int result = set_options(library, at->id, at->options);
	if (result)
		return result;
	if (library->cm.resolve_addr(at->id, NULL, (struct sockaddr *)(uintptr_t)address,
				     left_ms(at->deadline_ns)))
		return -errno;
	result = wait_for(library, at->events, RDMA_CM_EVENT_ADDR_RESOLVED, at->deadline_ns, NULL);
	if (result)
		return result;
	if (library->cm.resolve_route(at->id, left_ms(at->deadline_ns)))
		return -errno;
	return wait_for(library, at->events, RDMA_CM_EVENT_ROUTE_RESOLVED, at->deadline_ns, NULL);
}

static int connect_one(struct rdma_channel **out, struct attempt *at,
		       const struct sockaddr_storage *address)
{
	struct rdma_greeting own, peer;
	uint8_t bytes[RDMA_GREETING_BYTES];

	int result = resolve_path(at, address);
	if (result)
		return result;
	result = rdma_channel_create(out, at->id, at->events, at->options, at->group, &own,
				     &at->error);
	if (result)
		return result;
	memcpy(own.token, at->token, sizeof(own.token));
	rdma_greeting_encode(&own, bytes);
	struct rdma_conn_param parameters = {
		.private_data = bytes,
		.private_data_len = sizeof(bytes),
		.responder_resources = own.reads_served,
		.initiator_depth = own.reads_started,
		.retry_count = (uint8_t)at->options->retries,
		/* Of SENDs none is needed: see Credit in rdma_receive.c. A READ of a page that the
		 * device has yet to ask for is repeated until it is there, or the channel counts as
		 * silent. */
		.rnr_retry_count = channel_on_demand(rdma_channel_base(*out)) ? 7 : 6,
	};
	if (at->library->cm.connect(at->id, &parameters))
		result = -errno;
	else
		result = wait_for(at->library, at->events, RDMA_CM_EVENT_ESTABLISHED,
				  at->deadline_ns, &peer);
	if (result) {
		rdma_channel_discard(*out);
		return result;
	}
	rdma_channel_connected(*out, &peer);
	return 0;
}

/* One address; 0 or -errno. */
static int try_one(struct channel **out, struct attempt *at, const struct sockaddr_storage *address)
{
	struct rdma_channel *channel;

	at->id = NULL;
	at->error.code = 0;
	at->events = rdma_events_create(at->library);
	if (!at->events)
		return -errno;
	int result = connect_one(&channel, at, address);
	if (!result) {
		*out = rdma_channel_base(channel);
		return 0;
	}
	if (at->id)
		at->library->cm.destroy_id(at->id);
	at->library->cm.destroy_event_channel(at->events);
	return result;
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
			"connect to %s: connection refused; start the receiver there first, with "
			"an rdma: address, and check the port",
			text);
	case ETIMEDOUT:
		return error_set(error, ETIMEDOUT, "connect-timeout",
				 "connect to %s: no answer within %u ms; check the address, and "
				 "that the host there has an RDMA device on that network",
				 text, timeout_ms);
	case ENODEV:
		return error_set(error, ENODEV, "no-rdma",
				 "connect to %s: no RDMA device of this host leads there; see "
				 "`jaunt doctor', or use tcp:",
				 text);
	case ENETUNREACH:
	case EHOSTUNREACH:
	case EADDRNOTAVAIL:
	case EAFNOSUPPORT:
		return error_set(error, -result, "unreachable",
				 "connect to %s: %s; check the address and this host's routes, "
				 "and that the network there is one of an RDMA device",
				 text, strerror(-result));
	case EBUSY:
		return error_set(
			error, EBUSY, "turned-away",
			"connect to %s: turned away: it is taking another VM, or a session "
			"that this is no part of; wait for its end, or use another receiver",
			text);
	case EPROTO:
		return error_set(error, EPROTO, "connect",
				 "connect to %s: what answers there is no jaunt, or speaks "
				 "another version of its RDMA channels",
				 text);
	default:
		return error_set(error, -result, "connect", "connect to %s: %s", text,
				 strerror(-result));
	}
}

static int rdma_connect_channel(struct channel **out, const struct address *address,
				uint32_t timeout_ms, struct jaunt_error *error)
{
	uint64_t deadline = clock_ns() + (uint64_t)timeout_ms * 1000000;
	struct rdma_options options;
	struct resolved resolved;
	const struct rdma_library *library = rdma_library(error);
	struct attempt at = {.library = library,
			     .options = &options,
			     .group = address->group,
			     .token = address->token};

	if (!library)
		return -ENOSYS;
	int result = rdma_options_parse(&options, address, error);
	if (result)
		return result;
	if (!address->port)
		return error_set(error, EINVAL, "bad-address",
				 "cannot connect to port 0 of '%s'; give the port it listens on",
				 address->host);
	result = resolve_address(&resolved, address, timeout_ms, error);
	if (result)
		return result;
	int best = 0;
	for (unsigned i = 0; i < resolved.count; i++) {
		uint64_t now = clock_ns();
		uint64_t left = now < deadline ? deadline - now : 0;
		at.deadline_ns = now + left / (resolved.count - i);
		result = try_one(out, &at, &resolved.entries[i].address);
		if (!result)
			return 0;
		if (at.error.code) {
			/* Of this host; the next address would meet it, too. */
			if (error)
				*error = at.error;
			return result;
		}
		if (!best || resolve_rank(result) > resolve_rank(best))
			best = result;
	}
	return report(address, best, timeout_ms, error);
}

static int check_address(const struct address *address, struct jaunt_error *error)
{
	struct rdma_options options;

	return rdma_options_parse(&options, address, error);
}

const struct transport rdma_transport = {
	.scheme = "rdma",
	/* The kernel's RDMA-CM repeats one after 4.3 s: 4.096 us times 2 to the power of
	 * CMA_CM_RESPONSE_TIMEOUT, 20. */
	.connect_ms = 10000,
	.connect = rdma_connect_channel,
	.listen = rdma_transport_listen,
	.check_options = check_address,
	.never_loopback = true,
};
