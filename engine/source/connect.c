/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preparing, before the pause: the control link, the agreement on versions and on the VM, and then
 * the page channels (channels.c). All of it while the VM runs; whatever fails here costs it
 * nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/hello.h"
#include "engine/source/source.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define MS_NS      1000000u
#define EXPLAIN_NS (200u * MS_NS)
#define PINGS      7u

uint64_t source_deadline(const struct source *source)
{
	return clock_ns() + (uint64_t)source->base.options.peer_timeout_ms * MS_NS;
}

int source_unexpected(const Jaunt__Control *message, struct jaunt_error *error)
{
	switch (message->message_case) {
	case JAUNT__CONTROL__MESSAGE_REFUSED: {
		const Jaunt__Refused *refused = message->refused;
		int result =
			error_set(error, EPERM, refused->reason[0] ? refused->reason : "refused",
				  "the target refuses");
		for (size_t i = 0; i < refused->n_texts; i++) {
			size_t used = strlen(error->text);
			snprintf(error->text + used, sizeof(error->text) - used, "%s%s",
				 i ? "; " : ": ", refused->texts[i]);
		}
		return result;
	}
	case JAUNT__CONTROL__MESSAGE_FAILED:
		return error_set(error,
				 strcmp(message->failed->reason, "cancelled") == 0 ? ECANCELED
										   : EREMOTEIO,
				 message->failed->reason[0] ? message->failed->reason : "failed",
				 "the target gave up: %s", message->failed->text);
	default:
		return error_set(error, EPROTO, "protocol",
				 "the target sent %s where it has no place", control_name(message));
	}
}

static bool is_to_end(void *user)
{
	struct source *source = user;
	return (atomic_load(&source->base.cancel) && !source->insists) ||
	       atomic_load(&source->base.abandon);
}

int source_look(struct source *source, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error)
{
	uint64_t explain_ns = 0; /* how long a loss may still be explained; 0: nothing is lost */

	do {
		if (source->exposing)
			source_tell_exposed(source);
		uint64_t now = clock_ns();
		uint64_t end_ns = explain_ns ? explain_ns : until_ns;
		int result = link_next(&source->link, end_ns > now ? (int64_t)(end_ns - now) : 0,
				       message);
		if (result == 1 &&
		    (*message)->message_case == JAUNT__CONTROL__MESSAGE_CANCEL_REQUEST) {
			control_free(*message);
			return error_set(error, ECANCELED, "cancelled", "cancelled at the target");
		}
		if (result == 1 && (*message)->message_case == JAUNT__CONTROL__MESSAGE_FAILED)
			source->state_sent = false; /* it has nothing loaded, and is not in doubt */
		if (result == 1)
			return 1;
		if (result < 0)
			return link_why(&source->link, error);
		if (is_to_end(source))
			return error_set(error, ECANCELED, "cancelled", "cancelled");
		if (process_check(&source->process, 0, error) < 0)
			return -error->code;
		if (!atomic_load(&source->shared.session.lost))
			return 0;
		/* A target that gives up says so and then closes its channels, but each is read by
		 * another thread: its word may be here in a moment. */
		if (!explain_ns)
			explain_ns = clock_ns() + EXPLAIN_NS;
	} while (clock_ns() < explain_ns);
	pthread_mutex_lock(&source->shared.session.mutex);
	*error = source->shared.session.why;
	pthread_mutex_unlock(&source->shared.session.mutex);
	return -error->code;
}

int source_next(struct source *source, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error)
{
	for (;;) {
		int result = source_look(source, until_ns, message, error);
		if (result != 0)
			return result;
		if (clock_ns() >= until_ns)
			return error_set(error, ETIMEDOUT, "peer-silent",
					 "the target said nothing for %u ms",
					 source->base.options.peer_timeout_ms);
	}
}

/* --- The first 96 bytes on the control link
 * ------------------------------------------------------------ */

struct knock {
	uint8_t answer[PREAMBLE_BYTES];
	size_t bytes;
	bool done, closed;
	int error;
};

static size_t knock_received(void *user, const uint8_t *data, size_t bytes)
{
	struct knock *knock = user;

	/* What the peer begins with is kept, for the error message. */
	knock->bytes = bytes < PREAMBLE_BYTES ? bytes : PREAMBLE_BYTES;
	memcpy(knock->answer, data, knock->bytes);
	if (bytes < PREAMBLE_BYTES)
		return 0;
	knock->done = true;
	return PREAMBLE_BYTES;
}

static void knock_closed(void *user, int error)
{
	struct knock *knock = user;

	knock->closed = true;
	knock->error = error;
}

static const struct channel_events knock_events = {.received = knock_received,
						   .closed = knock_closed};

/* Says who we are, and waits until the other side answers as a target does. */
static int knock(struct source *source, struct channel *channel, uint32_t epoch,
		 struct jaunt_error *error)
{
	struct knock state = {.bytes = 0};
	uint64_t until = clock_ns() + (uint64_t)source->wait_ms * MS_NS;
	struct attach attach;
	const char *why = NULL;
	int result = channel_bind(channel, source->ring, &knock_events, &state, PREAMBLE_BYTES);

	if (result == 0 && epoch)
		result = preamble_prove(channel, &source->shared.session, true, epoch);
	else if (result == 0)
		result = preamble_send(channel, &source->shared.session, ATTACH_CONTROL, 0);
	if (result < 0)
		return error_set(error, -result, "link-lost", "talk to %s: %s",
				 source->base.options.peer, strerror(-result));
	while (!state.done && !state.closed) {
		uint64_t now = clock_ns();
		bool other =
			state.bytes >= 2 && (state.answer[0] | state.answer[1] << 8) != FRAME_MAGIC;
		if (other || now >= until || is_to_end(source))
			break;
		ring_wait(source->ring, (int64_t)(until - now));
	}
	channel_unbind(channel);
	if (state.done && preamble_parse(state.answer, &attach, &why)) {
		/* One that is of no session has a refusal to tell behind that. */
		source->proven = epoch && session_proves(&source->shared.session, &attach, false);
		if (!epoch || source->proven || !session_named(&attach))
			return 0;
		why = "it answers for another session";
	}
	if (is_to_end(source))
		return error_set(error, ECANCELED, "cancelled", "cancelled");
	if (why || state.bytes >= 2)
		return error_set(error, EPROTO, "not-jaunt",
				 "whoever listens at %s does not speak Jaunt's protocol%s%s. Is it "
				 "`jaunt receive` that runs there?",
				 source->base.options.peer, why ? ": " : "", why ? why : "");
	if (state.closed)
		return error_set(
			error, ECONNRESET, "turned-away",
			"%s closed the connection at once: it is not a `jaunt receive`, or "
			"it is taking another VM",
			source->base.options.peer);
	return error_set(error, ETIMEDOUT, "peer-silent",
			 "%s accepted the connection and said nothing for %u ms: it is not a "
			 "`jaunt receive`, or it hangs",
			 source->base.options.peer, source->wait_ms);
}

int source_open_control(struct source *source, uint32_t epoch, struct jaunt_error *error)
{
	struct channel *channel;
	int result = source_open_channel(source, &channel, ATTACH_CONTROL, error);

	if (result < 0)
		return result;
	result = knock(source, channel, epoch, error);
	if (result < 0) {
		channel_free(channel);
		return result;
	}
	result = link_open(&source->link, channel, source->ring);
	if (result < 0)
		return error_set(error, -result, "io_uring", "serve the control link: %s",
				 strerror(-result));
	source->link.send_timeout_ns = (uint64_t)source->base.options.peer_timeout_ms * MS_NS;
	source->link.gives_up = is_to_end;
	source->link.user = source;
	source->linked = true;
	migration_device(&source->base, channel_device(channel));
	return 0;
}

/* --- The agreement
 * --------------------------------------------------------------------------------------- */

int source_greet(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = hello_send(&source->link);

	if (result < 0)
		return link_why(&source->link, error);
	result = source_next(source, source_deadline(source), &message, error);
	if (result < 0)
		return result;
	if (message->message_case != JAUNT__CONTROL__MESSAGE_HELLO) {
		result = source_unexpected(message, error);
	} else {
		source->same_clock = hello_same_clock(message->hello);
		source->takes_set_push = hello_has(message->hello, "set-push");
		source->takes_holes = hello_has(message->hello, "holes-told");
		source->takes_read = hello_has(message->hello, "read");
		source->takes_ahead = hello_has(message->hello, "state-ahead");
		source->takes_rejoin = hello_has(message->hello, "rejoin");
		result = hello_check(message->hello, error);
		if (result >= 0 && strcmp(source->base.options.mode, "post-copy") != 0 &&
		    !hello_has(message->hello, "rounds"))
			result =
				error_set(error, EPROTONOSUPPORT, "feature",
					  "the target knows no mode but post-copy (%s): update it, "
					  "or use that",
					  message->hello->software);
		if (result >= 0 && source->base.options.verify &&
		    !hello_has(message->hello, "verify-xxh3"))
			result = error_set(
				error, EPROTONOSUPPORT, "feature",
				"the target cannot verify pages (%s): leave --verify out, "
				"or update it",
				message->hello->software);
	}
	control_free(message);
	return result < 0 ? result : 0;
}

static int send_configure(struct source *source, struct jaunt_error *error)
{
	const struct jaunt_description *vm = &source->description;
	const struct jaunt_options *options = &source->base.options;
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Configure configure = JAUNT__CONFIGURE__INIT;
	Jaunt__Property *properties = calloc(vm->property_count + 1, sizeof(*properties));
	Jaunt__Property **property_list = calloc(vm->property_count + 1, sizeof(*property_list));
	Jaunt__Region *regions = calloc(vm->region_count + 1, sizeof(*regions));
	Jaunt__Region **region_list = calloc(vm->region_count + 1, sizeof(*region_list));
	int result = -ENOMEM;

	if (!properties || !property_list || !regions || !region_list)
		goto out;
	for (size_t i = 0; i < vm->property_count; i++) {
		jaunt__property__init(&properties[i]);
		properties[i].key = (char *)vm->properties[i].key;
		properties[i].value = (char *)vm->properties[i].value;
		property_list[i] = &properties[i];
	}
	for (size_t i = 0; i < vm->region_count; i++) {
		jaunt__region__init(&regions[i]);
		regions[i].name = (char *)vm->regions[i].name;
		regions[i].guest_address = vm->regions[i].guest_address;
		regions[i].bytes = vm->regions[i].bytes;
		regions[i].page_bytes = vm->regions[i].page_bytes;
		region_list[i] = &regions[i];
	}
	configure.session.data = source->shared.session.id;
	configure.session.len = SESSION_ID_BYTES;
	configure.secret.data = source->shared.session.secret;
	configure.secret.len = SESSION_SECRET_BYTES;
	configure.vm_name = (char *)vm->name;
	configure.driver = (char *)source->ops->driver;
	configure.properties = property_list;
	configure.n_properties = vm->property_count;
	configure.regions = region_list;
	configure.n_regions = vm->region_count;
	configure.mode = (char *)options->mode;
	configure.push = options->push;
	configure.streams = options->streams;
	configure.verify = options->verify;
	configure.dry_run = options->dry_run;
	configure.rounds = migration_has_rounds(options->mode);
	configure.allowed = (char **)options->allowed;
	configure.n_allowed = options->allowed_count;
	message.message_case = JAUNT__CONTROL__MESSAGE_CONFIGURE;
	message.configure = &configure;
	result = link_send(&source->link, &message);
out:
	free(properties);
	free(property_list);
	free(regions);
	free(region_list);
	if (result == -ENOMEM)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	return result < 0 ? link_why(&source->link, error) : 0;
}

/* For whoever asks by jaunt_migration_differences(); without memory the error's text must do. */
static void keep_differences(struct source *source, const Jaunt__Refused *refused)
{
	struct differences told;

	if (differences_take(&told, refused) < 0)
		return;
	pthread_mutex_lock(&source->base.mutex);
	struct differences former = source->base.differences;
	source->base.differences = told;
	pthread_mutex_unlock(&source->base.mutex);
	differences_close(&former);
}

int source_take_ready(struct source *source, const Jaunt__Ready *ready, struct jaunt_error *error)
{
	if (!ready->fault_threads || ready->fault_threads > SOURCE_SERVES_MAX)
		return error_set(error, EPROTO, "protocol",
				 "the target wants %u urgent channels; there can be 1 to %u",
				 ready->fault_threads, SOURCE_SERVES_MAX);
	source->serve_count = ready->fault_threads;
	return 0;
}

static int agree(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = send_configure(source, error);

	if (result == 0) /* creating a large VM takes its time */
		result = source_next(source, source_deadline(source) + 30000ull * MS_NS, &message,
				     error);
	if (result < 0)
		return result;
	if (message->message_case == JAUNT__CONTROL__MESSAGE_REFUSED)
		keep_differences(source, message->refused);
	result = message->message_case == JAUNT__CONTROL__MESSAGE_READY
			 ? source_take_ready(source, message->ready, error)
			 : source_unexpected(message, error);
	control_free(message);
	return result;
}

/* --- The whole
 * -----------------------------------------------------------------------------------------------
 */

static int await_attached(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = source_next(source, source_deadline(source), &message, error);

	if (result < 0)
		return result;
	result = message->message_case == JAUNT__CONTROL__MESSAGE_ATTACHED
			 ? 0
			 : source_unexpected(message, error);
	control_free(message);
	return result;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

uint64_t source_send_ping(struct source *source)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Ping ping = JAUNT__PING__INIT;

	ping.sent_ns = clock_ns();
	message.message_case = JAUNT__CONTROL__MESSAGE_PING;
	message.ping = &ping;
	link_send(&source->link, &message);
	return ping.sent_ns;
}

int source_take_pong(Jaunt__Control *message, struct jaunt_error *error)
{
	int result = message->message_case == JAUNT__CONTROL__MESSAGE_PONG
			     ? 0
			     : source_unexpected(message, error);
	control_free(message);
	return result;
}

int source_ping(struct source *source, uint64_t *took_ns, struct jaunt_error *error)
{
	Jaunt__Control *answer;
	uint64_t sent_ns = source_send_ping(source);
	int result = source_next(source, source_deadline(source), &answer, error);

	if (result < 0)
		return result;
	*took_ns = clock_ns() - sent_ns;
	return source_take_pong(answer, error);
}

static int measure_round_trip(struct source *source, struct jaunt_error *error)
{
	uint64_t took[PINGS];

	for (unsigned i = 0; i < PINGS; i++) {
		int result = source_ping(source, &took[i], error);
		if (result < 0)
			return result;
	}
	qsort(took, PINGS, sizeof(took[0]), compare);
	source->round_trip_ns = took[PINGS / 2];
	return 0;
}

static void holes_found(void *user)
{
	struct source *source = user;
	worker_wake(&source->pushers[0]->worker);
}

/* What is exposed in one session is of no use to another's channels. */
static uint64_t next_group(void)
{
	static _Atomic uint64_t last;
	return atomic_fetch_add(&last, 1) + 1;
}

int source_connect(struct source *source, struct jaunt_error *error)
{
	int result;

	if (session_create(&source->shared.session) < 0)
		return error_set(error, EIO, "random", "the kernel gives no random numbers");
	source->shared.session.verify = source->base.options.verify;
	source->stream_count = source->base.options.streams;
	source->shared.streams = source->stream_count;
	atomic_store(&source->shared.paced, source_stream_rate(source) != 0);
	if ((result = migration_check_address(&source->base.options, &source->peer, false, error)) <
	    0)
		return result;
	source->peer.group = next_group(); /* parsing made it 0 */
	source->wait_ms = source->base.options.connect_timeout_ms;
	if ((result = source_open_control(source, 0, error)) < 0 ||
	    (result = source_greet(source, error)) < 0 || (result = agree(source, error)) < 0)
		return result;
	if (source->base.options.dry_run)
		return 0;
	holes_init(&source->holes, &source->shared.memory, holes_found, source);
	rounds_init(&source->precopy.rounds, &source->shared, source_wake_streams, source);
	if ((result = source_open_channels(source, error)) < 0)
		return result;
	if ((result = await_attached(source, error)) < 0 ||
	    (result = measure_round_trip(source, error)) < 0)
		return result;
	return source_expose(source, error);
}
