/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers other commands on the sockets of a claim: JSON lines, requests in, replies and events
 * out. One thread runs server_poll(); nothing that a client does, or leaves half done, keeps it
 * from the others. Only processes of the same user and of root are heard.
 */
#ifndef CLI_SERVER_H
#define CLI_SERVER_H

#include <jansson.h>
#include <poll.h>
#include <stdbool.h>

#include "jaunt.h"

#define SERVER_CLIENTS_MAX 64

struct server;
struct server_client;

struct server_handler {
	/* One request; answer with server_reply() before returning. The client may not be kept. */
	void (*request)(void *user, struct server_client *client, json_t *request);
	void *user;
};

int server_open(struct server **out, const struct server_handler *handler,
		struct jaunt_error *error);
void server_close(struct server *server);

/* The listening socket to accept on, -1: none. Belongs to the caller. */
void server_listen(struct server *server, int listen_fd);

/* Waits up to timeout_ms (-1: for ever) for clients and for the caller's own descriptors, whose
 * revents it fills, and serves what has come. */
int server_poll(struct server *server, struct pollfd *own, size_t own_count, int timeout_ms);

/* Takes the reference. A client that does not read is dropped. */
void server_reply(struct server_client *client, json_t *reply);
/* From now on it gets what is broadcast. */
void server_follow(struct server_client *client);
bool server_has_followers(const struct server *server);

/* To all followers; takes the reference. `may_skip`: not to those that have not read the last one.
 * `last`: they follow no longer. */
void server_broadcast(struct server *server, json_t *event, bool may_skip, bool last);

/* Gives clients up to timeout_ms to take what is waiting for them. */
void server_drain(struct server *server, int timeout_ms);

#endif
