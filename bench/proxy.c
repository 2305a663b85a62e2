/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP proxy that is a long way off: what arrives on one side leaves on the other after a fixed
 * delay, and no faster than a rate.
 *
 * Theory of operation
 *
 * One thread, one ppoll() over all sockets. Each direction of each connection (a flow) is a delay
 * line: bytes are read as soon as they arrive, into blocks stamped with the time at which they are
 * due on the other side, and written when that time has come. Nothing waits for what went before
 * it, so any number of bytes are under way at once, as on a real line; a flow holds a bounded
 * number of them and then stops reading, which the sender sees as a full TCP window.
 *
 * A rate belongs to a direction, shared by all connections like the cable they would share. What
 * the line cannot take within a millisecond is left in the sockets, and the connections take turns:
 * a bulk stream then does not queue in front of everybody else inside the proxy.
 *
 * Sleeping is exact to the timer slack, which is set to its least; --spin-us trades a busy CPU for
 * the rest. SIGUSR1 resets every connection that exists and goes on listening, for tests of lost
 * links; SIGSTOP is a line that went silent.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "bench/floors/program.h"

#define BLOCK_BYTES     KIB(64)
#define BACKLOG_NS      UINT64_C(1000000) /* of a limited line: beyond it, bytes stay in sockets */
#define CONNECTIONS     256
#define BLOCKS_PER_TURN 4 /* read from one flow before the others have theirs */
#define NEVER           UINT64_MAX

static const char help[] =
	"Usage: jaunt-proxy --listen HOST:PORT --to HOST:PORT [OPTION...]\n"
	"Forwards TCP connections with a delay and a rate. Prints the port it listens on.\n\n"
	"  --listen HOST:PORT   accept here; port 0 lets the kernel choose\n"
	"  --to HOST:PORT       and connect there\n"
	"  --delay-us N         delay of each direction in microseconds (default 0)\n"
	"  --rate N             bytes per second of each direction (default: no limit)\n"
	"  --rate-back N        the same, of what comes back, if it differs\n"
	"  --buffer N           bytes under way on each direction of a connection (default 16M)\n"
	"  --spin-us N          do not sleep for less than this (default 0)\n"
	"  --die-with-parent    end when the process that started it does\n";

struct options {
	const char *listen, *to;
	uint64_t delay_ns, rate[2], buffer, spin_ns;
	bool die_with_parent;
};

/* A block of bytes under way. */
struct block {
	struct block *next;
	uint64_t due_ns;
	size_t start, end;
	uint8_t bytes[BLOCK_BYTES];
};

/* What one direction of all connections shares. */
struct line {
	uint64_t rate;    /* bytes per second, 0: no limit */
	uint64_t free_ns; /* when the last byte given to it will have left */
};

struct flow {
	struct line *line;
	struct block *first, *last;
	size_t held;         /* bytes in blocks */
	uint64_t end_due_ns; /* when the end of the stream is due; NEVER: it has not ended */
	bool stuck;          /* the receiver takes no more for now */
	bool done;           /* the end was passed on */
};

struct connection {
	int fd[2];           /* 0: who connected, 1: whom we connected to */
	struct flow flow[2]; /* flow i goes from fd[i] to fd[!i] */
	bool dead;
};

static struct proxy {
	struct options options;
	struct line lines[2];
	struct connection connections[CONNECTIONS];
	unsigned count, turn;
	struct block *spare;
	int listener;
	struct addrinfo *to;
} proxy;

static volatile sig_atomic_t reset_wanted;

static void on_reset(int signal)
{
	reset_wanted = 1;
}

/* --- Blocks ----------------------------------------------------------------------------------- */

static struct block *block_take(void)
{
	struct block *block = proxy.spare;
	if (block)
		proxy.spare = block->next;
	else if (!(block = malloc(sizeof(*block))))
		program_fail("buffer");
	block->next = NULL;
	block->start = block->end = 0;
	return block;
}

static void block_give(struct block *block)
{
	block->next = proxy.spare;
	proxy.spare = block;
}

/* --- Flows ------------------------------------------------------------------------------------ */

/* The time from which on the flow may read, 0: now, NEVER: not before something was written. */
static uint64_t may_read_ns(const struct flow *flow)
{
	if (flow->end_due_ns != NEVER || flow->held >= proxy.options.buffer)
		return NEVER;
	if (flow->line->rate && flow->line->free_ns > BACKLOG_NS)
		return flow->line->free_ns - BACKLOG_NS;
	return 0;
}

/* When so many bytes that arrive now are due on the other side. */
static uint64_t due_ns(struct line *line, size_t bytes, uint64_t now)
{
	if (line->rate) {
		if (line->free_ns < now)
			line->free_ns = now;
		line->free_ns += (uint64_t)((double)bytes * 1e9 / (double)line->rate);
		now = line->free_ns;
	}
	return now + proxy.options.delay_ns;
}

/* As much as a line of this rate passes on in a fraction of the backlog. */
static size_t read_bytes(const struct line *line)
{
	uint64_t share = line->rate / 8000;
	if (!line->rate || share > BLOCK_BYTES)
		return BLOCK_BYTES;
	return share < 512 ? 512 : share;
}

static void flow_read(struct connection *connection, int side)
{
	struct flow *flow = &connection->flow[side];
	for (int turn = 0; turn < BLOCKS_PER_TURN; turn++) {
		uint64_t now = clock_ns();
		if (may_read_ns(flow) > now)
			return;
		struct block *block = block_take();
		size_t wanted = read_bytes(flow->line);
		ssize_t got = recv(connection->fd[side], block->bytes, wanted, MSG_DONTWAIT);
		if (got <= 0) {
			block_give(block);
			if (got == 0)
				flow->end_due_ns = due_ns(flow->line, 0, now);
			else if (errno != EAGAIN && errno != EINTR)
				connection->dead = true;
			return;
		}
		block->end = (size_t)got;
		block->due_ns = due_ns(flow->line, block->end, now);
		*(flow->first ? &flow->last->next : &flow->first) = block;
		flow->last = block;
		flow->held += block->end;
		if (block->end < wanted)
			return;
	}
}

static void flow_write(struct connection *connection, int side)
{
	struct flow *flow = &connection->flow[side];
	int to = connection->fd[!side];
	struct block *block;
	flow->stuck = false;
	while ((block = flow->first) && block->due_ns <= clock_ns()) {
		ssize_t sent = send(to, block->bytes + block->start, block->end - block->start,
				    MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0) {
			flow->stuck = errno == EAGAIN || errno == EINTR;
			connection->dead = !flow->stuck;
			return;
		}
		flow->held -= (size_t)sent;
		block->start += (size_t)sent;
		if (block->start == block->end) {
			flow->first = block->next;
			block_give(block);
		}
	}
	if (!flow->first && !flow->done && flow->end_due_ns <= clock_ns()) {
		shutdown(to, SHUT_WR);
		flow->done = true;
	}
}

/* When the flow has something to do even if no socket stirs. */
static uint64_t flow_wakes_ns(const struct flow *flow)
{
	uint64_t reads = may_read_ns(flow);
	uint64_t wakes = reads ? reads : NEVER;
	uint64_t writes = flow->done ? NEVER : flow->first ? flow->first->due_ns : flow->end_due_ns;
	return flow->stuck || wakes < writes ? wakes : writes;
}

/* --- Connections ------------------------------------------------------------------------------ */

static void no_delay(int fd)
{
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* A connection that cannot be made is reset: the client learns that nobody listens there. */
static void reset(int fd)
{
	struct linger linger = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

static void accept_one(void)
{
	int client = accept4(proxy.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (client < 0)
		return;
	int server = socket(proxy.to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (server < 0 || proxy.count == CONNECTIONS ||
	    (connect(server, proxy.to->ai_addr, proxy.to->ai_addrlen) && errno != EINPROGRESS)) {
		if (server >= 0)
			close(server);
		reset(client);
		return;
	}
	no_delay(client);
	no_delay(server);
	struct connection *connection = &proxy.connections[proxy.count++];
	*connection = (struct connection){.fd = {client, server}};
	for (int side = 0; side < 2; side++)
		connection->flow[side] =
			(struct flow){.line = &proxy.lines[side], .end_due_ns = NEVER};
}

static void end_connection(unsigned index)
{
	struct connection *connection = &proxy.connections[index];
	for (int side = 0; side < 2; side++) {
		struct flow *flow = &connection->flow[side];
		while (flow->first) {
			struct block *block = flow->first;
			flow->first = block->next;
			block_give(block);
		}
		if (connection->dead)
			reset(connection->fd[side]);
		else
			close(connection->fd[side]);
	}
	*connection = proxy.connections[--proxy.count];
}

static void end_connections(void)
{
	for (unsigned i = proxy.count; i-- > 0;) {
		struct connection *connection = &proxy.connections[i];
		connection->dead |= reset_wanted;
		if (connection->dead || (connection->flow[0].done && connection->flow[1].done))
			end_connection(i);
	}
	reset_wanted = 0;
}

/* --- The loop --------------------------------------------------------------------------------- */

/* What to wait for on a socket; none: not even its hanging up, which would be told for ever. */
static struct pollfd watch(const struct connection *connection, int side, uint64_t now)
{
	const struct flow *in = &connection->flow[side], *out = &connection->flow[!side];
	short events = 0;
	if (may_read_ns(in) <= now)
		events |= POLLIN;
	if (out->stuck)
		events |= POLLOUT;
	return (struct pollfd){.fd = events ? connection->fd[side] : -1, .events = events};
}

static void serve_connections(const struct pollfd *sockets, unsigned count)
{
	/* Whoever was served first is served last the next time. */
	proxy.turn++;
	for (unsigned n = 0; n < count; n++) {
		unsigned index = (n + proxy.turn) % count;
		struct connection *connection = &proxy.connections[index];
		for (int side = 0; side < 2 && !connection->dead; side++) {
			short got = sockets[2 * index + (unsigned)side].revents;
			if (got & (POLLIN | POLLHUP | POLLERR))
				flow_read(connection, side);
			if (got & POLLOUT)
				connection->flow[!side].stuck = false;
		}
		for (int side = 0; side < 2 && !connection->dead; side++)
			if (!connection->flow[side].stuck)
				flow_write(connection, side);
	}
}

static void run(const sigset_t *while_waiting)
{
	static struct pollfd sockets[1 + 2 * CONNECTIONS];
	for (;;) {
		uint64_t now = clock_ns(), wake = NEVER;
		unsigned count = proxy.count;
		sockets[0] = (struct pollfd){.fd = proxy.listener, .events = POLLIN};
		for (unsigned i = 0; i < count; i++) {
			for (int side = 0; side < 2; side++) {
				const struct connection *connection = &proxy.connections[i];
				sockets[1 + 2 * i + (unsigned)side] = watch(connection, side, now);
				uint64_t flow_wake = flow_wakes_ns(&connection->flow[side]);
				wake = flow_wake < wake ? flow_wake : wake;
			}
		}
		uint64_t wait = wake > now ? wake - now : 0;
		if (wait <= proxy.options.spin_ns)
			wait = 0;
		else
			wait -= proxy.options.spin_ns;
		struct timespec timeout = {.tv_sec = (time_t)(wait / 1000000000),
					   .tv_nsec = (long)(wait % 1000000000)};
		int ready = ppoll(sockets, 1 + 2 * count, wake == NEVER ? NULL : &timeout,
				  while_waiting);
		if (ready < 0 && errno != EINTR)
			program_fail("wait for sockets");
		if (ready <= 0)
			for (unsigned i = 0; i < 1 + 2 * count; i++)
				sockets[i].revents = 0;
		serve_connections(sockets + 1, count);
		if (sockets[0].revents)
			accept_one();
		end_connections();
	}
}

/* --- The program ------------------------------------------------------------------------------ */

static struct addrinfo *resolve(const char *text, int flags)
{
	char host[256];
	const char *colon = text ? strrchr(text, ':') : NULL;
	if (!colon || colon - text >= (long)sizeof(host))
		program_usage("--listen and --to want HOST:PORT");
	size_t bytes = (size_t)(colon - text);
	bool bracketed = bytes >= 2 && *text == '[' && colon[-1] == ']';
	if (bracketed) {
		text++;
		bytes -= 2;
	}
	memcpy(host, text, bytes);
	host[bytes] = 0;
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags}, *found;
	int error = getaddrinfo(host, colon + 1, &hints, &found);
	if (error)
		program_usage("%s: %s", host, gai_strerror(error));
	return found;
}

static void listen_at(const char *text)
{
	struct addrinfo *at = resolve(text, AI_PASSIVE);
	int on = 1;
	proxy.listener = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (proxy.listener < 0 ||
	    setsockopt(proxy.listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(proxy.listener, at->ai_addr, at->ai_addrlen) || listen(proxy.listener, 128))
		program_fail("listen at %s", text);
	freeaddrinfo(at);
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} address;
	socklen_t bytes = sizeof(address);
	if (getsockname(proxy.listener, &address.any, &bytes))
		program_fail("listen at %s", text);
	printf("%u\n", ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port
							       : address.v4.sin_port));
	fflush(stdout);
}

static struct options parse(int count, char **arguments)
{
	struct options options = {.buffer = MIB(16)};
	static const struct option names[] = {{"listen", required_argument, NULL, 'l'},
					      {"to", required_argument, NULL, 't'},
					      {"delay-us", required_argument, NULL, 'd'},
					      {"rate", required_argument, NULL, 'r'},
					      {"rate-back", required_argument, NULL, 'R'},
					      {"buffer", required_argument, NULL, 'b'},
					      {"spin-us", required_argument, NULL, 's'},
					      {"die-with-parent", no_argument, NULL, 'p'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	uint64_t back = 0;
	int option;
	while ((option = getopt_long(count, arguments, "", names, NULL)) != -1) {
		switch (option) {
		case 'l':
			options.listen = optarg;
			break;
		case 't':
			options.to = optarg;
			break;
		case 'd':
			options.delay_ns = program_count(optarg, 0) * 1000;
			break;
		case 'r':
			options.rate[0] = program_bytes(optarg);
			break;
		case 'R':
			back = program_bytes(optarg);
			break;
		case 'b':
			options.buffer = program_bytes(optarg);
			break;
		case 's':
			options.spin_ns = program_count(optarg, 0) * 1000;
			break;
		case 'p':
			options.die_with_parent = true;
			break;
		case 'h':
			fputs(help, stdout);
			exit(0);
		default:
			program_usage("unknown option");
		}
	}
	options.rate[1] = back ? back : options.rate[0];
	if (!options.listen || !options.to || !options.buffer || optind < count)
		program_usage("--listen and --to are needed, and --buffer is not 0");
	return options;
}

int main(int count, char **arguments)
{
	proxy.options = parse(count, arguments);
	if (proxy.options.die_with_parent)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1);
	/* SIGUSR1 is let in only while waiting, so that none is lost between a look and a wait. */
	sigset_t while_waiting, held;
	sigemptyset(&held);
	sigaddset(&held, SIGUSR1);
	sigprocmask(SIG_BLOCK, &held, &while_waiting);
	sigdelset(&while_waiting, SIGUSR1);
	struct sigaction action = {.sa_handler = on_reset};
	sigaction(SIGUSR1, &action, NULL);
	for (int side = 0; side < 2; side++)
		proxy.lines[side].rate = proxy.options.rate[side];
	proxy.to = resolve(proxy.options.to, 0);
	listen_at(proxy.options.listen);
	run(&while_waiting);
}
