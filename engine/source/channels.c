/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page channels of the source: one urgent channel for each fault thread of the target, the
 * streams, those for digests, and the threads that serve them. Opened before the pause, and again
 * in place of those that were lost.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/source/source.h"

int source_open_channel(struct source *source, struct channel **channel, enum attach_role role,
			struct jaunt_error *error)
{
	session_token(&source->shared.session, role, source->rejoin.epoch, source->peer.token);
	int result = transport_connect(channel, &source->peer, source->wait_ms, error);
	if (result == 0)
		channel_timeout(*channel, source->base.options.peer_timeout_ms);
	return result;
}

/* Lets go of those of before, which have ended; what they have sent stays counted. */
static void retire_serves(struct source *source)
{
	pthread_mutex_lock(&source->base.mutex);
	for (unsigned i = 0; i < SOURCE_SERVES_MAX; i++) {
		if (!source->serves[i])
			continue;
		source->past_payload_bytes += counter_get(&source->serves[i]->payload_bytes);
		source->past_wire_bytes += counter_get(&source->serves[i]->wire_bytes);
		free(source->serves[i]);
		source->serves[i] = NULL;
	}
	pthread_mutex_unlock(&source->base.mutex);
}

static void retire_pushers(struct source *source)
{
	pthread_mutex_lock(&source->base.mutex);
	for (unsigned i = 0; i < SOURCE_STREAMS_MAX; i++) {
		if (!source->pushers[i])
			continue;
		source->past_payload_bytes += counter_get(&source->pushers[i]->payload_bytes);
		source->past_wire_bytes += counter_get(&source->pushers[i]->wire_bytes);
		source->past_busy_ns += worker_busy_ns(&source->pushers[i]->worker);
		free(source->pushers[i]);
		source->pushers[i] = NULL;
	}
	pthread_mutex_unlock(&source->base.mutex);
}

static int open_serves(struct source *source, struct jaunt_error *error)
{
	retire_serves(source);
	for (unsigned i = 0; i < source->serve_count; i++) {
		struct channel *channel;
		int result = source_open_channel(source, &channel, ATTACH_URGENT, error);
		if (result < 0)
			return result;
		struct serve *serve = calloc(1, sizeof(*serve));
		if (!serve) {
			channel_free(channel);
			return error_set(error, ENOMEM, "no-memory", "out of memory");
		}
		result = serve_start(serve, &source->shared, i, channel);
		pthread_mutex_lock(&source->base.mutex);
		source->serves[i] = serve;
		pthread_mutex_unlock(&source->base.mutex);
		if (result < 0)
			return error_set(error, -result, "start", "start a page server: %s",
					 strerror(-result));
	}
	return 0;
}

uint64_t source_stream_rate(const struct source *source)
{
	uint64_t all = atomic_load(&source->base.bandwidth);
	uint64_t each = all / (source->stream_count ? source->stream_count : 1);

	return all && !each ? 1 : each;
}

static int open_streams(struct source *source, struct jaunt_error *error)
{
	retire_pushers(source);
	for (unsigned i = 0; i < source->stream_count; i++) {
		struct channel *channel;
		int result = source_open_channel(source, &channel, ATTACH_STREAM, error);
		if (result < 0)
			return result;
		uint64_t rate = source_stream_rate(source);
		if (rate && (result = channel_pace(channel, rate)) < 0) {
			channel_free(channel);
			return error_set(error, -result, "bandwidth",
					 "limit the bandwidth of a stream: %s", strerror(-result));
		}
		struct pusher *pusher = calloc(1, sizeof(*pusher));
		if (!pusher) {
			channel_free(channel);
			return error_set(error, ENOMEM, "no-memory", "out of memory");
		}
		result = pusher_start(pusher, &source->shared, i, channel,
				      i == 0 ? &source->holes : NULL, &source->precopy.rounds);
		pthread_mutex_lock(&source->base.mutex);
		source->pushers[i] = pusher;
		/* Who has changed the limit meanwhile did not find this stream. */
		if (result == 0 && source_stream_rate(source) != rate)
			pusher_pace(pusher, source_stream_rate(source));
		pthread_mutex_unlock(&source->base.mutex);
		if (result < 0)
			return error_set(error, -result, "start", "start a stream: %s",
					 strerror(-result));
	}
	return 0;
}

static int open_digester(struct source *source, struct jaunt_error *error)
{
	struct channel *channels[DIGESTER_CHANNELS] = {NULL};
	unsigned count = source->serve_count + source->stream_count;
	int result = 0;

	for (unsigned i = 0; result == 0 && i < count; i++)
		result = source_open_channel(source, &channels[i], ATTACH_VERIFY, error);
	if (result == 0 &&
	    (result = digester_start(&source->digester, &source->shared, channels, count)) < 0)
		error_set(error, -result, "start", "start the digests: %s", strerror(-result));
	for (unsigned i = 0; i < count; i++)
		if (channels[i])
			channel_free(channels[i]);
	return result;
}

int source_open_channels(struct source *source, struct jaunt_error *error)
{
	int result;

	if ((result = open_serves(source, error)) < 0 || (result = open_streams(source, error)) < 0)
		return result;
	return source->base.options.verify ? open_digester(source, error) : 0;
}

void source_stop(struct source *source)
{
	holes_stop(&source->holes);
	for (unsigned i = 0; i < SOURCE_SERVES_MAX; i++)
		if (source->serves[i])
			worker_tell_to_stop(&source->serves[i]->worker);
	for (unsigned i = 0; i < SOURCE_STREAMS_MAX; i++)
		if (source->pushers[i])
			worker_tell_to_stop(&source->pushers[i]->worker);
	expose_stop(&source->expose);
	for (unsigned i = 0; i < SOURCE_SERVES_MAX; i++)
		if (source->serves[i])
			serve_stop(source->serves[i]);
	for (unsigned i = 0; i < SOURCE_STREAMS_MAX; i++)
		if (source->pushers[i])
			pusher_stop(source->pushers[i]);
	digester_stop(&source->digester);
}

void source_disconnect(struct source *source)
{
	source_stop(source);
	expose_close(&source->expose);
}
