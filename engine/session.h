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
	pthread_mutex_t mutex;  /* guards owner and why */
	struct ring *owner;     /* of the thread that runs the phases */
	struct jaunt_error why; /* of the first loss */
	_Atomic bool lost;      /* a page channel is gone; set once, after `why` */
};

/* A new identity, from the kernel's random numbers. */
int session_create(struct session *session);

/* Says that a channel of the session is gone, or its peer talks nonsense. The first one counts;
 * wakes the owner. Any thread. */
void session_lose(struct session *session, const char *reason, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The same of a channel that was closed for `error`; `what` it was, like "a stream". In its
 * `closed`. */
void session_lose_channel(struct session *session, const struct channel *channel, int error,
			  const char *what);

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
 * control link the session's secret. */
void session_token(const struct session *session, enum attach_role role,
		   uint8_t token[CONNECT_TOKEN_BYTES]);
/* Whether one with this token may be of use: while there is a control link, only what knows the
 * session's secret; else a control link. */
bool session_admits(const struct session *session, bool linked,
		    const uint8_t token[CONNECT_TOKEN_BYTES]);

/* The 96 bytes that begin every connection. */
int preamble_send(struct channel *channel, const struct session *session, enum attach_role role,
		  unsigned index);
/* Reads them; false with the reason in `why` (a sentence). */
bool preamble_parse(const uint8_t *bytes, struct attach *attach, const char **why);
/* The peer's, at the side that connected: it is only checked to be one. PREAMBLE_BYTES; 0: not all
 * of it is there yet; -EPROTO with the reason in `why`. */
int preamble_take_echo(const uint8_t *data, size_t bytes, const char **why);

#endif
