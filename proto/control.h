/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages: a 32-bit little-endian length, then that many bytes of a jaunt.Control
 * (jaunt.proto). Both directions are pure functions on buffers. Unpacking bounds every length and
 * count before anything is used; a message that passes it can be used without further checks of its
 * shape (its meaning is the engine's affair): no pointer to a sub-message is NULL, no string holds
 * control characters but tab and newline.
 */
#ifndef PROTO_CONTROL_H
#define PROTO_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"
#include "jaunt.pb-c.h"

#define CONTROL_PROTOCOL_MIN 1
#define CONTROL_PROTOCOL_MAX 1
#define CONTROL_MESSAGE_MAX  (4u << 20)  /* bytes of one message */
#define CONTROL_STATE_CHUNK  (1u << 20)  /* bytes of device state in one message */
#define CONTROL_STATE_MAX    (64u << 20) /* bytes of device state in all */
#define CONTROL_RUNS_MAX     65536u      /* dirty, or unexposed, runs in one Freeze */
#define CONTROL_CHUNKS_MAX   4096u       /* chunks in one Exposed */
#define CONTROL_STRING_MAX   4096u       /* any string but a property's value */
#define CONTROL_VALUE_MAX    65536u      /* a property's value */
#define CONTROL_TEXTS_MAX    256u        /* features in one Hello, texts in one Refused */
#define CONTROL_ITEMS_MAX    256u        /* differences in one Refused */
#define CONTROL_CHANNELS_MAX 64u         /* streams, or urgent channels */
#define CONTROL_MEMORY_MAX   (16u << 20) /* bytes of memory that unpacking one message may use */

/* Packs `message` behind its length into malloc()ed *bytes. -ENOMEM, -EMSGSIZE. */
int control_pack(const Jaunt__Control *message, uint8_t **bytes, size_t *count);

/* Takes one message from the front of `data`. Returns 1 and the message (freed with control_free)
 * and sets *consumed; 0 if it is not all there yet, *needed then being the length of the whole, as
 * far as it is known (4, that of the length itself, before that much is there);
 * -EPROTO, -EMSGSIZE or -ENOMEM with `error` filled. */
int control_unpack(const uint8_t *data, size_t bytes, Jaunt__Control **message, size_t *consumed,
		   size_t *needed, struct jaunt_error *error);

void control_free(Jaunt__Control *message);

/* "HELLO", "COMMIT", … for messages and traces. */
const char *control_name(const Jaunt__Control *message);

/* The protocol version that both sides speak, at least 1, or -EPROTONOSUPPORT with both ranges, or
 * the missing feature, named in `error`. */
int control_negotiate(const Jaunt__Hello *mine, const Jaunt__Hello *theirs,
		      struct jaunt_error *error);

#endif
