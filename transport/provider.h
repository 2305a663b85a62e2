/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a transport implements: the other side of transport.h, for the files of this folder only.
 *
 * A provider embeds struct channel and struct listener as members of its own objects and fills in
 * their `ops`; transport.c looks the provider up by the scheme of an address and forwards. Each
 * operation has the contract of the function of the same name in transport.h.
 */
#ifndef TRANSPORT_PROVIDER_H
#define TRANSPORT_PROVIDER_H

#include <stddef.h>

#include "transport/transport.h"

struct channel_ops {
	int (*bind)(struct channel *channel, struct ring *ring, const struct channel_events *events,
		    void *user, size_t receive_bytes);
	void (*unbind)(struct channel *channel);
	int (*send)(struct channel *channel, const void *head, size_t head_bytes,
		    const void *payload, size_t payload_bytes, uint64_t cookie);
	size_t (*room)(const struct channel *channel);
	void (*want)(struct channel *channel, size_t bytes);
	void (*pause)(struct channel *channel, bool paused);
	void (*shutdown)(struct channel *channel);
	void (*free)(struct channel *channel); /* is unbound already */
	/* Before `unbind` and `free`, which then take no regard of the peer. NULL: they never do.
	 */
	void (*drop)(struct channel *channel);
	int (*pace)(struct channel *channel, uint64_t bytes_per_s);
	int (*timeout)(struct channel *channel, uint32_t timeout_ms);
	struct channel_totals (*totals)(const struct channel *channel);
	const char *(*name)(const struct channel *channel);
	const char *(*device)(const struct channel *channel);  /* NULL: always "" */
	const char *(*failure)(const struct channel *channel); /* NULL: always "" */
	/* All four, or NULL: it cannot READ. `expose` fills in all of `out`; `land` gets `memory`
	 * NULL for memory of its own. */
	int (*expose)(struct exposure *out, const struct channel *channel, void *memory,
		      size_t bytes, bool on_demand, struct jaunt_error *error);
	int (*land)(struct landing *out, struct channel *channel, void *memory, size_t bytes,
		    struct jaunt_error *error);
	int (*read)(struct channel *channel, struct landing *landing, size_t offset,
		    uint64_t address, uint32_t key, size_t bytes, uint64_t cookie);
	size_t (*read_room)(const struct channel *channel);
	enum on_demand (*on_demand)(const struct channel *channel); /* NULL: never */
};

struct channel {
	const struct channel_ops *ops;
};

/* Embedded by a provider in what it keeps for each; they outlive the channel they came from. */
struct exposure_private {
	void (*withdraw)(struct exposure *exposure);
};

struct landing_private {
	void (*free)(struct landing *landing);
};

struct listener_ops {
	unsigned (*port)(const struct listener *listener);
	int (*bind)(struct listener *listener, struct ring *ring,
		    void (*accepted)(void *user, struct channel *channel, int error), void *user);
	void (*unbind)(struct listener *listener);
	void (*free)(struct listener *listener); /* is unbound already */
};

struct listener {
	const struct listener_ops *ops;
	bool (*admit)(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]); /* NULL: all */
	void *admit_user;
};

struct transport {
	const char *scheme;
	uint32_t connect_ms; /* see transport_connect_ms() */
	int (*connect)(struct channel **out, const struct address *address, uint32_t timeout_ms,
		       struct jaunt_error *error);
	int (*listen)(struct listener **out, const struct address *address,
		      struct jaunt_error *error);
	/* Of address->options, which are not empty. NULL: it takes none. */
	int (*check_options)(const struct address *address, struct jaunt_error *error);
	/* No address of it counts as one that stays on this host. */
	bool never_loopback;
};

extern const struct transport tcp_transport;
#ifdef JAUNT_RDMA
extern const struct transport rdma_transport;
#endif

/* NULL: there is none of that name. */
const struct transport *transport_find(const char *scheme);
/* "tcp, rdma": the schemes there are, for messages. */
void transport_schemes(char *text, size_t room);

#define container_of(pointer, type, member)                                                        \
	((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#endif
