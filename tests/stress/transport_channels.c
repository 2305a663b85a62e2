/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Channels under everything at once. Clients send a pattern in pieces of random size and check the
 * echo; servers echo it while they pause channels, hand them to each other's ring, ask for wanted
 * sizes; a killer shuts channels down from outside; some clients leave in the middle, with sends in
 * flight. Every byte that arrives is checked, every block given to channel_send() is freed as soon
 * as the contract allows (the address sanitizer sees a use after that), and each connection must
 * come to an end. Usage: transport_channels [seed [connections]]
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/ring.h"
#include "transport/transport.h"

#define CLIENTS       3
#define BYTES         (512u << 10) /* of one connection */
#define PIECE_MAX     60000u
#define QUEUED_MAX    6
#define SERVER_BUFFER 16384u
#define ECHO_MAX      16 /* blocks of one connection under way */
#define WANT_MAX      9000u

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

static unsigned connections = 600, seed = 1;
static struct address address;

static unsigned dice(unsigned *state, unsigned sides)
{
	*state = *state * 1103515245u + 12345u;
	return (*state >> 8) % sides;
}

static uint8_t pattern(size_t index, unsigned salt)
{
	return (uint8_t)((index * 2654435761u + salt) >> 13);
}

/* --- Servers ------------------------------------------------------------------------- */

struct connection {
	struct channel *channel;
	struct server *server;
	struct connection *next; /* in an inbox, guarded by its lock */
	unsigned random, queued;
	size_t consumed, received;
	uint8_t *blocks[ECHO_MAX]; /* given to channel_send(), by cookie */
	bool paused, move, closed;
	struct connection *all_next, **all_link; /* of the server that has it */
};

struct server {
	struct ring *ring;
	struct connection *all;
	pthread_mutex_t lock;
	struct connection *inbox; /* guarded by lock */
	bool stop;                /* guarded by lock */
};

static struct server servers[2];
static pthread_barrier_t ready;
static unsigned opened; /* by all clients; set before any thread starts */
static _Atomic unsigned served, moves, pauses;

static size_t echo(void *user, const uint8_t *data, size_t bytes)
{
	struct connection *connection = user;
	size_t taken = bytes > 1 ? bytes - dice(&connection->random, 2) * (bytes / 3) : bytes;
	size_t slot = 0;

	connection->received = connection->consumed + bytes;
	while (slot < ECHO_MAX && connection->blocks[slot])
		slot++;
	if (slot == ECHO_MAX) {
		/* Back-pressure; look_after() lifts it when all of them are sent. */
		connection->paused = true;
		channel_pause(connection->channel, true);
		return 0;
	}
	uint8_t *block = malloc(taken);
	CHECK(block);
	memcpy(block, data, taken);
	int result = channel_send(connection->channel, NULL, 0, block, taken, slot);
	if (result) {
		CHECK(result == -EPIPE);
		free(block);
		return bytes;
	}
	connection->blocks[slot] = block;
	connection->queued++;
	connection->consumed += taken;
	unsigned what = dice(&connection->random, 16);
	/* Of a rest that may be the last bytes, only a resumption makes a new offer. */
	if (what == 0 || taken < bytes) {
		connection->paused = true;
		channel_pause(connection->channel, true);
		atomic_fetch_add(&pauses, 1);
	} else if (what == 1) {
		connection->move = true;
	}
	return taken;
}

static void echoed(void *user, uint64_t cookie)
{
	struct connection *connection = user;

	CHECK(cookie < ECHO_MAX && connection->blocks[cookie]);
	free(connection->blocks[cookie]);
	connection->blocks[cookie] = NULL;
	connection->queued--;
}

static void echo_closed(void *user, int error)
{
	struct connection *connection = user;

	CHECK(!connection->closed);
	connection->closed = true;
}

static const struct channel_events echo_events = {echo, echoed, echo_closed};

static void link_connection(struct server *server, struct connection *connection)
{
	connection->server = server;
	connection->all_next = server->all;
	connection->all_link = &server->all;
	if (connection->all_next)
		connection->all_next->all_link = &connection->all_next;
	server->all = connection;
}

static void unlink_connection(struct connection *connection)
{
	*connection->all_link = connection->all_next;
	if (connection->all_next)
		connection->all_next->all_link = connection->all_link;
}

static void end_connection(struct connection *connection)
{
	unlink_connection(connection);
	channel_free(connection->channel);
	for (size_t i = 0; i < ECHO_MAX; i++)
		free(connection->blocks[i]);
	free(connection);
	atomic_fetch_add(&served, 1);
}

static void serve(struct server *server, struct connection *connection)
{
	link_connection(server, connection);
	int result = channel_bind(connection->channel, server->ring, &echo_events, connection,
				  SERVER_BUFFER);
	CHECK(result == 0 || result == -EPIPE);
	if (result)
		end_connection(connection);
}

static void post(struct server *server, struct connection *connection)
{
	pthread_mutex_lock(&server->lock);
	connection->next = server->inbox;
	server->inbox = connection;
	pthread_mutex_unlock(&server->lock);
	ring_wake(server->ring);
}

/* After each wait: what callbacks may not do themselves. */
static void look_after(struct server *server)
{
	struct connection *next;

	for (struct connection *connection = server->all; connection; connection = next) {
		next = connection->all_next;
		if (connection->closed) {
			end_connection(connection);
		} else if (connection->move && !connection->queued) {
			connection->move = connection->paused = false;
			channel_unbind(connection->channel);
			unlink_connection(connection);
			atomic_fetch_add(&moves, 1);
			post(&servers[server == &servers[0]], connection);
		} else if (connection->paused && !connection->queued) {
			size_t wanted = dice(&connection->random, WANT_MAX);
			connection->paused = false;
			/* More than ever comes would be waited for in vain. */
			if (wanted <= BYTES - connection->received)
				channel_want(connection->channel, wanted);
			channel_pause(connection->channel, false);
		}
	}
}

static void accepted(void *user, struct channel *channel, int error)
{
	static unsigned count;
	struct connection *connection = calloc(1, sizeof(*connection));

	CHECK(!error && connection);
	connection->channel = channel;
	connection->random = seed + 7 * count;
	if (count++ % 2)
		post(&servers[1], connection);
	else
		serve(&servers[0], connection);
}

static void *run_server(void *argument)
{
	struct server *server = argument;
	bool first = server == &servers[0], stop = false;
	struct jaunt_error error = {0};
	struct listener *listener = NULL;

	CHECK(ring_create(&server->ring, 16) == 0);
	if (first) {
		CHECK(transport_listen(&listener, &address, &error) == 0);
		address.port = (uint16_t)listener_port(listener);
		CHECK(listener_bind(listener, server->ring, accepted, NULL) == 0);
	}
	pthread_barrier_wait(&ready);
	while (!stop || atomic_load(&served) < opened) {
		CHECK(ring_wait(server->ring, -1) > 0);
		pthread_mutex_lock(&server->lock);
		struct connection *inbox = server->inbox;
		server->inbox = NULL;
		stop = server->stop;
		pthread_mutex_unlock(&server->lock);
		while (inbox) {
			struct connection *connection = inbox;
			inbox = inbox->next;
			serve(server, connection);
		}
		look_after(server);
	}
	/* The other may still be asleep. */
	ring_wake(servers[first].ring);
	pthread_barrier_wait(&ready);
	listener_free(listener);
	ring_destroy(server->ring);
	return NULL;
}

/* --- Clients ------------------------------------------------------------------------- */

struct client {
	pthread_t thread;
	struct ring *ring;
	unsigned random, salt;
	size_t sent, received;
	unsigned queued;
	bool closed;
	int error;
	uint8_t *blocks[4 * QUEUED_MAX];
	pthread_mutex_t lock;
	struct channel *victim; /* guarded by lock; the killer's */
};

static struct client clients[CLIENTS];
static _Atomic unsigned completed, killed, left_early;
static _Atomic bool over;

static size_t check_echo(void *user, const uint8_t *data, size_t bytes)
{
	struct client *client = user;

	for (size_t i = 0; i < bytes; i++)
		CHECK(data[i] == pattern(client->received + i, client->salt));
	client->received += bytes;
	return bytes;
}

static void piece_sent(void *user, uint64_t cookie)
{
	struct client *client = user;

	free(client->blocks[cookie]);
	client->blocks[cookie] = NULL;
	client->queued--;
}

static void client_closed(void *user, int error)
{
	struct client *client = user;

	CHECK(!client->closed);
	client->closed = true;
	client->error = error;
}

static const struct channel_events client_events = {check_echo, piece_sent, client_closed};

static void send_piece(struct client *client, struct channel *channel)
{
	size_t bytes = 1 + dice(&client->random, PIECE_MAX), slot = 0;

	if (bytes > BYTES - client->sent)
		bytes = BYTES - client->sent;
	while (client->blocks[slot])
		slot++;
	uint8_t *block = malloc(bytes);
	CHECK(block);
	for (size_t i = 0; i < bytes; i++)
		block[i] = pattern(client->sent + i, client->salt);
	size_t head = bytes < CHANNEL_HEAD_MAX ? bytes : dice(&client->random, CHANNEL_HEAD_MAX);
	int result = channel_send(channel, block, head, block + head, bytes - head, slot);
	if (result) {
		CHECK(result == -EPIPE || result == -EAGAIN);
		free(block);
		return;
	}
	client->blocks[slot] = block;
	client->sent += bytes;
	client->queued++;
}

static void set_victim(struct client *client, struct channel *channel)
{
	pthread_mutex_lock(&client->lock);
	client->victim = channel;
	pthread_mutex_unlock(&client->lock);
}

static void one_connection(struct client *client, bool victim, size_t leave_at)
{
	struct jaunt_error error = {0};
	struct channel *channel;

	client->sent = client->received = 0;
	client->queued = 0;
	client->closed = false;
	client->salt = dice(&client->random, 1000);
	int result = transport_connect(&channel, &address, 20000, &error);
	if (result)
		fprintf(stderr, "%s\n", error.text);
	CHECK(result == 0);
	CHECK(channel_bind(channel, client->ring, &client_events, client, 32768) == 0);
	if (victim)
		set_victim(client, channel);
	while (!client->closed && client->received < BYTES && client->received < leave_at) {
		while (client->sent < BYTES && client->queued < QUEUED_MAX && channel_room(channel))
			send_piece(client, channel);
		CHECK(ring_wait(client->ring, -1) > 0);
	}
	set_victim(client, NULL);
	if (client->closed)
		atomic_fetch_add(&killed, 1);
	else if (client->received < BYTES)
		atomic_fetch_add(&left_early, 1);
	else
		atomic_fetch_add(&completed, 1);
	CHECK(!client->closed || victim);
	channel_free(channel);
	/* Nobody reads them any more. */
	for (size_t i = 0; i < sizeof(client->blocks) / sizeof(client->blocks[0]); i++) {
		if (client->blocks[i])
			memset(client->blocks[i], 0xee, 1);
		free(client->blocks[i]);
		client->blocks[i] = NULL;
	}
}

static void *run_client(void *argument)
{
	struct client *client = argument;

	CHECK(ring_create(&client->ring, 16) == 0);
	for (unsigned i = 0; i < connections / CLIENTS; i++) {
		bool victim = dice(&client->random, 4) == 0;
		bool leaves = dice(&client->random, 4) == 0;
		one_connection(client, victim, leaves ? dice(&client->random, BYTES) : SIZE_MAX);
	}
	ring_destroy(client->ring);
	return NULL;
}

static void *kill_some(void *argument)
{
	unsigned random = seed * 31;

	while (!atomic_load(&over)) {
		struct client *client = &clients[dice(&random, CLIENTS)];
		pthread_mutex_lock(&client->lock);
		if (client->victim && dice(&random, 8) == 0) {
			channel_totals(client->victim);
			channel_shutdown(client->victim);
			client->victim = NULL;
		}
		pthread_mutex_unlock(&client->lock);
		sched_yield();
	}
	return NULL;
}

int main(int count, char **arguments)
{
	pthread_t server_threads[2], killer;
	struct jaunt_error error = {0};

	alarm(300);
	if (count > 1)
		seed = (unsigned)atoi(arguments[1]);
	if (count > 2)
		connections = (unsigned)atoi(arguments[2]);
	CHECK(address_parse(&address, "tcp:127.0.0.1:0", &error) == 0);
	opened = connections / CLIENTS * CLIENTS;
	pthread_barrier_init(&ready, NULL, 3);
	for (int i = 0; i < 2; i++) {
		pthread_mutex_init(&servers[i].lock, NULL);
		CHECK(pthread_create(&server_threads[i], NULL, run_server, &servers[i]) == 0);
	}
	pthread_barrier_wait(&ready);
	for (unsigned i = 0; i < CLIENTS; i++) {
		clients[i].random = seed * 1000 + i;
		pthread_mutex_init(&clients[i].lock, NULL);
		CHECK(pthread_create(&clients[i].thread, NULL, run_client, &clients[i]) == 0);
	}
	CHECK(pthread_create(&killer, NULL, kill_some, NULL) == 0);
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(clients[i].thread, NULL);
	atomic_store(&over, true);
	pthread_join(killer, NULL);
	for (int i = 0; i < 2; i++) {
		pthread_mutex_lock(&servers[i].lock);
		servers[i].stop = true;
		pthread_mutex_unlock(&servers[i].lock);
		ring_wake(servers[i].ring);
	}
	pthread_barrier_wait(&ready);
	for (int i = 0; i < 2; i++)
		pthread_join(server_threads[i], NULL);
	printf("seed %u: %u completed, %u killed, %u left early; %u served, %u moves, %u pauses\n",
	       seed, completed, killed, left_early, served, moves, pauses);
	CHECK(completed + killed + left_early == opened && served == opened);
	return 0;
}
