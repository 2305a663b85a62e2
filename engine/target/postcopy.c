/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After COMMIT: the VM runs here. This thread watches: it tells the source how far it is, says why
 * when pages do not arrive, and ends the migration when none is missing. A lost link blocks the
 * guest on what is missing until the source comes back (rejoin.c); page map, userfaultfds and
 * session stay as they are.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/target/target.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define PROGRESS_NS 100000000u
/* A source whose memory is READ has nothing else to do: it is not woken ten times a second. */
#define READ_PROGRESS_NS 500000000u
#define READ_PING_NS     1000000000u
#define SIGNS_OF_LIFE    4u /* within the time after which the other side counts as silent */
#define COMPLETE_NS      1000000000u
#define RELEASE_NS       UINT64_C(60000000000) /* for a source that is away to hear of the end */
#define MS_NS            1000000u

/* Why pages do not arrive, if they do not: true and `why`. */
static bool is_blocked(struct target *target, struct jaunt_error *why)
{
	struct target_shared *shared = &target->shared;
	uint64_t missing = pagemap_missing(&shared->map);

	if (atomic_load(&shared->install.broken)) {
		error_set(why, -atomic_load(&shared->install.broken_errno), "install",
			  "a page could not be made visible to the guest: %s. It stays missing, so "
			  "that the guest blocks on it rather than read anything wrong",
			  strerror(-atomic_load(&shared->install.broken_errno)));
		return true;
	}
	if (atomic_load(&shared->condemned)) {
		error_set(why, EBADMSG, "verify",
			  "%" PRIu64 " pages arrived twice with bytes that are not the source's; "
			  "they stay missing",
			  atomic_load(&shared->condemned));
		return true;
	}
	if (!target_in_touch(target) || target->channels_wanted ||
	    atomic_load(&shared->session.lost)) {
		if (!target->away && !target->channels_wanted)
			target_note_loss(target);
		error_set(why, ECONNRESET, target->lost.reason,
			  "%s; %" PRIu64 " pages are missing, and the guest waits where it needs "
			  "one of them%s",
			  target->lost.text, missing,
			  atomic_load(&shared->session.local) ? ""
							      : ", until the source comes back");
		return true;
	}
	if (target->answers_pings &&
	    clock_ns() - target->link.heard_ns >
		    (uint64_t)target->base.options.peer_timeout_ms * MS_NS) {
		error_set(
			why, ETIMEDOUT, "peer-silent",
			"the source has said nothing for %u ms, though its host may be up; %" PRIu64
			" pages are missing. It goes on by itself when it answers",
			target->base.options.peer_timeout_ms, missing);
		return true;
	}
	if (atomic_load(&shared->install.no_memory)) {
		error_set(why, ENOMEM, "memory",
			  "this host has no memory left for the guest's pages; free some, and it "
			  "goes on by itself");
		return true;
	}
	return false;
}

/* What stops the source from being asked any more is the end; what may pass is waited for. */
static bool is_hopeless(struct target *target)
{
	struct target_shared *shared = &target->shared;

	return atomic_load(&shared->install.broken) || atomic_load(&shared->condemned);
}

int target_await_remainder(struct target *target, struct jaunt_error *error)
{
	uint64_t progress_ns = clock_ns() + PROGRESS_NS;

	while (pagemap_missing(&target->shared.map)) {
		Jaunt__Control *message;
		/* Woken when the last page is there. */
		int result = target_look(target, progress_ns, &message, error);
		if (result == 1) {
			result = target_unexpected(message, error);
			control_free(message);
		}
		if (result == 0 && is_hopeless(target)) {
			is_blocked(target, error);
			result = -error->code;
		}
		if (result < 0)
			return result;
		if (clock_ns() >= progress_ns) {
			target_send_progress(target, false, NULL);
			progress_ns = clock_ns() + PROGRESS_NS;
		}
	}
	/* From here on the kernel serves the guest. */
	target_release_memory(target);
	return 0;
}

/* A page channel is lost: all of the session's are replaced, the link with them. */
static bool is_cut_off(const struct target *target)
{
	const struct session *session = &target->shared.session;

	return atomic_load(&session->lost) && !atomic_load(&session->local) && target->agreed &&
	       target->source_rejoins;
}

static void look_around(struct target *target)
{
	struct jaunt_error why = {0};

	if (is_blocked(target, &why)) {
		migration_blocked(&target->base, &why);
	} else if (target->base.status.phase == JAUNT_PHASE_BLOCKED) {
		migration_unblocked(&target->base);
	}
}

/* A page is present a moment before the thread that brought it has counted it: what is told with
 * COMPLETE must add up. */
static void await_counts(struct target *target)
{
	uint64_t until = clock_ns() + COMPLETE_NS;
	struct jaunt_status status;

	for (;;) {
		jaunt_migration_status(&target->base, &status);
		const struct jaunt_pages *pages = &status.pages;
		if (pages->zero + pages->hole + pages->pushed + pages->demanded + pages->copied +
				    pages->kept >=
			    pages->total ||
		    clock_ns() >= until)
			return;
		ring_wait(target->ring, MS_NS / 10);
	}
}

/* Tells the source until it has heard, also over a link that comes back. At last, 0 also when it
 * does not: the VM needs it no more. */
static void release_source(struct target *target)
{
	uint64_t give_up = UINT64_MAX, again = 0;

	while (clock_ns() < give_up && !atomic_load(&target->base.abandon)) {
		Jaunt__Control *message;
		if (target_in_touch(target)) {
			give_up = UINT64_MAX;
			if (clock_ns() >= again) {
				target_send_progress(target, true, NULL);
				again = clock_ns() + COMPLETE_NS;
			}
		} else {
			if (!target->source_rejoins)
				return;
			if (give_up == UINT64_MAX)
				give_up = clock_ns() + RELEASE_NS;
			again = 0;
		}
		int result = target_turn(target, again ? again : give_up, &message);
		if (result < 0 && target->linked)
			target_lose_link(target);
		if (result != 1)
			continue;
		bool released = message->message_case == JAUNT__CONTROL__MESSAGE_RELEASED;
		control_free(message);
		if (released)
			return;
	}
}

static void send_ping(struct target *target)
{
	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Ping ping = JAUNT__PING__INIT;

	ping.sent_ns = clock_ns();
	message.message_case = JAUNT__CONTROL__MESSAGE_PING;
	message.ping = &ping;
	if (target->answers_pings)
		link_send(&target->link, &message);
}

/* What it had changed since the switch has gone with it. The source keeps what it was then, and
 * says so as long as its operator has decided nothing. */
static int vm_is_gone(struct target *target, struct jaunt_error *error)
{
	target_send_progress(target, false, error->reason);
	target_stop_threads(target);
	error_context(error,
		      "the VM died here with %" PRIu64
		      " pages missing; what it was at the switch is "
		      "still at the source, where `jaunt resume VM --peer-fenced` runs it",
		      pagemap_missing(&target->shared.map));
	return migration_end(&target->base, JAUNT_INCOMPLETE, JAUNT_AT_UNKNOWN, error);
}

/* What the source is told while pages are missing, and when again. */
struct telling {
	uint64_t progress_ns, ping_ns;
	bool blocked;
};

static uint64_t interval(const struct target *target, uint64_t by_message, uint64_t by_read)
{
	uint64_t most = (uint64_t)target->base.options.peer_timeout_ms * MS_NS / SIGNS_OF_LIFE;
	uint64_t wanted = channel_can_read(target->link.channel) ? by_read : by_message;

	return wanted < most ? wanted : most;
}

static void tell_source(struct target *target, struct telling *telling)
{
	bool blocked = target->base.status.phase == JAUNT_PHASE_BLOCKED;
	uint64_t now = clock_ns();

	if (!target_in_touch(target) || target->channels_wanted ||
	    (now < telling->progress_ns && blocked == telling->blocked))
		return;
	target_send_progress(target, false, blocked ? target->base.status.reason : NULL);
	telling->blocked = blocked;
	telling->progress_ns = now + interval(target, PROGRESS_NS, READ_PROGRESS_NS);
	/* Beside it, in the same packet. */
	if (!target_in_touch(target) || now < telling->ping_ns)
		return;
	send_ping(target);
	telling->ping_ns = now + interval(target, PROGRESS_NS, READ_PING_NS);
}

/* The operator gives the VM up with pages missing. The guest must not run on without a handler: it
 * would read zeros. A guest that cannot even be stopped keeps its handler, for as long as the
 * migration is not closed. Of a VM in another process nobody knows who else may run it: what keeps
 * it from zeros stays in any case. */
static int abandon(struct target *target, struct jaunt_error *error)
{
	uint64_t when;
	struct jaunt_error stuck = {0};
	const struct jaunt_vm_ops *ops = target->factory->ops;
	bool elsewhere = ops->process && ops->process(target->vm);
	bool stopped = ops->pause(target->vm, &when, &stuck) == 0;

	if (stopped && !elsewhere)
		target_release_memory(target);
	target_stop_threads(target);
	target_forget_ledger(target);
	error_set(error, ECANCELED, "abandoned",
		  "abandoned by the operator with %" PRIu64 " pages missing%s",
		  pagemap_missing(&target->shared.map),
		  stopped ? ": the VM is stopped here"
			  : "; its vCPUs wait for them and cannot be stopped, only destroyed");
	return migration_end(&target->base, JAUNT_INCOMPLETE, JAUNT_AT_BLOCKED, error);
}

int target_serve_postcopy(struct target *target, struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;
	uint64_t look_ns = clock_ns() + PROGRESS_NS;
	struct telling telling = {.progress_ns = look_ns};

	/* In doubt until the source came back, and then lost again. */
	if (target->link_epoch && target->linked && !target->agreed)
		target_rejoin_agree(target);
	while (pagemap_missing(&shared->map)) {
		Jaunt__Control *message;
		int result = target_turn(target, look_ns, &message);
		if (result == 1)
			control_free(message);
		if (target->linked && (result < 0 || is_cut_off(target)))
			target_lose_link(target);
		inject_kill(INJECT_KILL_POSTCOPY);
		if (process_check(&target->process, 0, error) < 0)
			return vm_is_gone(target, error);
		look_around(target);
		if (clock_ns() >= look_ns) {
			tell_source(target, &telling);
			look_ns = clock_ns() + PROGRESS_NS;
		}
		/* Not if the last page has come meanwhile: then there is nothing to give up. */
		if (atomic_load(&target->base.abandon) && pagemap_missing(&shared->map))
			return abandon(target, error);
	}
	trace_event(target->base.lane, "complete", "every page is present");
	target_release_memory(target);
	await_counts(target);
	/* The channels stay until the source has heard: a lost one would alarm it. */
	release_source(target);
	target_forget_ledger(target);
	target_stop_threads(target);
	return migration_end(&target->base, JAUNT_DONE, JAUNT_AT_TARGET, NULL);
}
