/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One poll() over the listening socket, the clients and the caller's descriptors. Every client has
 * bounded buffers and a deadline: a connection that neither follows nor has sent a whole request
 * for SERVER_IDLE_NS is closed, and when all places are taken the one that has been silent longest
 * makes room, so that connections opened and forgotten cannot lock an operator out. A request is
 * looked at only when it is there as a whole line.
 */
#include "cli/server.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/lines.h"

#define SERVER_IDLE_NS UINT64_C(10000000000)

struct server_client {
	struct lines lines;
	uint64_t heard_ns; /* when its last whole request came */
	bool follows;
	bool dead; /* closed once nobody walks the list */
};

struct server {
	struct server_handler handler;
	int listen_fd;
	struct server_client *clients[SERVER_CLIENTS_MAX];
	size_t count;
};

int server_open(struct server **out, const struct server_handler *handler,
		struct jaunt_error *error)
{
	struct server *server = calloc(1, sizeof(*server));
	if (!server)
		return error_set(error, ENOMEM, "no-memory", "not enough memory to serve commands");
	server->handler = *handler;
	server->listen_fd = -1;
	*out = server;
	return 0;
}

static void sweep(struct server *server)
{
	size_t kept = 0;
	for (size_t i = 0; i < server->count; i++) {
		struct server_client *client = server->clients[i];
		if (client && !client->dead) {
			server->clients[kept++] = client;
		} else if (client) {
			lines_close(&client->lines);
			free(client);
		}
	}
	server->count = kept;
}

void server_close(struct server *server)
{
	if (!server)
		return;
	for (size_t i = 0; i < server->count; i++)
		server->clients[i]->dead = true;
	sweep(server);
	free(server);
}

void server_listen(struct server *server, int listen_fd)
{
	server->listen_fd = listen_fd;
}

void server_reply(struct server_client *client, json_t *reply)
{
	if (lines_put(&client->lines, reply))
		client->dead = true;
}

void server_follow(struct server_client *client)
{
	client->follows = true;
}

bool server_has_followers(const struct server *server)
{
	for (size_t i = 0; i < server->count; i++)
		if (server->clients[i]->follows && !server->clients[i]->dead)
			return true;
	return false;
}

void server_broadcast(struct server *server, json_t *event, bool may_skip, bool last)
{
	for (size_t i = 0; i < server->count; i++) {
		struct server_client *client = server->clients[i];
		if (!client->follows || client->dead || (may_skip && client->lines.out_bytes))
			continue;
		server_reply(client, json_incref(event));
		if (last) {
			client->follows = false;
			client->heard_ns = clock_ns();
		}
	}
	json_decref(event);
}

/* The one that has said nothing for longest; a follower only when all follow. */
static void make_room(struct server *server)
{
	struct server_client *oldest = NULL;
	for (size_t i = 0; i < server->count; i++) {
		struct server_client *client = server->clients[i];
		if (!oldest || client->follows < oldest->follows ||
		    (client->follows == oldest->follows && client->heard_ns < oldest->heard_ns))
			oldest = client;
	}
	if (oldest)
		oldest->dead = true;
	sweep(server);
}

static void accept_clients(struct server *server)
{
	/* A bounded number at a time: whoever connects in a loop must not starve the others. */
	for (int i = 0; i < 16; i++) {
		struct ucred peer;
		socklen_t length = sizeof(peer);
		int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) ||
		    (peer.uid != 0 && peer.uid != geteuid())) {
			close(fd);
			continue;
		}
		if (server->count == SERVER_CLIENTS_MAX)
			make_room(server);
		struct server_client *client = calloc(1, sizeof(*client));
		if (!client) {
			close(fd);
			return;
		}
		if (lines_open(&client->lines, fd)) {
			free(client);
			return;
		}
		client->heard_ns = clock_ns();
		server->clients[server->count++] = client;
	}
}

static void serve(struct server *server, struct server_client *client)
{
	int filled = lines_fill(&client->lines);
	json_t *request;
	int taken;

	while (!client->dead && (taken = lines_take(&client->lines, &request)) != 0) {
		if (taken < 0) {
			lines_put(&client->lines,
				  json_pack("{s:b, s:s, s:s}", "ok", 0, "reason", "bad-request",
					    "error",
					    taken == -EMSGSIZE
						    ? "the request is too long"
						    : "the request is not a JSON object"));
			client->dead = true;
			return;
		}
		client->heard_ns = clock_ns();
		server->handler.request(server->handler.user, client, request);
		json_decref(request);
	}
	if (filled < 0)
		client->dead = true;
}

int server_poll(struct server *server, struct pollfd *own, size_t own_count, int timeout_ms)
{
	struct pollfd polled[SERVER_CLIENTS_MAX + 1 + 8];
	size_t clients = server->count;
	uint64_t now = clock_ns();

	if (own_count > 8)
		return -EINVAL;
	for (size_t i = 0; i < clients; i++) {
		struct server_client *client = server->clients[i];
		polled[i] = (struct pollfd){.fd = client->lines.fd, .events = POLLIN};
		if (client->lines.out_bytes)
			polled[i].events |= POLLOUT;
		if (client->follows)
			continue;
		uint64_t silent = now - client->heard_ns;
		int left = silent >= SERVER_IDLE_NS
				   ? 0
				   : (int)((SERVER_IDLE_NS - silent) / 1000000) + 1;
		if (timeout_ms < 0 || left < timeout_ms)
			timeout_ms = left;
	}
	polled[clients] = (struct pollfd){.fd = server->listen_fd, .events = POLLIN};
	for (size_t i = 0; i < own_count; i++)
		polled[clients + 1 + i] = own[i];
	if (poll(polled, clients + 1 + own_count, timeout_ms) < 0) {
		for (size_t i = 0; i < own_count; i++)
			own[i].revents = 0;
		return errno == EINTR ? 0 : -errno;
	}
	for (size_t i = 0; i < own_count; i++)
		own[i] = polled[clients + 1 + i];
	now = clock_ns();
	for (size_t i = 0; i < clients; i++) {
		struct server_client *client = server->clients[i];
		if (polled[i].revents & POLLOUT && lines_flush(&client->lines))
			client->dead = true;
		if (polled[i].revents & (POLLIN | POLLHUP | POLLERR))
			serve(server, client);
		if (!client->follows && now - client->heard_ns >= SERVER_IDLE_NS)
			client->dead = true;
	}
	sweep(server);
	if (polled[clients].revents & POLLIN)
		accept_clients(server);
	return 0;
}

void server_drain(struct server *server, int timeout_ms)
{
	uint64_t end = clock_ns() + (uint64_t)timeout_ms * 1000000;

	for (;;) {
		struct pollfd polled[SERVER_CLIENTS_MAX];
		nfds_t waiting = 0;
		uint64_t now = clock_ns();
		for (size_t i = 0; i < server->count; i++) {
			struct server_client *client = server->clients[i];
			if (!client->dead && client->lines.out_bytes && lines_flush(&client->lines))
				client->dead = true;
			if (!client->dead && client->lines.out_bytes)
				polled[waiting++] =
					(struct pollfd){.fd = client->lines.fd, .events = POLLOUT};
		}
		sweep(server);
		if (!waiting || now >= end)
			return;
		poll(polled, waiting, (int)((end - now) / 1000000) + 1);
	}
}
