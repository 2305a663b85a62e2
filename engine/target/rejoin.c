/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: the source comes back
 *
 * From LOADED on a lost link ends nothing. The listener is still there, and the source, which knows
 * the address, connects again. A control connection that names the session, shows the source's half
 * of the secret and brings a later epoch than any before takes the place of whatever link there is:
 * the old one may be half open and look alive for a while. Shown the target's half in return, the
 * source says HELLO as at first, and then repeats its decision: COMMIT or ABORT. In doubt that is
 * the word that was waited for; after it, it only says that all goes on.
 *
 * With COMMIT the new epoch begins. The page channels of before are dead from then on whatever
 * their threads have noticed: what they say of losses is of an older attachment (session.h), frames
 * of the old epoch are dropped. Each thread is handed its new channels (handover.h) and takes them
 * when it can let go of the old ones; from the table of requests and the page map it knows what to
 * ask for. No claim is held across a wait for a channel, so none has to be released.
 *
 * An attempt of the source that arrives late, when a later one is there, brings an older epoch, and
 * is refused.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/target/target.h"
#include "engine/trace.h"
#include "transport/ring.h"

void target_note_loss(struct target *target)
{
	struct session *session = &target->shared.session;

	if (atomic_load(&session->lost)) {
		pthread_mutex_lock(&session->mutex);
		target->lost = session->why;
		pthread_mutex_unlock(&session->mutex);
	} else {
		link_why(&target->link, &target->lost);
	}
}

void target_lose_link(struct target *target)
{
	if (!target->away)
		target_note_loss(target);
	target_drop_link(target);
	target->channels_wanted = false; /* those of the next link are others */
	target->agreed = false;
	if (!target->away)
		trace_event(target->base.lane, "away", "%s", target->lost.text);
	target->away = true;
}

bool target_in_touch(const struct target *target)
{
	return target->linked && !target->link.closed && target->agreed;
}

static void adopt(struct target *target, struct channel *channel, uint32_t epoch)
{
	target_drop_link(target);
	if (!target->away)
		error_set(&target->lost, ECONNRESET, "link-lost",
			  "the source has lost the link, and is coming back");
	target->channels_wanted = false;
	target->agreed = false;
	target->away = true;
	target->link_epoch = epoch;
	if (target_open_link(target, channel) < 0)
		return;
	trace_event(target->base.lane, "back", "epoch %" PRIu32, epoch);
	if (preamble_prove(channel, &target->shared.session, false, epoch) < 0)
		target_drop_link(target);
}

void target_rejoin_knock(struct target *target, struct channel *channel,
			 const struct attach *attach)
{
	const struct session *session = &target->shared.session;

	/* The same words whatever is wrong with what it shows: nobody learns from them. */
	if (!target->prepared || !session_proves(session, attach, true)) {
		gate_refuse(&target->gate, channel, "no-such-session",
			    "this process has not got the VM whose migration is to go on: it was "
			    "started anew, or the address is another host's");
	} else if (attach->epoch <= target->link_epoch ||
		   attach->epoch <= atomic_load(&session->epoch)) {
		gate_refuse(&target->gate, channel, "superseded",
			    "a later attempt to go on with this migration has been here");
	} else if (!target->loaded) {
		/* It has lost the link before COMMIT, and so given up. */
		if (target->linked)
			channel_shutdown(target->link.channel);
		gate_refuse(&target->gate, channel, "not-in-doubt",
			    "the VM was not loaded here yet; it is forgotten");
	} else {
		adopt(target, channel, attach->epoch);
	}
}

static void greet(struct target *target, const Jaunt__Hello *hello)
{
	struct jaunt_error error = {0};

	if (target_take_hello(target, hello, &error) < 0)
		target_say(target, JAUNT__CONTROL__MESSAGE_REFUSED, error.reason, error.text);
}

bool target_rejoin_take(struct target *target, const Jaunt__Control *message)
{
	if (!target->link_epoch || target->agreed)
		return false;
	if (message->message_case == JAUNT__CONTROL__MESSAGE_HELLO) {
		greet(target, message->hello);
		return true;
	}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_COMMIT && target->ran) {
		target_rejoin_agree(target);
		return true;
	}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_ABORT && target->ran) {
		/* An operator said here that the source is fenced, or it would not be so. */
		target_say(target, JAUNT__CONTROL__MESSAGE_REFUSED, "runs-here",
			   "the VM runs here: it was committed, or the source was fenced");
		return true;
	}
	return false;
}

void target_say_resumed(struct target *target)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Resumed resumed = JAUNT__RESUMED__INIT;

	resumed.first_entry_ns = target->first_entry_ns;
	resumed.commit_to_entry_ns = target->commit_to_entry_ns;
	message.message_case = JAUNT__CONTROL__MESSAGE_RESUMED;
	message.resumed = &resumed;
	link_send(&target->link, &message);
}

static void want_channels(struct target *target)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Ready ready = JAUNT__READY__INIT;

	target->agreed = true;
	target->away = false;
	/* With nothing missing COMPLETE follows, and no page channel is needed any more. */
	if (!pagemap_missing(&target->shared.map))
		return;
	/* There was no link to say whether its transport can READ. */
	if (target->taken_up && !target->shared.reads.memory)
		target_open_reads(target);
	target_reattach(target, target->link_epoch);
	target_note_epoch(target);
	ready.fault_threads = target->shards;
	message.message_case = JAUNT__CONTROL__MESSAGE_READY;
	message.ready = &ready;
	link_send(&target->link, &message);
}

void target_rejoin_agree(struct target *target)
{
	target_say_resumed(target);
	want_channels(target);
}

void target_rejoin_attach(struct target *target)
{
	uint64_t until = target_deadline(target);

	want_channels(target);
	while (!(target->agreed && !target->channels_wanted) && clock_ns() < until &&
	       !atomic_load(&target->base.abandon)) {
		Jaunt__Control *message;
		int result = target_turn(target, until, &message);
		if (result < 0 && target->linked)
			target_lose_link(target);
		if (result != 1)
			continue;
		/* Over a link that has taken the place of this one. */
		bool again = message->message_case == JAUNT__CONTROL__MESSAGE_COMMIT;
		control_free(message);
		if (again)
			want_channels(target);
	}
}
