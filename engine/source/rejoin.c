/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: coming back to the target
 *
 * After COMMIT this side answers questions about memory that stands still, and remembers nothing of
 * what it has answered. So a lost link costs it nothing but the channels: when one is lost, all are
 * closed, the threads that served them end, and it connects again, until the target is there, has
 * completed, or an operator decides. It shows one half of the session's secret and is shown the
 * other; who cannot show that is not the target, whatever it says, and above all not that it has
 * all pages.
 *
 * Every attempt is an epoch of its own. The target lets a later one take the place of an earlier
 * one, so an attempt that arrives late does no harm, and neither does what is left in old channels.
 *
 * A VM that runs here again because the link was lost before COMMIT may stand loaded at the target,
 * in doubt. The same way leads there to tell it ABORT, for as long as the peer timeout.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/source/source.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define MS_NS      1000000u
#define SECOND_NS  UINT64_C(1000000000)
#define EXPLAIN_NS (200u * MS_NS) /* for the word that explains a loss */
/* For a connection and its first word, however long the peer timeout: while one attempt waits for a
 * target that does not answer, no other is made, and the network may be back by then. */
#define ANSWER_MS  2000u
#define EAGER      30u /* attempts a second apart, before it waits longer */
#define PAUSE_MOST (16 * SECOND_NS)
#define ABORT_NS   (250u * MS_NS)  /* between attempts to say ABORT */
#define REFUSED_NS (3 * SECOND_NS) /* nobody listens: nobody is in doubt, or it is the network */

static uint64_t pause_ns(unsigned attempts)
{
	unsigned beyond = attempts > EAGER ? attempts - EAGER : 0;
	return beyond > 3 ? PAUSE_MOST : SECOND_NS << beyond;
}

static void close_link(struct source *source)
{
	if (source->linked)
		link_close(&source->link);
	source->linked = false;
	source_note_alive(source, false);
}

/* A VM whose driver takes pages away while it stands still has lost them. */
static bool can_come_back(const struct source *source)
{
	return source->takes_rejoin && !atomic_load(&source->discarded_late);
}

static void say_blocked(struct source *source, const struct jaunt_error *attempt)
{
	const struct rejoin *rejoin = &source->rejoin;
	struct jaunt_error why = {0};

	error_set(
		&why, ECONNRESET, rejoin->lost.reason,
		"%s after COMMIT%s. This host keeps all of the VM's memory%s%.300s. If the target "
		"host is known to be dead or fenced, `jaunt resume VM --peer-fenced` runs the VM "
		"here, as it was at the switch",
		rejoin->lost.text,
		source->resumed_there ? "" : ", before the target said that the VM runs there",
		!can_come_back(source) ? ""
		: attempt              ? ", and goes on trying to reach the target: "
				       : ", and tries to reach the target again",
		attempt ? attempt->text : "");
	migration_blocked(&source->base, &why);
	if (!source->resumed_there)
		migration_place(&source->base, JAUNT_AT_UNKNOWN);
}

static void note_loss(struct source *source)
{
	struct session *session = &source->shared.session;

	if (source->link.closed) {
		link_why(&source->link, &source->rejoin.lost);
		return;
	}
	pthread_mutex_lock(&session->mutex);
	source->rejoin.lost = session->why;
	pthread_mutex_unlock(&session->mutex);
}

/* Something is lost, and nothing more is to be heard that would explain it: COMPLETE may already be
 * on its way behind the loss of a page channel. */
static bool is_lost(struct source *source)
{
	struct rejoin *rejoin = &source->rejoin;
	bool lost = atomic_load(&source->shared.session.lost);

	if (!source->link.closed && !lost) {
		rejoin->explain_ns = 0;
		return false;
	}
	if (!rejoin->explain_ns)
		rejoin->explain_ns = clock_ns() + EXPLAIN_NS;
	if (source->link.count)
		return false;
	return source->link.closed || clock_ns() >= rejoin->explain_ns;
}

static void leave(struct source *source)
{
	struct rejoin *rejoin = &source->rejoin;
	uint64_t now = clock_ns();

	note_loss(source);
	trace_event(source->base.lane, "away", "%s", rejoin->lost.text);
	rejoin->away = true;
	rejoin->explain_ns = 0;
	rejoin->attempts = 0;
	if (rejoin->push_told >= 0)
		rejoin->push_again = rejoin->push_told;
	rejoin->push_told = -1;
	/* At once, unless the last attempt has come to nothing soon after it went well. */
	rejoin->next_ns = rejoin->attached_ns && now - rejoin->attached_ns < SECOND_NS
				  ? now + SECOND_NS
				  : now;
	say_blocked(source, NULL);
	source_stop(source);
	expose_forget(&source->expose);
	close_link(source);
}

/* Waits for a message of that kind; what else is said is taken as ever, and may be the end. */
static int await(struct source *source, Jaunt__Control__MessageCase what, int *outcome,
		 struct jaunt_error *error)
{
	uint64_t until = source_deadline(source);

	for (;;) {
		Jaunt__Control *message;
		int result = source_next(source, until, &message, error);
		if (result < 0)
			return result;
		Jaunt__Control__MessageCase is = message->message_case;
		if (is == JAUNT__CONTROL__MESSAGE_REFUSED)
			result = source_unexpected(message, error);
		else if (is == what && what == JAUNT__CONTROL__MESSAGE_READY)
			result = source_take_ready(source, message->ready, error);
		else if (is != what)
			*outcome = source_take(source, message, error);
		control_free(message);
		if (is == what || *outcome >= 0 || result < 0)
			return result < 0 ? result : 0;
	}
}

/* What somebody says who has not shown that he is the target: nothing of it counts but why he
 * refuses, and that for the operator alone. */
static int hear_stranger(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = source_next(source, source_deadline(source), &message, error);

	if (result < 0)
		return result;
	if (message->message_case == JAUNT__CONTROL__MESSAGE_REFUSED)
		result = source_unexpected(message, error);
	else
		result = error_set(error, EPROTO, "no-such-session",
				   "who listens at %s is not the target of this migration",
				   source->base.options.peer);
	control_free(message);
	return result;
}

/* The link to the session's target, greeted. */
static int reach(struct source *source, struct jaunt_error *error)
{
	int result = source_open_control(source, ++source->rejoin.epoch, error);

	if (result == 0 && !source->proven) /* somebody else, or the target refuses */
		result = hear_stranger(source, error);
	if (result == 0)
		result = source_greet(source, error);
	return result;
}

static int send_commit(struct source *source, struct jaunt_error *error)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Commit body = JAUNT__COMMIT__INIT;

	message.message_case = JAUNT__CONTROL__MESSAGE_COMMIT;
	message.commit = &body;
	if (!source->resumed_there)
		source->commit_ns = clock_ns();
	return link_send(&source->link, &message) < 0 ? link_why(&source->link, error) : 0;
}

static int come_back(struct source *source, int *outcome, struct jaunt_error *error)
{
	int result = reach(source, error);

	if (result < 0)
		return result;
	/* From here on the target lives, and may run the VM at the next word. */
	source_note_alive(source, true);
	if ((result = send_commit(source, error)) < 0 ||
	    (result = await(source, JAUNT__CONTROL__MESSAGE_READY, outcome, error)) < 0 ||
	    *outcome >= 0)
		return result;
	if ((result = source_open_channels(source, error)) < 0)
		return result;
	return await(source, JAUNT__CONTROL__MESSAGE_ATTACHED, outcome, error);
}

static int try_to_come_back(struct source *source, struct jaunt_error *error)
{
	struct rejoin *rejoin = &source->rejoin;
	struct session *session = &source->shared.session;
	struct jaunt_error why = {0};
	int outcome = -1;

	if (rejoin->epoch < atomic_load(&session->epoch))
		rejoin->epoch = atomic_load(&session->epoch);
	rejoin->attempts++;
	source->insists = true;
	if (source->wait_ms > ANSWER_MS)
		source->wait_ms = ANSWER_MS;
	/* Every thread of the attachment before has ended. */
	session_reattach(session, rejoin->epoch + 1);
	holes_reset(&source->holes);
	int result = come_back(source, &outcome, &why);
	if (outcome >= 0) {
		*error = why;
		return outcome;
	}
	if (result < 0) {
		trace_event(source->base.lane, "attempt", "%s", why.text);
		source_stop(source);
		close_link(source);
		say_blocked(source, &why);
		rejoin->next_ns = clock_ns() + pause_ns(rejoin->attempts);
		return -1;
	}
	rejoin->away = false;
	rejoin->attached_ns = clock_ns();
	pthread_mutex_lock(&source->base.mutex);
	source->base.status.reconnections++;
	pthread_mutex_unlock(&source->base.mutex);
	trace_event(source->base.lane, "rejoined", "epoch %" PRIu32 ", attempt %u", rejoin->epoch,
		    rejoin->attempts);
	source_tell_holes(source);
	source_expose_again(source);
	return -1;
}

int source_keep_in_touch(struct source *source, struct jaunt_error *error)
{
	struct rejoin *rejoin = &source->rejoin;

	if (!rejoin->away && is_lost(source)) {
		if (source->takes_rejoin || source->link.closed) {
			leave(source);
		} else if (source->base.status.phase != JAUNT_PHASE_BLOCKED) {
			note_loss(source);
			say_blocked(source, NULL);
		}
	}
	if (!rejoin->away || !can_come_back(source) || clock_ns() < rejoin->next_ns)
		return -1;
	return try_to_come_back(source, error);
}

uint64_t source_wait_until(const struct source *source, uint64_t until_ns)
{
	const struct rejoin *rejoin = &source->rejoin;
	uint64_t next = rejoin->away ? rejoin->next_ns : rejoin->explain_ns;

	/* Where nothing will be tried there is nothing to be in time for. */
	if (!next || !can_come_back(source))
		return until_ns;
	return next < until_ns ? next : until_ns;
}

/* --- Before COMMIT ------------------------------------------------------------------------------
 */

/* Whether the target has ended the link in order, as it does when it has heard ABORT, or said
 * before that it gives the VM up. */
static bool is_heard(struct source *source)
{
	uint64_t until = clock_ns() + SECOND_NS, now;

	while (source->linked && !source->link.closed && (now = clock_ns()) < until) {
		Jaunt__Control *message;
		if (link_next(&source->link, (int64_t)(until - now), &message) != 1)
			continue;
		bool failed = message->message_case == JAUNT__CONTROL__MESSAGE_FAILED;
		control_free(message);
		if (failed)
			return true;
	}
	return source->linked && source->link.closed && !source->link.close_error;
}

/* Whether nobody needs to be told any more. */
static bool say_abort(struct source *source, const struct jaunt_error *why, uint64_t *refused_ns)
{
	struct jaunt_error error = {0};

	if (reach(source, &error) == 0) {
		source_send_abort(source, why);
		return is_heard(source);
	}
	trace_event(source->base.lane, "attempt", "%s", error.text);
	if (strcmp(error.reason, "connect-refused") != 0)
		*refused_ns = 0;
	else if (!*refused_ns)
		*refused_ns = clock_ns();
	return strcmp(error.reason, "no-such-session") == 0 ||
	       strcmp(error.reason, "not-in-doubt") == 0 ||
	       strcmp(error.reason, "runs-here") == 0 ||
	       (*refused_ns && clock_ns() - *refused_ns > REFUSED_NS);
}

void source_tell_abort(struct source *source, const struct jaunt_error *why)
{
	uint64_t until = source_deadline(source), refused_ns = 0;

	if (!source->state_sent || !source->takes_rejoin ||
	    (source->abort_sent && is_heard(source)))
		return;
	source->insists = true;
	if (source->wait_ms > ANSWER_MS)
		source->wait_ms = ANSWER_MS;
	if (!source->rejoin.epoch)
		source->rejoin.epoch = 1; /* what FREEZE said */
	while (clock_ns() < until && !atomic_load(&source->base.abandon)) {
		close_link(source);
		session_reattach(&source->shared.session, 0);
		if (say_abort(source, why, &refused_ns))
			return;
		uint64_t next = clock_ns() + ABORT_NS, now;
		while ((now = clock_ns()) < next)
			ring_wait(source->ring, (int64_t)(next - now));
	}
}
