/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the target's thread does between two steps: waits, lets visitors in at the gate, answers
 * pings, and hands on the next control message.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/target/target.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define MS_NS      1000000u
#define EXPLAIN_NS (200u * MS_NS)

/* Of what create() refused in this attempt, if it did. */
static void tell_differences(struct target *target, Jaunt__Refused *refused)
{
	const struct jaunt_vm_factory *factory = target->factory;
	const struct jaunt_difference *all = NULL;

	if (!target->differ || !factory->differences)
		return;
	size_t count = factory->differences(target->context, &all);
	differences_tell(refused, all, count);
}

void target_say(struct target *target, Jaunt__Control__MessageCase what, const char *reason,
		const char *text)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Refused refused = JAUNT__REFUSED__INIT;
	Jaunt__Failed failed = JAUNT__FAILED__INIT;
	Jaunt__Attached attached = JAUNT__ATTACHED__INIT;
	Jaunt__CancelRequest cancel = JAUNT__CANCEL_REQUEST__INIT;
	char *texts[] = {(char *)text};

	message.message_case = what;
	switch (what) {
	case JAUNT__CONTROL__MESSAGE_REFUSED:
		refused.reason = (char *)reason;
		refused.texts = texts;
		refused.n_texts = 1;
		tell_differences(target, &refused);
		message.refused = &refused;
		break;
	case JAUNT__CONTROL__MESSAGE_FAILED:
		failed.reason = (char *)reason;
		failed.text = (char *)text;
		message.failed = &failed;
		break;
	case JAUNT__CONTROL__MESSAGE_ATTACHED:
		message.attached = &attached;
		break;
	default:
		message.cancel_request = &cancel;
		break;
	}
	link_send(&target->link, &message);
	differences_untell(&refused);
}

static bool is_abandoned(void *user)
{
	struct target *target = user;
	return atomic_load(&target->base.abandon);
}

bool target_admits(void *user, const uint8_t token[CONNECT_TOKEN_BYTES])
{
	const struct target *target = user;

	/* Once a VM is prepared nobody but its source has business here, linked or not. */
	return session_admits(&target->shared.session,
			      target->prepared || (target->linked && !target->link.closed), token);
}

int target_open_link(struct target *target, struct channel *channel)
{
	channel_timeout(channel, target->base.options.peer_timeout_ms);
	int result = link_open(&target->link, channel, target->ring);
	if (result < 0)
		return result;
	target->link.gives_up = is_abandoned;
	target->link.user = target;
	target->linked = true;
	target->pinged_ns = 0;
	atomic_store(&target->shared.round_trip_ns, 0);
	migration_device(&target->base, channel_device(channel));
	return 0;
}

static void let_in(struct target *target, struct channel *channel, const struct attach *attach)
{
	if (session_named(attach)) {
		target_rejoin_knock(target, channel, attach);
	} else if (!target->awaits_source || target->linked) { /* one VM at a time */
		gate_refuse(&target->gate, channel, "busy",
			    "this target is taking a VM, and takes one at a time");
	} else if (target_open_link(target, channel) == 0 &&
		   preamble_send(channel, &target->shared.session, ATTACH_CONTROL, 0) < 0) {
		target_drop_link(target);
	}
}

void target_drop_link(struct target *target)
{
	if (target->linked)
		link_close(&target->link);
	target->linked = false;
}

/* A peer that answers what we ask it now and then is alive; a PONG has no other use here. */
static bool is_pong(const Jaunt__Control *message)
{
	return message->message_case == JAUNT__CONTROL__MESSAGE_PONG;
}

/* The source pings again as soon as it has its answer, so two pings are a round trip apart. */
static void note_ping(struct target *target)
{
	uint64_t now = clock_ns(), apart = now - target->pinged_ns;
	uint64_t least = atomic_load(&target->shared.round_trip_ns);

	if (target->pinged_ns && (!least || apart < least))
		atomic_store(&target->shared.round_trip_ns, apart);
	target->pinged_ns = now;
}

static bool answer_ping(struct target *target, const Jaunt__Control *message)
{
	if (message->message_case != JAUNT__CONTROL__MESSAGE_PING)
		return false;
	note_ping(target);
	Jaunt__Control answer = JAUNT__CONTROL__INIT;
	Jaunt__Pong pong = JAUNT__PONG__INIT;
	pong.sent_ns = message->ping->sent_ns;
	answer.message_case = JAUNT__CONTROL__MESSAGE_PONG;
	answer.pong = &pong;
	link_send(&target->link, &answer);
	return true;
}

static void all_attached(struct target *target)
{
	target->channels_wanted = false;
	target_say(target, JAUNT__CONTROL__MESSAGE_ATTACHED, NULL, NULL);
	if (!target->link_epoch)
		return;
	pthread_mutex_lock(&target->base.mutex);
	target->base.status.reconnections++;
	pthread_mutex_unlock(&target->base.mutex);
	trace_event(target->base.lane, "rejoined", "epoch %" PRIu32, target->link_epoch);
}

/* One wait: lets visitors in, and takes a message if there is one. 1: *message. 0: something else
 * happened, or the time is up. -errno: the link is down. */
int target_turn(struct target *target, uint64_t until_ns, Jaunt__Control **message)
{
	uint64_t now = clock_ns();
	uint64_t gate_ns = gate_deadline_ns(&target->gate);
	uint64_t until = gate_ns < until_ns ? gate_ns : until_ns;
	uint32_t link_epoch = target->link_epoch;
	int64_t timeout = until == UINT64_MAX ? -1 : until > now ? (int64_t)(until - now) : 0;
	int result;

	if (target->linked)
		result = link_next(&target->link, timeout, message);
	else
		result = ring_wait(target->ring, timeout) < 0 ? -EIO : 0;

	struct channel *channel;
	struct attach attach;
	while (gate_take(&target->gate, &channel, &attach)) {
		if (attach.role == ATTACH_CONTROL)
			let_in(target, channel, &attach);
		else
			target_attach(target, channel, &attach);
	}
	if (target->link_epoch != link_epoch) {
		/* The last word of a link that another has taken the place of, or its end; what
		 * counts the source says again. */
		if (result == 1)
			control_free(*message);
		result = 0;
	}
	if (target->channels_wanted && target_attached(target))
		all_attached(target);
	int push = atomic_exchange(&target->base.set_push, -1);
	if (push >= 0)
		target->base.side->set_push(&target->base, push);
	if (result == 1 && (*message)->message_case == JAUNT__CONTROL__MESSAGE_SET_PUSH) {
		target->base.side->set_push(&target->base, (*message)->set_push->push);
		control_free(*message);
		return 0;
	}
	if (result == 1 && target_rejoin_take(target, *message)) {
		control_free(*message);
		return 0;
	}
	if (result == 1 && (is_pong(*message) || answer_ping(target, *message) ||
			    target_take_exposed(target, *message))) {
		control_free(*message);
		return 0;
	}
	return result;
}

int target_look(struct target *target, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error)
{
	uint64_t explain_ns = 0; /* how long a loss may still be explained; 0: nothing is lost */

	do {
		int result = target_turn(target, explain_ns ? explain_ns : until_ns, message);
		if (result == 1)
			return 1;
		if (result < 0)
			return link_why(&target->link, error);
		if (atomic_load(&target->base.cancel) || atomic_load(&target->base.abandon))
			return error_set(error, ECANCELED, "cancelled", "cancelled here");
		if (process_check(&target->process, 0, error) < 0)
			return -error->code;
		if (!atomic_load(&target->shared.session.lost))
			return 0;
		/* A source that gives up says so and then closes its channels, but each is read by
		 * another thread, and here device state may come first. */
		if (!explain_ns)
			explain_ns = clock_ns() + EXPLAIN_NS;
	} while (clock_ns() < explain_ns);
	pthread_mutex_lock(&target->shared.session.mutex);
	*error = target->shared.session.why;
	pthread_mutex_unlock(&target->shared.session.mutex);
	return -error->code;
}

/* Waits for the next message until the deadline. 1, or -errno with `error`: too late, link down,
 * cancelled here, a page channel lost. */
int target_next(struct target *target, uint64_t until_ns, Jaunt__Control **message,
		struct jaunt_error *error)
{
	for (;;) {
		int result = target_look(target, until_ns, message, error);
		if (result != 0)
			return result;
		if (clock_ns() >= until_ns)
			return error_set(error, ETIMEDOUT, "peer-silent",
					 "the source said nothing for %u ms",
					 target->base.options.peer_timeout_ms);
	}
}

uint64_t target_deadline(const struct target *target)
{
	return clock_ns() + (uint64_t)target->base.options.peer_timeout_ms * MS_NS;
}

int target_unexpected(const Jaunt__Control *message, struct jaunt_error *error)
{
	if (message->message_case == JAUNT__CONTROL__MESSAGE_ABORT)
		return error_set(error,
				 strcmp(message->abort->reason, "cancelled") == 0 ? ECANCELED
										  : EREMOTEIO,
				 message->abort->reason[0] ? message->abort->reason : "aborted",
				 "the source gave up: %s", message->abort->text);
	return error_set(error, EPROTO, "protocol", "the source sent %s where it has no place",
			 control_name(message));
}
