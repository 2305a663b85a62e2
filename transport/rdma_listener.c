/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA: listening and accepting.
 *
 * One id of the connection manager for each address that the host resolves to, all on one port and
 * one event channel. "0.0.0.0" and "[::]" listen on every device. A request is accepted at once:
 * its queue pair is made, which takes some milliseconds of the ring's thread, and the channel is
 * handed to the owner before the peer has confirmed; should it never do so, the channel closes as
 * any other whose peer goes. One that brings no greeting of a channel, or a token that the owner
 * does not want, is refused before anything is made for it.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "transport/rdma.h"
#include "transport/resolve.h"
#include "transport/ring.h"

#define BACKLOG       128
#define PORT_ATTEMPTS 16 /* to find a port that is free in all address families */

struct rdma_listener {
	struct listener base;
	const struct rdma_library *library;
	struct rdma_options options;
	struct rdma_event_channel *events;
	unsigned count;
	struct rdma_cm_id *ids[RESOLVE_MAX];
	unsigned port;
	/* NULL: not bound */
	struct ring *ring;
	void (*accepted)(void *user, struct channel *channel, int error);
	void *user;
	struct ring_watch watch;
	bool calling, freed; /* in a callback; it was freed there, which happens behind it */
};

static struct rdma_listener *of(struct listener *base)
{
	return container_of(base, struct rdma_listener, base);
}

static void close_ids(struct rdma_listener *listener)
{
	while (listener->count)
		listener->library->cm.destroy_id(listener->ids[--listener->count]);
}

static void destroy(struct rdma_listener *listener)
{
	close_ids(listener);
	listener->library->cm.destroy_event_channel(listener->events);
	free(listener);
}

/* --- Accepting ----------------------------------------------------------------------- */

/* A request, once its event is acknowledged. */
struct request {
	struct rdma_cm_id *id;
	int result; /* of decoding its greeting */
	struct rdma_greeting peer;
	uint8_t reads_asked, reads_offered; /* to be served here, and by the peer */
};

static uint8_t least(uint8_t a, uint8_t b)
{
	return a < b ? a : b;
}

/* `why`: so many bytes that the other end is told, or NULL. */
static void refuse(struct rdma_listener *listener, struct rdma_cm_id *id, const uint8_t *why,
		   uint8_t bytes)
{
	listener->library->cm.reject(id, why, bytes);
	listener->library->cm.destroy_id(id);
}

/* By its token. */
static bool is_admitted(const struct rdma_listener *listener, const struct request *request)
{
	return !listener->base.admit ||
	       listener->base.admit(listener->base.admit_user, request->peer.token);
}

/* The channel, or NULL: one cannot be made, and the request was refused. */
static struct channel *accept_request(struct rdma_listener *listener, struct request *request)
{
	const struct rdma_library *library = listener->library;
	struct rdma_channel *channel;
	struct rdma_greeting own;
	uint8_t bytes[RDMA_GREETING_BYTES];

	struct rdma_event_channel *events = rdma_events_create(library);
	if (!events || library->cm.migrate_id(request->id, events) ||
	    rdma_channel_create(&channel, request->id, events, &listener->options,
				RDMA_GROUP_ACCEPTED, &own, NULL))
		goto out;
	rdma_greeting_encode(&own, bytes);
	struct rdma_conn_param parameters = {
		.private_data = bytes,
		.private_data_len = sizeof(bytes),
		.responder_resources = least(own.reads_served, request->reads_asked),
		.initiator_depth = least(own.reads_started, request->reads_offered),
		.rnr_retry_count = 6,
	};
	if (library->cm.accept(request->id, &parameters)) {
		rdma_channel_discard(channel);
		goto out;
	}
	rdma_channel_connected(channel, &request->peer);
	return rdma_channel_base(channel);
out:
	refuse(listener, request->id, NULL, 0);
	if (events)
		library->cm.destroy_event_channel(events);
	return NULL;
}

static void take_request(struct rdma_listener *listener, struct request *request)
{
	uint8_t refusal[RDMA_REFUSAL_BYTES];

	if (request->result) {
		refuse(listener, request->id, NULL, 0);
		return;
	}
	if (!is_admitted(listener, request)) {
		rdma_refusal_encode(refusal);
		refuse(listener, request->id, refusal, sizeof(refusal));
		return;
	}
	struct channel *channel = accept_request(listener, request);
	if (channel)
		listener->accepted(listener->user, channel, 0);
}

/* Takes one event; false: there was none, or the listener is gone or unbound. */
static bool take_event(struct rdma_listener *listener)
{
	struct rdma_cm_event *event;
	struct request request = {0};

	if (listener->library->cm.get_cm_event(listener->events, &event)) {
		if (errno == EAGAIN || errno == EINTR)
			return false;
		listener->accepted(listener->user, NULL, -errno);
		return false;
	}
	enum rdma_cm_event_type type = event->event;
	if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
		const struct rdma_conn_param *asked = &event->param.conn;
		request.id = event->id;
		request.result = rdma_greeting_decode(&request.peer, asked->private_data,
						      asked->private_data_len);
		request.reads_asked = asked->responder_resources;
		request.reads_offered = asked->initiator_depth;
	}
	listener->library->cm.ack_cm_event(event);
	if (request.id)
		take_request(listener, &request);
	else if (type == RDMA_CM_EVENT_DEVICE_REMOVAL)
		listener->accepted(listener->user, NULL, -ENODEV);
	return listener->ring;
}

static void events_ready(void *user, int mask)
{
	struct rdma_listener *listener = user;

	listener->calling = true;
	if (mask < 0)
		listener->accepted(listener->user, NULL, mask);
	else
		while (take_event(listener))
			;
	listener->calling = false;
	if (listener->freed)
		destroy(listener);
}

static int bind_listener(struct listener *base, struct ring *ring,
			 void (*accepted)(void *user, struct channel *channel, int error),
			 void *user)
{
	struct rdma_listener *listener = of(base);

	if (listener->ring)
		return -EBUSY;
	listener->watch = (struct ring_watch){
		.ready = events_ready, .user = listener, .fd = listener->events->fd};
	int result = ring_watch_add(ring, &listener->watch);
	if (result)
		return result;
	listener->ring = ring;
	listener->accepted = accepted;
	listener->user = user;
	return 0;
}

static void unbind_listener(struct listener *base)
{
	struct rdma_listener *listener = of(base);

	if (!listener->ring)
		return;
	ring_watch_remove(&listener->watch);
	listener->ring = NULL;
}

static void free_listener(struct listener *base)
{
	struct rdma_listener *listener = of(base);

	if (listener->calling)
		listener->freed = true;
	else
		destroy(listener);
}

static unsigned port_of_listener(const struct listener *base)
{
	return container_of(base, const struct rdma_listener, base)->port;
}

static const struct listener_ops listener_ops = {
	.port = port_of_listener,
	.bind = bind_listener,
	.unbind = unbind_listener,
	.free = free_listener,
};

/* --- Opening ------------------------------------------------------------------------- */

static int listen_one(struct rdma_listener *listener, struct sockaddr_storage *address,
		      bool only_v6)
{
	const struct rdma_library *library = listener->library;
	struct rdma_cm_id *id;
	int on = 1;

	if (library->cm.create_id(listener->events, &id, NULL, RDMA_PS_TCP))
		return -errno;
	if ((only_v6 && address->ss_family == AF_INET6 &&
	     library->cm.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &on, sizeof(on))) ||
	    library->cm.bind_addr(id, (struct sockaddr *)address) ||
	    library->cm.listen(id, BACKLOG)) {
		int error = -errno;
		library->cm.destroy_id(id);
		return error;
	}
	listener->ids[listener->count++] = id;
	listener->port = ntohs(library->cm.get_src_port(id));
	return 0;
}

/* 0, or the -errno that stands for all addresses. */
static int open_ids(struct rdma_listener *listener, struct resolved *resolved, unsigned port)
{
	bool has_v4 = false;
	int failed = 0;

	for (unsigned i = 0; i < resolved->count; i++)
		has_v4 |= resolved->entries[i].address.ss_family == AF_INET;
	listener->port = port;
	for (unsigned i = 0; i < resolved->count; i++) {
		struct sockaddr_storage *address = &resolved->entries[i].address;
		*resolve_port(address) = htons((uint16_t)listener->port);
		int result = listen_one(listener, address, has_v4);
		if (result == -EADDRNOTAVAIL || result == -EAFNOSUPPORT || result == -ENODEV) {
			failed = result;
		} else if (result) {
			close_ids(listener);
			return result;
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
		return error_set(error, EADDRINUSE, "port-in-use",
				 "listen on %s: the port is in use; stop what listens there "
				 "(rdma resource show cm_id) or give another port",
				 text);
	case ENODEV:
		return error_set(error, ENODEV, "no-rdma",
				 "listen on %s: no RDMA device of this host has that address; "
				 "give one of a device's network (see `jaunt doctor'), or use "
				 "tcp:",
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

int rdma_transport_listen(struct listener **out, const struct address *address,
			  struct jaunt_error *error)
{
	const struct rdma_library *library = rdma_library(error);
	struct resolved resolved;
	struct rdma_options options;

	if (!library)
		return -ENOSYS;
	int result = rdma_options_parse(&options, address, error);
	if (!result)
		result = resolve_address(&resolved, address, RESOLVE_TIMEOUT_MS, error);
	if (result)
		return result;
	struct rdma_listener *listener = calloc(1, sizeof(*listener));
	if (!listener)
		return error_set(error, ENOMEM, "listen", "out of memory");
	listener->base.ops = &listener_ops;
	listener->library = library;
	listener->options = options;
	listener->events = rdma_events_create(library);
	result = listener->events ? 0 : -errno;
	unsigned attempts = address->port ? 1 : PORT_ATTEMPTS;
	if (!result) {
		/* A port that was picked for the first address may be taken on the second. */
		do {
			result = open_ids(listener, &resolved, address->port);
		} while (result == -EADDRINUSE && --attempts);
	}
	if (result) {
		if (listener->events)
			library->cm.destroy_event_channel(listener->events);
		free(listener);
		return report(address, result, error);
	}
	*out = &listener->base;
	return 0;
}
