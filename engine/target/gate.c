/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/gate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static void turn_away(struct gate_visitor *visitor, const char *why)
{
	snprintf(visitor->gate->turned_away, sizeof(visitor->gate->turned_away), "%.100s: %s",
		 channel_name(visitor->channel), why);
	visitor->gate->turned_away_count++;
	visitor->refused = true;
}

static size_t gate_received(void *user, const uint8_t *data, size_t bytes)
{
	struct gate_visitor *visitor = user;
	const char *why;

	if (visitor->leaving || visitor->refused)
		return bytes;
	if (visitor->arrived)
		return 0;
	/* Whoever speaks another protocol shows it in the first bytes, and may send few. */
	if (bytes >= 2 && (data[0] | data[1] << 8) != FRAME_MAGIC) {
		turn_away(visitor, frame_fault_text(FRAME_BAD_MAGIC));
		return bytes;
	}
	if (bytes < PREAMBLE_BYTES)
		return 0;
	if (!preamble_parse(data, &visitor->attach, &why)) {
		turn_away(visitor, why);
		return bytes;
	}
	visitor->arrived = true;
	return PREAMBLE_BYTES;
}

static void gate_closed(void *user, int error)
{
	struct gate_visitor *visitor = user;

	(void)error;
	if (visitor->leaving)
		visitor->refused = true;
	if (!visitor->refused)
		turn_away(visitor, "it closed the connection before saying what it wants");
	visitor->arrived = false;
}

static const struct channel_events gate_events = {.received = gate_received, .closed = gate_closed};

static void let_go(struct gate_visitor *visitor)
{
	channel_drop(visitor->channel);
	free(visitor->farewell);
	visitor->channel = NULL;
	visitor->farewell = NULL;
}

static void evict(struct gate_visitor *visitor)
{
	if (!visitor->refused && !visitor->leaving)
		turn_away(visitor, "it said nothing, and others came");
	let_go(visitor);
}

/* A free place, if need be that of the visitor who has been standing there for longest: a crowd
 * that says nothing must not keep out the one who would. NULL: all of them have arrived. */
static struct gate_visitor *place_for(struct gate *gate)
{
	struct gate_visitor *oldest = NULL;

	for (unsigned i = 0; i < GATE_PENDING_MAX; i++) {
		struct gate_visitor *visitor = &gate->visitors[i];
		if (!visitor->channel)
			return visitor;
		if (!visitor->arrived && (!oldest || visitor->deadline_ns < oldest->deadline_ns))
			oldest = visitor;
	}
	if (oldest)
		evict(oldest);
	return oldest;
}

/* Whoever comes over such a transport costs more, even before it says anything. */
static bool gate_admits(void *user, const uint8_t token[CONNECT_TOKEN_BYTES])
{
	struct gate *gate = user;
	struct gate_visitor *oldest = NULL;
	unsigned waiting = 0;

	if (!gate->admit(gate->user, token))
		return false;
	for (unsigned i = 0; i < GATE_PENDING_MAX; i++) {
		struct gate_visitor *visitor = &gate->visitors[i];
		if (!visitor->channel || visitor->arrived)
			continue;
		waiting++;
		if (!oldest || visitor->deadline_ns < oldest->deadline_ns)
			oldest = visitor;
	}
	if (waiting >= GATE_ADMITTED_MAX)
		evict(oldest);
	return true;
}

static void gate_accepted(void *user, struct channel *channel, int error)
{
	struct gate *gate = user;

	if (!channel) {
		snprintf(gate->turned_away, sizeof(gate->turned_away), "accept a connection: %s",
			 strerror(-error));
		return;
	}
	struct gate_visitor *visitor = place_for(gate);
	if (!visitor) {
		channel_drop(channel);
		return;
	}
	*visitor = (struct gate_visitor){.gate = gate,
					 .channel = channel,
					 .deadline_ns = clock_ns() +
							(uint64_t)gate->timeout_ms * 1000000u};
	/* The buffer holds just the preamble, so nothing behind it can get lost here. */
	if (channel_bind(channel, gate->ring, &gate_events, visitor, PREAMBLE_BYTES) < 0)
		visitor->refused = true;
}

int gate_open(struct gate *gate, struct listener *listener, struct ring *ring, uint32_t timeout_ms,
	      bool (*admit)(void *user, const uint8_t token[CONNECT_TOKEN_BYTES]), void *user)
{
	memset(gate, 0, sizeof(*gate));
	gate->listener = listener;
	gate->ring = ring;
	gate->timeout_ms = timeout_ms;
	gate->admit = admit;
	gate->user = user;
	listener_admit(listener, admit ? gate_admits : NULL, gate);
	return listener_bind(listener, ring, gate_accepted, gate);
}

void gate_close(struct gate *gate)
{
	if (!gate->listener)
		return;
	listener_unbind(gate->listener);
	listener_admit(gate->listener, NULL, NULL);
	for (unsigned i = 0; i < GATE_PENDING_MAX; i++)
		if (gate->visitors[i].channel)
			let_go(&gate->visitors[i]);
	memset(gate, 0, sizeof(*gate));
}

bool gate_take(struct gate *gate, struct channel **channel, struct attach *attach)
{
	uint64_t now = clock_ns();

	for (unsigned i = 0; i < GATE_PENDING_MAX; i++) {
		struct gate_visitor *visitor = &gate->visitors[i];
		if (!visitor->channel)
			continue;
		if (visitor->leaving && now > visitor->deadline_ns)
			visitor->refused = true;
		if (!visitor->refused && !visitor->arrived && now > visitor->deadline_ns)
			turn_away(visitor, "it said nothing in time");
		if (visitor->refused) {
			let_go(visitor);
		} else if (visitor->arrived) {
			channel_unbind(visitor->channel);
			*channel = visitor->channel;
			*attach = visitor->attach;
			visitor->channel = NULL;
			return true;
		}
	}
	return false;
}

/* As a target begins, so that a source of any kind goes on to what comes behind it. */
static void tell(struct gate_visitor *visitor, const char *reason, const char *text)
{
	static const struct session nobody;
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Refused refused = JAUNT__REFUSED__INIT;
	char *texts[] = {(char *)text};
	size_t bytes;

	refused.reason = (char *)reason;
	refused.texts = texts;
	refused.n_texts = 1;
	message.message_case = JAUNT__CONTROL__MESSAGE_REFUSED;
	message.refused = &refused;
	if (control_pack(&message, &visitor->farewell, &bytes) < 0 ||
	    preamble_send(visitor->channel, &nobody, ATTACH_CONTROL, 0) < 0 ||
	    channel_send(visitor->channel, NULL, 0, visitor->farewell, bytes, 0) < 0)
		visitor->refused = true;
}

void gate_refuse(struct gate *gate, struct channel *channel, const char *reason, const char *text)
{
	struct gate_visitor *visitor = place_for(gate);

	if (!visitor) {
		channel_drop(channel);
		return;
	}
	*visitor = (struct gate_visitor){.gate = gate,
					 .channel = channel,
					 .leaving = true,
					 .deadline_ns = clock_ns() +
							(uint64_t)gate->timeout_ms * 1000000u};
	snprintf(gate->turned_away, sizeof(gate->turned_away), "%.100s: %.140s",
		 channel_name(channel), text);
	gate->turned_away_count++;
	if (channel_bind(channel, gate->ring, &gate_events, visitor, PREAMBLE_BYTES) < 0)
		visitor->refused = true;
	else
		tell(visitor, reason, text);
}

uint64_t gate_deadline_ns(const struct gate *gate)
{
	uint64_t deadline = UINT64_MAX;

	for (unsigned i = 0; i < GATE_PENDING_MAX; i++)
		if (gate->visitors[i].channel && gate->visitors[i].deadline_ns < deadline)
			deadline = gate->visitors[i].deadline_ns;
	return deadline;
}
