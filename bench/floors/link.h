/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A blocking TCP connection over loopback between the two processes of a floor program. Blocking
 * sockets on purpose: they are the least that can be done. Any error ends the program.
 */
#ifndef BENCH_FLOORS_LINK_H
#define BENCH_FLOORS_LINK_H

#include <stddef.h>
#include <stdint.h>

int link_listen(uint16_t *port);
int link_listen_at(uint16_t port); /* 0: any that is free */
int link_accept(int listener);
int link_connect(uint16_t port);

void link_send(int link, const void *bytes, size_t count);
/* Head and body with one system call. */
void link_send_two(int link, const void *head, size_t head_bytes, const void *body,
		   size_t body_bytes);
/* Returns 0 if the peer had closed before the first byte, else 1 with all of it. */
int link_receive(int link, void *bytes, size_t count);

#endif
