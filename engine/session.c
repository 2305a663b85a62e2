/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/session.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "transport/ring.h"

int session_create(struct session *session)
{
	if (getrandom(session->id, sizeof(session->id), 0) != sizeof(session->id) ||
	    getrandom(session->secret, sizeof(session->secret), 0) != sizeof(session->secret))
		return -EIO;
	return 0;
}

void session_wake(struct session *session)
{
	pthread_mutex_lock(&session->mutex);
	if (session->owner)
		ring_wake(session->owner);
	pthread_mutex_unlock(&session->mutex);
}

void session_set_owner(struct session *session, struct ring *ring)
{
	pthread_mutex_lock(&session->mutex);
	session->owner = ring;
	pthread_mutex_unlock(&session->mutex);
}

static void lose(struct session *session, uint32_t attachment, const char *reason,
		 const char *format, va_list arguments)
{
	char text[512];

	vsnprintf(text, sizeof(text), format, arguments);
	pthread_mutex_lock(&session->mutex);
	bool now = attachment == SESSION_NOW || attachment == atomic_load(&session->attachment);
	if (now && !atomic_load(&session->lost)) {
		error_set(&session->why, ECONNRESET, reason, "%s", text);
		atomic_store(&session->local, attachment == SESSION_NOW);
		atomic_store(&session->lost, true);
	}
	if (now && session->owner)
		ring_wake(session->owner);
	pthread_mutex_unlock(&session->mutex);
}

void session_lose(struct session *session, const char *reason, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	lose(session, SESSION_NOW, reason, format, arguments);
	va_end(arguments);
}

void session_lose_of(struct session *session, uint32_t attachment, const char *reason,
		     const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	lose(session, attachment, reason, format, arguments);
	va_end(arguments);
}

void session_lose_channel(struct session *session, uint32_t attachment,
			  const struct channel *channel, int error, const char *what)
{
	const char *device = error ? channel_failure(channel) : "";

	session_lose_of(session, attachment, "link-lost", "%s was lost: %s%s%s", what,
			error ? strerror(-error) : "closed by the peer", device[0] ? "; " : "",
			device);
}

uint32_t session_reattach(struct session *session, uint32_t epoch)
{
	pthread_mutex_lock(&session->mutex);
	uint32_t attachment = atomic_fetch_add(&session->attachment, 1) + 1;
	atomic_store(&session->epoch, epoch);
	atomic_store(&session->lost, false);
	atomic_store(&session->local, false);
	pthread_mutex_unlock(&session->mutex);
	return attachment;
}

/* --- The first 96 bytes
 * --------------------------------------------------------------------------------- */

/* Larger than a head: two messages, which the channel gathers into one. */
static int send_attach(struct channel *channel, const struct attach *attach)
{
	struct frame frame = {.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES};
	uint8_t head[FRAME_BYTES], body[ATTACH_BYTES];

	frame_encode(&frame, head);
	attach_encode(attach, body);
	int result = channel_send(channel, head, sizeof(head), NULL, 0, 0);
	if (result < 0)
		return result;
	return channel_send(channel, body, sizeof(body), NULL, 0, 0);
}

/* Of the secret: the source's comes first. */
#define HALF (SESSION_SECRET_BYTES / 2)

#define TOKEN_SECRET (CONNECT_TOKEN_BYTES - SESSION_SECRET_BYTES) /* where it begins */

void session_token(const struct session *session, enum attach_role role, bool again,
		   uint8_t token[CONNECT_TOKEN_BYTES])
{
	memset(token, 0, CONNECT_TOKEN_BYTES);
	token[0] = (uint8_t)role;
	if (role != ATTACH_CONTROL)
		memcpy(token + TOKEN_SECRET, session->secret, SESSION_SECRET_BYTES);
	else if (again)
		memcpy(token + TOKEN_SECRET, session->secret, HALF);
}

bool session_admits(const struct session *session, bool linked,
		    const uint8_t token[CONNECT_TOKEN_BYTES])
{
	if (!linked)
		return token[0] == ATTACH_CONTROL;
	size_t bytes = token[0] == ATTACH_CONTROL ? HALF : SESSION_SECRET_BYTES;
	return session_equal(token + TOKEN_SECRET, session->secret, bytes);
}

int preamble_send(struct channel *channel, const struct session *session, enum attach_role role,
		  unsigned index)
{
	struct attach attach = {.role = (uint16_t)role, .index = (uint16_t)index};

	if (role != ATTACH_CONTROL) {
		memcpy(attach.session, session->id, sizeof(attach.session));
		memcpy(attach.secret, session->secret, sizeof(attach.secret));
		attach.epoch = atomic_load(&session->epoch);
	}
	return send_attach(channel, &attach);
}

int preamble_prove(struct channel *channel, const struct session *session, bool source,
		   uint32_t epoch)
{
	struct attach attach = {.role = ATTACH_CONTROL, .epoch = epoch};
	size_t at = source ? 0 : HALF;

	memcpy(attach.session, session->id, sizeof(attach.session));
	memcpy(attach.secret + at, session->secret + at, HALF);
	return send_attach(channel, &attach);
}

bool session_proves(const struct session *session, const struct attach *attach, bool source)
{
	size_t at = source ? 0 : HALF;
	bool same = session_equal(attach->session, session->id, SESSION_ID_BYTES);

	/* Both are compared whatever the first one says. */
	return session_equal(attach->secret + at, session->secret + at, HALF) & same;
}

bool session_named(const struct attach *attach)
{
	static const uint8_t none[SESSION_ID_BYTES];

	return memcmp(attach->session, none, sizeof(none)) != 0;
}

bool preamble_parse(const uint8_t *bytes, struct attach *attach, const char **why)
{
	struct frame frame;
	enum frame_fault fault = frame_decode(&frame, bytes);

	if (fault != FRAME_OK) {
		*why = frame_fault_text(fault);
		return false;
	}
	if (frame.type != FRAME_ATTACH || frame.payload_bytes != ATTACH_BYTES ||
	    !attach_decode(attach, bytes + FRAME_BYTES)) {
		*why = "the peer begins with something other than a well-formed ATTACH";
		return false;
	}
	return true;
}

int preamble_take_echo(const uint8_t *data, size_t bytes, const char **why)
{
	struct attach attach;

	if (bytes < PREAMBLE_BYTES)
		return 0;
	return preamble_parse(data, &attach, why) ? PREAMBLE_BYTES : -EPROTO;
}
