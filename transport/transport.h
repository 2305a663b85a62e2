/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How bytes move between two hosts: the interface that every transport implements.
 *
 * A channel is a reliable, ordered, full-duplex connection. It is made unbound (by
 * transport_connect or a listener), bound to the ring of the one thread that uses it, and may be
 * unbound and bound to another ring again. Bytes are delivered in place, in the channel's own
 * receive buffer, which is small enough to stay in the cache: the receiver copies them out or
 * installs them from there.
 *
 * Threads: a bound channel belongs to the thread of its ring, an unbound one to whoever holds it;
 * what any thread may call says so. Callbacks run inside ring_wait() and never nest: a callback may
 * unbind or free any other channel or listener without being called back meanwhile.
 *
 * Ownership: a payload given to channel_send() belongs to the channel until `sent` or `closed` was
 * called. After `closed`, and after channel_unbind() and channel_free() return, no buffer is in use
 * by the kernel or the device any more.
 *
 * A transport may have one-sided READs (channel_can_read()); it then also registers memory. TCP has
 * not.
 *
 * Knows nothing of VMs, frames or pages.
 */
#ifndef TRANSPORT_TRANSPORT_H
#define TRANSPORT_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "jaunt.h"

struct ring;
struct channel;
struct listener;

/* --- Addresses
 * ------------------------------------------------------------------------------------ */

#define RESOLVE_MAX 8 /* addresses of one host that are looked at */

/* What a host resolves to, in the order of the system's preference, with the port in each. */
struct resolved {
	unsigned count;
	struct {
		struct sockaddr_storage address;
		socklen_t bytes;
	} entries[RESOLVE_MAX];
};

#define CONNECT_TOKEN_BYTES 40 /* what a request to connect may carry to the listener */

/* "tcp:HOST[:PORT]" or "tcp:[V6]:PORT", parsed. */
struct address {
	char scheme[8];
	char host[256];
	uint16_t port;     /* JAUNT_DEFAULT_PORT when none is given */
	char options[128]; /* "name=value,…" behind a comma, checked; "" when there are none */
	/* Of rdma: what is exposed over a channel may be READ over those alone that this process
	 * dialed with the same number. */
	uint64_t group;
	/* Brought along where connecting can carry it, for listener_admit(). */
	uint8_t token[CONNECT_TOKEN_BYTES];
	/* Of address_resolve(): all that connecting and listening then use. `count` 0: each looks
	 * the host up for itself. */
	struct resolved resolved;
};

int address_parse(struct address *address, const char *text, struct jaunt_error *error);
/* "tcp:host:port", brackets round IPv6, without options. */
void address_format(const struct address *address, char *text, size_t room);
/* Looks the host up and keeps what it resolves to, so that what was checked is what is used: a name
 * may mean something else a moment later. Blocks up to 10 s. Reason: "resolve". */
int address_resolve(struct address *address, struct jaunt_error *error);
/* Whether all that was resolved is loopback. Of rdma: never: an address of this host's own is one
 * of a device on a fabric, and whoever listens there is heard from the whole fabric. */
bool address_is_loopback(const struct address *address);

/* --- Making channels
 * --------------------------------------------------------------------------------- */

/* Tries every address of the host, which it looks up unless that was done, and blocks up to
 * timeout_ms in all. It may need the listener to be served meanwhile, so not on the thread that
 * serves it. Reasons: "bad-address", "resolve", "connect-refused", "connect-timeout",
 * "unreachable", "connect"; and of rdma: "turned-away" (see listener_admit()), "no-rdma" (no
 * library, or no device leads there), "memory-lock", "rdma". */
int transport_connect(struct channel **out, const struct address *address, uint32_t timeout_ms,
		      struct jaunt_error *error);

/* How long connecting may take where nobody says: a request that was lost once is repeated in it.
 */
uint32_t transport_connect_ms(const struct address *address);

/* Listens on every address that the host resolves to and this host has, all on one port ("[::]"
 * takes IPv4 too). Port 0: one that is free. Reasons: "bad-address", "resolve", "port-in-use",
 * "listen". */
int transport_listen(struct listener **out, const struct address *address,
		     struct jaunt_error *error);
unsigned listener_port(const struct listener *listener);

/* Where a request to connect carries the token of its address, `admit` is asked before anything is
 * set up for whoever asks; false: it is refused. NULL: all are let in. Runs like `accepted`, and
 * must not free the listener. Call before listener_bind(). */
void listener_admit(struct listener *listener,
		    bool (*admit)(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]),
		    void *user);

/* Starts accepting on `ring`; `accepted` gets each new channel, unbound, and owns it; on an error
 * that ends the listening it gets NULL and -errno. It may unbind and free the listener. */
int listener_bind(struct listener *listener, struct ring *ring,
		  void (*accepted)(void *user, struct channel *channel, int error), void *user);
/* Stops accepting; no callback after it returns. It can be bound again. */
void listener_unbind(struct listener *listener);
void listener_free(struct listener *listener);

/* --- Using a channel
 * ----------------------------------------------------------------------------------- */

struct channel_events {
	/* `bytes` bytes have arrived and not been consumed. Returns how many of them it consumed;
	 * the rest is offered again, behind it whatever arrives next. May call channel_send() and
	 * channel_shutdown(); must not unbind or free its own channel. */
	size_t (*received)(void *user, const uint8_t *data, size_t bytes);
	/* The message with this cookie has been taken over by the kernel: its payload may change.
	 * In the order of channel_send(). Optional. */
	void (*sent)(void *user, uint64_t cookie);
	/* The channel is dead: 0 the peer closed it, else -errno: -ECANCELED this side shut it
	 * down, -EMSGSIZE the buffer is full and nothing was consumed, -ETIMEDOUT the peer is
	 * silent, -ECONNRESET, … Called once, when nothing is in flight. The owner still has to
	 * free it, and may do so here. */
	void (*closed)(void *user, int error);
	/* The READ with this cookie is over, in the order of channel_read(): 0 all its bytes are in
	 * the landing, which is the owner's again; else -errno, nothing is known about the bytes,
	 * and `closed` follows. What still was under way when a channel dies is told so before
	 * `closed`; after channel_unbind() nothing is told. May call channel_read(), channel_send()
	 * and channel_shutdown(); must not unbind or free its own channel. Required by
	 * channel_read() alone. */
	void (*read_done)(void *user, uint64_t cookie, int error);
};

#define CHANNEL_HEAD_MAX 64 /* bytes of a message that are copied */

/* Starts receiving. `receive_bytes` is the size of the receive buffer (and so the largest unit that
 * `received` may insist on seeing whole). Call on the ring's thread. -EPIPE: the channel is dead;
 * -EBUSY it is bound; -EMSGSIZE bytes kept by channel_unbind() fill the buffer; -ENOMEM. */
int channel_bind(struct channel *channel, struct ring *ring, const struct channel_events *events,
		 void *user, size_t receive_bytes);

/* Cancels what is in flight and waits for that. Bytes that have arrived and were not consumed are
 * kept and offered after the next bind. Messages that were not `sent` are dropped, and if one of
 * them was out in part, the channel can not be bound again (-EPIPE). No callback after it returns.
 */
void channel_unbind(struct channel *channel);

/* Queues head (copied) and payload (referenced) as one message; goes out with the next ring_wait().
 * -EAGAIN: the queue is full, try again after `sent`. -EPIPE: the channel is dead or not bound; if
 * it is bound, `closed` follows. -EINVAL: the head is too long, or there is nothing to send. */
int channel_send(struct channel *channel, const void *head, size_t head_bytes, const void *payload,
		 size_t payload_bytes, uint64_t cookie);
/* Messages that channel_send() would still take. */
size_t channel_room(const struct channel *channel);

/* A hint: `received` can do nothing useful before so many bytes (beyond those unconsumed) are
 * there. Lets the transport receive them with one system call, and nothing behind them. Valid for
 * the next receive; more than the buffer can take counts as what it can take. */
void channel_want(struct channel *channel, size_t bytes);

/* Stops delivering bytes, until the next call with false: back-pressure by the owner. What is in
 * the buffer is then offered again. A peer that closed in between shows only then; a reset shows at
 * once. */
void channel_pause(struct channel *channel, bool paused);

/* Ends both directions at once; `closed` follows from ring_wait(), with -ECANCELED. Bytes that were
 * not yet delivered are not delivered any more. From any thread, while the channel exists. */
void channel_shutdown(struct channel *channel);

/* Unbinds if bound. What was `sent` still reaches the peer, which learns that this was no accident:
 * that may take half a second where the peer's device does not answer. */
void channel_free(struct channel *channel);
/* The same without regard for the peer, and so at once: READs under way end, too. For strangers,
 * and where another channel says what there is to say. */
void channel_drop(struct channel *channel);

/* Rate limit of sending, bytes per second, 0: none. By the kernel where it can. -ENOTSUP */
int channel_pace(struct channel *channel, uint64_t bytes_per_s);

/* How long unacknowledged data or silence may last before the channel counts as dead. */
int channel_timeout(struct channel *channel, uint32_t timeout_ms);

struct channel_totals {
	uint64_t sent_bytes, received_bytes;
	/* Of one-sided READs: work requests that the device took, and completions that it gave. */
	uint64_t reads, read_completions;
	uint64_t other_requests; /* that it took: messages, and looks whether the peer is there */
};
/* Any thread; each figure is current, they need not be of one moment. */
struct channel_totals channel_totals(const struct channel *channel);

/* "127.0.0.1:40312 → 127.0.0.1:7420", for messages. */
const char *channel_name(const struct channel *channel);

/* "mlx5_0 port 1, GID fe80:…, MTU 4096, 16 reads at once, …": this end's device, for messages; ""
 * where there is nothing to tell. */
const char *channel_device(const struct channel *channel);

/* What the device said when the channel died, in words, for messages; "" where the error number
 * says it all. On the ring's thread, or after `closed`. */
const char *channel_failure(const struct channel *channel);

/* --- One-sided READ
 * ----------------------------------------------------------------------------------- */

/* Whether the functions below work on it: the device of one end reads memory of the other end's
 * process, which has no part in that. Any thread. */
bool channel_can_read(const struct channel *channel);

/* Whether memory can be exposed without being pinned (on-demand paging): the device asks for pages
 * as they are read, and loses them when they are given back. */
enum on_demand {
	ON_DEMAND_NO,     /* the device cannot, or the address says so */
	ON_DEMAND_MAY,    /* where pinning will not do: a page that was pinned is read sooner */
	ON_DEMAND_ALWAYS, /* the address says so */
};
enum on_demand channel_on_demand(const struct channel *channel);

/* Memory of this process that the other end may READ: over `channel`, and over every other channel
 * that this process dialed in the same group through the same device. `address` and `key` are what
 * the other end names it by; a READ may cover any part of it. */
struct exposure {
	uint64_t address;
	uint32_t key;
	struct exposure_private *private; /* NULL: exposes nothing */
};

/* Registers and pins [memory, memory + bytes), which fills holes of a file, and takes long: tens of
 * milliseconds for 16 MiB of fresh memory. The memory must stay mapped until it is withdrawn; what
 * is put in the place of its pages (a hole punched and filled again) is not what the peer reads.
 * `on_demand`: without pinning, unless that is ON_DEMAND_NO: no limit of locked memory counts, no
 * hole is filled before it is read, and what is read is what the memory holds then. `channel` need
 * not be bound and is used only during the call. Any thread, several at once.
 * -ENOTSUP the channel cannot; -ENOMEM the limit of locked memory, of this process's memory or of
 * the device: `error` says which and what to raise; -EFAULT it is not mapped; another -errno of the
 * device. Reasons: "expose", "memory-lock". */
int transport_expose(struct exposure *out, const struct channel *channel, void *memory,
		     size_t bytes, bool on_demand, struct jaunt_error *error);
/* Revokes the key and unpins; no READ finds the memory after it returns, and one under way fails at
 * the other end, whose channel that ends. Does nothing where nothing is exposed. It may be called
 * after the channel was freed. Any thread. */
void transport_unexpose(struct exposure *exposure);

/* Memory that READs of a channel land in: registered, and owned by the transport unless it was
 * brought. */
struct landing {
	uint8_t *bytes; /* page-aligned and populated, unless it was brought */
	size_t size;
	struct landing_private *private; /* NULL: there is none */
};

/* -ENOTSUP, -ENOMEM (as transport_expose() means it), or what the device says. `channel` need not
 * be bound; the landing may be used by every channel of the same device, and may be freed after
 * the channel. Any thread. */
int channel_landing(struct landing *out, struct channel *channel, size_t bytes,
		    struct jaunt_error *error);
/* The same for memory of the caller's, which must stay mapped until landing_free(): registering it
 * pins all of it, and fills its holes. */
int channel_landing_at(struct landing *out, struct channel *channel, void *memory, size_t bytes,
		       struct jaunt_error *error);
/* No READ may be under way into it: wait for `read_done`, or let the channel be closed, unbound or
 * freed before. Does nothing where there is none. Any thread. */
void landing_free(struct landing *landing);

/* Starts a READ of the peer's [address, address + bytes) under `key` into the landing at `offset`,
 * at once: it does not wait for ring_wait(), nor for what channel_send() has queued. One work
 * request and one completion. `read_done` follows from ring_wait(). Those bytes of the landing are
 * the device's until then, or until channel_unbind() or channel_free() return. On the ring's
 * thread. -EAGAIN: no room; -EPIPE: the channel is dead or not bound; if it is bound, `closed`
 * follows; -EINVAL: no bytes, more than 1 GiB, or outside of the landing; -ENOTSUP. */
int channel_read(struct channel *channel, struct landing *landing, size_t offset, uint64_t address,
		 uint32_t key, size_t bytes, uint64_t cookie);
/* READs that channel_read() would still take. Of those under way the device works on a few at once
 * (what the two ends agreed on), the others queue in it, and so do messages behind them. */
size_t channel_read_room(const struct channel *channel);

#endif
