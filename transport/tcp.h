/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the TCP transport share. */
#ifndef TRANSPORT_TCP_H
#define TRANSPORT_TCP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/provider.h"

/* Makes an unbound channel of a connected, blocking socket, which it owns from then on (not on
 * error). `dialed`: this side made the connection. -ENOMEM, or what the socket says. */
int tcp_channel_create(struct channel **out, int fd, bool dialed);

int tcp_listen(struct listener **out, const struct address *address, struct jaunt_error *error);

#endif
