/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One session between a source and a target: who may attach to it, which epoch it is in, and
 * whether it still has all its channels. Shared by every thread of one side.
 */
#ifndef ENGINE_SESSION_H
#define ENGINE_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"
#include "proto/frame.h"
#include "transport/transport.h"

struct ring;

#define PREAMBLE_BYTES (FRAME_BYTES + ATTACH_BYTES)

struct session {
	uint8_t id[SESSION_ID_BYTES];
	uint8_t secret[SESSION_SECRET_BYTES];
	_Atomic uint32_t epoch; /* 0 before FREEZE */
	bool verify;
	pthread_mutex_t mutex;  /* guards owner and why, and changes of what follows */
	struct ring *owner;     /* of the thread that runs the phases */
	struct jaunt_error why; /* of the first loss of this attachment */
	/* Counts the sets of channels that the session has had; 0: the first. What an older one's
	 * channels come to is no matter to the session any more. */
	_Atomic uint32_t attachment;
	/* It is of no help to attach again: something on this side is wrong. */
	_Atomic bool local;
	_Atomic bool lost; /* a page channel is gone; set once an attachment, after what is above */
};

/* For whoever cannot be of an older attachment. */
#define SESSION_NOW UINT32_MAX

/* A new identity, from the kernel's random numbers. */
int session_create(struct session *session);

/* Says that nothing more comes by the present attachment, for a reason that new channels would not
 * change. The first one counts; wakes the owner. Any thread. */
void session_lose(struct session *session, const char *reason, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Says that a channel of that attachment is of no more use: its peer talks nonsense; nothing if
 * there is a later attachment. */
void session_lose_of(struct session *session, uint32_t attachment, const char *reason,
		     const char *format, ...) __attribute__((format(printf, 4, 5)));

/* The same of one that was closed for `error`; `what` it was, like "a stream". In its `closed`. */
void session_lose_channel(struct session *session, uint32_t attachment,
			  const struct channel *channel, int error, const char *what);

/* A new attachment begins, in that epoch, and nothing of it is lost; its number. */
uint32_t session_reattach(struct session *session, uint32_t epoch);

/* Makes the owner look around. Any thread. */
void session_wake(struct session *session);
/* Who to wake; NULL: nobody any more. */
void session_set_owner(struct session *session, struct ring *ring);

/* Whether pages of that epoch may be asked for, sent or placed: those of the current one, and none
 * before FREEZE, when the guest still writes them at the source. */
static inline bool session_in_epoch(const struct session *session, uint32_t epoch)
{
	return epoch && epoch == atomic_load(&session->epoch);
}

/* What a request to connect says of itself, where it can carry that: the role, and for all but a
 * control link the session's secret; for one that comes back (`again`) the source's half. */
void session_token(const struct session *session, enum attach_role role, bool again,
		   uint8_t token[CONNECT_TOKEN_BYTES]);
/* Whether one with this token may be of use: while there is a control link, only what knows the
 * session's secret, or shows the source's half; else a control link. */
bool session_admits(const struct session *session, bool linked,
		    const uint8_t token[CONNECT_TOKEN_BYTES]);

/* The 96 bytes that begin every connection. */
int preamble_send(struct channel *channel, const struct session *session, enum attach_role role,
		  unsigned index);
/* Those of a control link of a session that goes on, in that epoch: each side shows one half of the
 * secret, so that neither learns from the other what it would have to show itself. */
int preamble_prove(struct channel *channel, const struct session *session, bool source,
		   uint32_t epoch);
/* Whether the peer is of this session: the source's half, or the target's. */
bool session_proves(const struct session *session, const struct attach *attach, bool source);
/* Whether the visitor on control wants a session to go on. */
bool session_named(const struct attach *attach);
/* Reads them; false with the reason in `why` (a sentence). */
bool preamble_parse(const uint8_t *bytes, struct attach *attach, const char **why);
/* The peer's, at the side that connected: it is only checked to be one. PREAMBLE_BYTES; 0: not all
 * of it is there yet; -EPROTO with the reason in `why`. */
int preamble_take_echo(const uint8_t *data, size_t bytes, const char **why);

#endif
