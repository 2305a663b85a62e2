/* SPDX-License-Identifier: Apache-2.0 */
/* The table of transports, and the way from a call to the provider behind it. */
#include "transport/transport.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "transport/provider.h"

static const struct transport *const transports[] = {
	&tcp_transport,
#ifdef JAUNT_RDMA
	&rdma_transport,
#endif
};

#define TRANSPORT_COUNT (sizeof(transports) / sizeof(transports[0]))

const struct transport *transport_find(const char *scheme)
{
	for (size_t i = 0; i < TRANSPORT_COUNT; i++)
		if (!strcmp(transports[i]->scheme, scheme))
			return transports[i];
	return NULL;
}

void transport_schemes(char *text, size_t room)
{
	size_t used = 0;

	text[0] = '\0';
	for (size_t i = 0; i < TRANSPORT_COUNT && used < room; i++)
		used += (size_t)snprintf(text + used, room - used, "%s%s", i ? ", " : "",
					 transports[i]->scheme);
}

/* An address that was not made by address_parse() may name anything. */
static const struct transport *find(const struct address *address, struct jaunt_error *error)
{
	const struct transport *transport = transport_find(address->scheme);
	if (!transport) {
		char known[64];
		transport_schemes(known, sizeof(known));
		error_set(error, EINVAL, "bad-address", "unknown transport '%s'; known: %s",
			  address->scheme, known);
	}
	return transport;
}

int transport_connect(struct channel **out, const struct address *address, uint32_t timeout_ms,
		      struct jaunt_error *error)
{
	const struct transport *transport = find(address, error);
	return transport ? transport->connect(out, address, timeout_ms, error) : -EINVAL;
}

uint32_t transport_connect_ms(const struct address *address)
{
	const struct transport *transport = transport_find(address->scheme);
	return transport ? transport->connect_ms : 0;
}

int transport_listen(struct listener **out, const struct address *address,
		     struct jaunt_error *error)
{
	const struct transport *transport = find(address, error);
	return transport ? transport->listen(out, address, error) : -EINVAL;
}

unsigned listener_port(const struct listener *listener)
{
	return listener->ops->port(listener);
}

void listener_admit(struct listener *listener,
		    bool (*admit)(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]), void *user)
{
	listener->admit = admit;
	listener->admit_user = user;
}

int listener_bind(struct listener *listener, struct ring *ring,
		  void (*accepted)(void *user, struct channel *channel, int error), void *user)
{
	return listener->ops->bind(listener, ring, accepted, user);
}

void listener_unbind(struct listener *listener)
{
	listener->ops->unbind(listener);
}

void listener_free(struct listener *listener)
{
	if (!listener)
		return;
	listener->ops->unbind(listener);
	listener->ops->free(listener);
}

int channel_bind(struct channel *channel, struct ring *ring, const struct channel_events *events,
		 void *user, size_t receive_bytes)
{
	return channel->ops->bind(channel, ring, events, user, receive_bytes);
}

void channel_unbind(struct channel *channel)
{
	channel->ops->unbind(channel);
}

int channel_send(struct channel *channel, const void *head, size_t head_bytes, const void *payload,
		 size_t payload_bytes, uint64_t cookie)
{
	return channel->ops->send(channel, head, head_bytes, payload, payload_bytes, cookie);
}

size_t channel_room(const struct channel *channel)
{
	return channel->ops->room(channel);
}

void channel_want(struct channel *channel, size_t bytes)
{
	channel->ops->want(channel, bytes);
}

void channel_pause(struct channel *channel, bool paused)
{
	channel->ops->pause(channel, paused);
}

void channel_shutdown(struct channel *channel)
{
	channel->ops->shutdown(channel);
}

void channel_free(struct channel *channel)
{
	if (!channel)
		return;
	channel->ops->unbind(channel);
	channel->ops->free(channel);
}

void channel_drop(struct channel *channel)
{
	if (channel && channel->ops->drop)
		channel->ops->drop(channel);
	channel_free(channel);
}

int channel_pace(struct channel *channel, uint64_t bytes_per_s)
{
	return channel->ops->pace(channel, bytes_per_s);
}

int channel_timeout(struct channel *channel, uint32_t timeout_ms)
{
	return channel->ops->timeout(channel, timeout_ms);
}

struct channel_totals channel_totals(const struct channel *channel)
{
	return channel->ops->totals(channel);
}

const char *channel_name(const struct channel *channel)
{
	return channel->ops->name(channel);
}

const char *channel_device(const struct channel *channel)
{
	return channel->ops->device ? channel->ops->device(channel) : "";
}

const char *channel_failure(const struct channel *channel)
{
	return channel->ops->failure ? channel->ops->failure(channel) : "";
}

bool channel_can_read(const struct channel *channel)
{
	return channel->ops->read;
}

static int cannot_read(const struct channel *channel, struct jaunt_error *error)
{
	return error_set(error, ENOTSUP, "expose",
			 "%s has no one-sided reads; use rdma:", channel_name(channel));
}

int transport_expose(struct exposure *out, const struct channel *channel, void *memory,
		     size_t bytes, bool on_demand, struct jaunt_error *error)
{
	*out = (struct exposure){0};
	if (!channel_can_read(channel))
		return cannot_read(channel, error);
	return channel->ops->expose(out, channel, memory, bytes, on_demand, error);
}

enum on_demand channel_on_demand(const struct channel *channel)
{
	return channel->ops->on_demand ? channel->ops->on_demand(channel) : ON_DEMAND_NO;
}

void transport_unexpose(struct exposure *exposure)
{
	if (exposure->private)
		exposure->private->withdraw(exposure);
	*exposure = (struct exposure){0};
}

int channel_landing(struct landing *out, struct channel *channel, size_t bytes,
		    struct jaunt_error *error)
{
	return channel_landing_at(out, channel, NULL, bytes, error);
}

int channel_landing_at(struct landing *out, struct channel *channel, void *memory, size_t bytes,
		       struct jaunt_error *error)
{
	*out = (struct landing){0};
	if (!channel_can_read(channel))
		return cannot_read(channel, error);
	return channel->ops->land(out, channel, memory, bytes, error);
}

void landing_free(struct landing *landing)
{
	if (landing->private)
		landing->private->free(landing);
	*landing = (struct landing){0};
}

int channel_read(struct channel *channel, struct landing *landing, size_t offset, uint64_t address,
		 uint32_t key, size_t bytes, uint64_t cookie)
{
	if (!channel_can_read(channel))
		return -ENOTSUP;
	return channel->ops->read(channel, landing, offset, address, key, bytes, cookie);
}

size_t channel_read_room(const struct channel *channel)
{
	return channel_can_read(channel) ? channel->ops->read_room(channel) : 0;
}
