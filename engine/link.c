/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "transport/ring.h"

#define WAIT_NS 100000000

static size_t link_received(void *user, const uint8_t *data, size_t bytes)
{
	struct link *link = user;
	size_t used = 0;

	link->heard_ns = clock_ns();
	/* A peer that was held up for a while sends much at once: what does not fit waits in the
	 * channel. */
	while (!link->error.code && link->count < LINK_QUEUE_MAX) {
		Jaunt__Control *message;
		size_t consumed = 0, needed = 0;
		int result = control_unpack(data + used, bytes - used, &message, &consumed, &needed,
					    &link->error);
		if (result == 0)
			break;
		if (result < 0) {
			channel_shutdown(link->channel);
			break;
		}
		used += consumed;
		link->queue[(link->head + link->count++) % LINK_QUEUE_MAX] = message;
	}
	if (link->count == LINK_QUEUE_MAX && !link->paused) {
		link->paused = true;
		channel_pause(link->channel, true);
	}
	return link->error.code ? bytes : used;
}

static void link_sent(void *user, uint64_t cookie)
{
	struct link *link = user;

	free(link->sending[cookie % LINK_QUEUE_MAX]);
	link->sending[cookie % LINK_QUEUE_MAX] = NULL;
	link->done_cookie = cookie;
}

static void link_closed(void *user, int error)
{
	struct link *link = user;

	link->closed = true;
	link->close_error = error;
}

static const struct channel_events link_events = {
	.received = link_received, .sent = link_sent, .closed = link_closed};

int link_open(struct link *link, struct channel *channel, struct ring *ring)
{
	memset(link, 0, sizeof(*link));
	link->channel = channel;
	link->ring = ring;
	link->heard_ns = clock_ns();
	int result = channel_bind(channel, ring, &link_events, link, LINK_BUFFER_BYTES);
	if (result < 0)
		link_close(link);
	return result;
}

void link_close(struct link *link)
{
	if (link->channel)
		channel_free(link->channel);
	link->channel = NULL;
	link->closed = true;
	for (unsigned i = 0; i < LINK_QUEUE_MAX; i++) {
		free(link->sending[i]);
		link->sending[i] = NULL;
	}
	for (; link->count; link->count--) {
		control_free(link->queue[link->head]);
		link->head = (link->head + 1) % LINK_QUEUE_MAX;
	}
}

size_t link_room(const struct link *link)
{
	size_t under_way = link->next_cookie - link->done_cookie;

	if (link->closed || under_way >= LINK_QUEUE_MAX)
		return 0;
	size_t room = channel_room(link->channel);
	return room < LINK_QUEUE_MAX - under_way ? room : LINK_QUEUE_MAX - under_way;
}

/* A full queue empties unless the peer is gone, which ends the channel; or its process hangs, while
 * its host or its device still acknowledges. */
static int await_room(struct link *link)
{
	uint64_t end = clock_ns() + link->send_timeout_ns;

	while (!link->closed && !link_room(link)) {
		if (link->gives_up && link->gives_up(link->user))
			return link->unsent = -ECANCELED;
		if (link->send_timeout_ns && clock_ns() >= end)
			return link->unsent = -ETIMEDOUT;
		ring_wait(link->ring, WAIT_NS);
	}
	return link->closed ? -EPIPE : 0;
}

int link_send(struct link *link, Jaunt__Control *message)
{
	uint8_t *bytes;
	size_t count;

	int result = await_room(link);
	if (result < 0)
		return result;
	message->sequence = ++link->sequence;
	result = control_pack(message, &bytes, &count);
	if (result < 0)
		return result;
	uint64_t cookie = ++link->next_cookie;
	link->sending[cookie % LINK_QUEUE_MAX] = bytes;
	result = channel_send(link->channel, NULL, 0, bytes, count, cookie);
	if (result < 0) {
		free(bytes);
		link->sending[cookie % LINK_QUEUE_MAX] = NULL;
		link->next_cookie--;
	}
	return result;
}

int link_next(struct link *link, int64_t timeout_ns, Jaunt__Control **message)
{
	if (!link->count && !link->closed) {
		int result = ring_wait(link->ring, timeout_ns);
		if (result < 0)
			return result;
	}
	if (link->count) {
		*message = link->queue[link->head];
		link->head = (link->head + 1) % LINK_QUEUE_MAX;
		link->count--;
		if (link->paused && link->count < LINK_QUEUE_MAX / 2 && !link->closed) {
			link->paused = false;
			channel_pause(link->channel, false);
		}
		return 1;
	}
	if (link->closed)
		return link->error.code ? -link->error.code
					: (link->close_error ? link->close_error : -ECONNRESET);
	return 0;
}

int link_flush(struct link *link, int64_t timeout_ns)
{
	uint64_t end = clock_ns() + (uint64_t)timeout_ns;

	while (!link->closed && link->done_cookie != link->next_cookie) {
		uint64_t now = clock_ns();
		if (now >= end)
			return -ETIMEDOUT;
		int result = ring_wait(link->ring, (int64_t)(end - now));
		if (result < 0)
			return result;
	}
	return link->closed && link->done_cookie != link->next_cookie ? -EPIPE : 0;
}

int link_why(const struct link *link, struct jaunt_error *error)
{
	if (link->error.code) {
		if (error)
			*error = link->error;
		return -link->error.code;
	}
	if (!link->closed && link->unsent == -ECANCELED)
		return error_set(error, ECANCELED, "cancelled", "cancelled");
	if (!link->closed && link->unsent)
		return error_set(error, ETIMEDOUT, "peer-silent",
				 "the peer has taken no message for %" PRIu64 " ms",
				 link->send_timeout_ns / 1000000);
	if (!link->close_error)
		return error_set(error, ECONNRESET, "link-lost", "the peer closed the connection");
	const char *device = link->channel ? channel_failure(link->channel) : "";
	return error_set(error, -link->close_error, "link-lost",
			 "the link to the peer was lost: %s%s%s", strerror(-link->close_error),
			 device[0] ? "; " : "", device);
}
