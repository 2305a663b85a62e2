/* SPDX-License-Identifier: Apache-2.0 */
/* From the host of an address to socket addresses, within a bounded time. Any thread; blocks. */
#ifndef TRANSPORT_RESOLVE_H
#define TRANSPORT_RESOLVE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "transport/transport.h"

#define RESOLVE_TIMEOUT_MS 10000 /* for callers without a limit of their own */

/* What address_resolve() has kept, if it was called; else looks the host up. Without duplicates.
 * ENOENT: no such host; EAGAIN: the name service does not answer now; ETIMEDOUT; else of the
 * system. Fills `error`. */
int resolve_address(struct resolved *out, const struct address *address, uint32_t timeout_ms,
		    struct jaunt_error *error);

#define RESOLVE_TEXT 80 /* room for any numeric address and port */

/* "127.0.0.1:7420", "[fe80::1%eth0]:7420" */
void resolve_format(const struct sockaddr_storage *address, char text[RESOLVE_TEXT]);

/* The port in it, in network byte order. */
uint16_t *resolve_port(struct sockaddr_storage *address);

/* Of the errors of several addresses of one host, the one that says most has the highest rank. */
int resolve_rank(int error);

#endif
