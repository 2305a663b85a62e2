/* SPDX-License-Identifier: Apache-2.0 */
/* Who we are, for the other side. */
#ifndef ENGINE_HELLO_H
#define ENGINE_HELLO_H

#include <stdbool.h>

#include "engine/link.h"

/* Queues our Hello. */
int hello_send(struct link *link);

/* Whether we can talk to that peer: the protocol version, or -errno with both sides named. */
int hello_check(const Jaunt__Hello *theirs, struct jaunt_error *error);

/* Whether the peer can do that, by the name it has in Hello.features. */
bool hello_has(const Jaunt__Hello *theirs, const char *feature);

/* Whether the peer runs on this kernel instance, so that its monotonic clock is ours. */
bool hello_same_clock(const Jaunt__Hello *theirs);

#endif
