/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The address of the other side as people write it, checked before anything is asked of it. The
 * transport has its own parser; this one knows no more than the command line promises.
 */
#ifndef CLI_PEER_H
#define CLI_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"

struct peer {
	char scheme[8]; /* "tcp" or "rdma" */
	char host[256];
	bool bracketed;    /* an IPv6 address */
	unsigned port;     /* JAUNT_DEFAULT_PORT when none was written */
	char options[128]; /* of the transport, with the comma before them, or "" */
};

/* "tcp:HOST[:PORT]", "rdma:HOST[:PORT][,OPTION=VALUE…]". -EINVAL, reason "bad-address". */
int peer_parse(struct peer *peer, const char *text, struct jaunt_error *error);

/* Back to text, with another port and without options. */
void peer_format(const struct peer *peer, unsigned port, char *text, size_t room);

/* Whether somebody listens there: resolves, connects, and closes. `found` gets the address. Reasons
 * "resolve", "connect-refused", "connect-timeout", "unreachable", "not-probed". */
int peer_probe(const struct peer *peer, unsigned timeout_ms, char *found, size_t room,
	       struct jaunt_error *error);

#endif
