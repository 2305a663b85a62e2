/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: the target's state machine
 *
 *   waiting → preparing → switchover → post-copy → completed
 *                │            │            ⇅
 *                │         in doubt     blocked
 *                └→ failed / cancelled, before COMMIT
 *
 * One thread works through the phases in order; in between it waits for the next control message, a
 * visitor at the gate, a wake-up by another thread, or a deadline. Until a VM is prepared and the
 * source told so, whatever goes wrong with a peer ends only that peer's attempt, and the target
 * goes on waiting.
 *
 * From LOADED on this side is in doubt: it neither runs nor discards the VM until it hears COMMIT
 * or ABORT. If the link is lost there, only an operator can decide. After COMMIT a lost link blocks
 * the guest on what is missing; page map, userfaultfds and session stay as they are.
 */
#include "engine/target/target.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/hello.h"
#include "engine/inject.h"
#include "engine/trace.h"
#include "transport/ring.h"

#define PROGRESS_NS 100000000u
#define COMPLETE_NS 1000000000u
#define MS_NS       1000000u

/* --- Waiting
 * ---------------------------------------------------------------------------------------- */

static void send_simple(struct target *target, Jaunt__Control__MessageCase what, const char *reason,
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
}

static void open_link(struct target *target, struct channel *channel)
{
	if (target->linked) { /* one VM at a time */
		channel_free(channel);
		return;
	}
	channel_timeout(channel, target->base.options.peer_timeout_ms);
	if (link_open(&target->link, channel, target->ring) < 0)
		return;
	if (preamble_send(channel, &target->shared.session, ATTACH_CONTROL, 0) < 0) {
		link_close(&target->link);
		return;
	}
	target->linked = true;
}

static void drop_link(struct target *target)
{
	if (target->linked)
		link_close(&target->link);
	target->linked = false;
}

static bool answer_ping(struct target *target, const Jaunt__Control *message)
{
	if (message->message_case != JAUNT__CONTROL__MESSAGE_PING)
		return false;
	Jaunt__Control answer = JAUNT__CONTROL__INIT;
	Jaunt__Pong pong = JAUNT__PONG__INIT;
	pong.sent_ns = message->ping->sent_ns;
	answer.message_case = JAUNT__CONTROL__MESSAGE_PONG;
	answer.pong = &pong;
	link_send(&target->link, &answer);
	return true;
}

/* One wait: lets visitors in, and takes a message if there is one. 1: *message. 0: something else
 * happened, or the time is up. -errno: the link is down. */
static int turn(struct target *target, uint64_t until_ns, Jaunt__Control **message)
{
	uint64_t now = clock_ns();
	uint64_t gate_ns = gate_deadline_ns(&target->gate);
	uint64_t until = gate_ns < until_ns ? gate_ns : until_ns;
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
			open_link(target, channel);
		else
			target_attach(target, channel, &attach);
	}
	if (target->channels_wanted && target_attached(target)) {
		target->channels_wanted = false;
		send_simple(target, JAUNT__CONTROL__MESSAGE_ATTACHED, NULL, NULL);
	}
	int push = atomic_exchange(&target->base.set_push, -1);
	if (push >= 0)
		target->base.side->set_push(&target->base, push);
	if (result == 1 && (*message)->message_case == JAUNT__CONTROL__MESSAGE_SET_PUSH) {
		target->base.side->set_push(&target->base, (*message)->set_push->push);
		control_free(*message);
		return 0;
	}
	if (result == 1 && answer_ping(target, *message)) {
		control_free(*message);
		return 0;
	}
	return result;
}

/* Waits for the next message until the deadline. 1, or -errno with `error`: too late, link down,
 * cancelled here, a page channel lost. */
static int next_message(struct target *target, uint64_t until_ns, Jaunt__Control **message,
			struct jaunt_error *error)
{
	for (;;) {
		int result = turn(target, until_ns, message);
		if (result == 1)
			return 1;
		if (result < 0)
			return link_why(&target->link, error);
		if (atomic_load(&target->base.cancel) || atomic_load(&target->base.abandon))
			return error_set(error, ECANCELED, "cancelled", "cancelled here");
		if (atomic_load(&target->shared.session.lost)) {
			pthread_mutex_lock(&target->shared.session.mutex);
			*error = target->shared.session.why;
			pthread_mutex_unlock(&target->shared.session.mutex);
			return -error->code;
		}
		if (clock_ns() >= until_ns)
			return error_set(error, ETIMEDOUT, "peer-silent",
					 "the source said nothing for %u ms",
					 target->base.options.peer_timeout_ms);
	}
}

static uint64_t deadline(const struct target *target)
{
	return clock_ns() + (uint64_t)target->base.options.peer_timeout_ms * MS_NS;
}

static int unexpected(const Jaunt__Control *message, struct jaunt_error *error)
{
	if (message->message_case == JAUNT__CONTROL__MESSAGE_ABORT)
		return error_set(error, ECANCELED,
				 message->abort->reason[0] ? message->abort->reason : "aborted",
				 "the source gave up: %s", message->abort->text);
	return error_set(error, EPROTO, "protocol", "the source sent %s where it has no place",
			 control_name(message));
}

/* --- Until a VM is prepared
 * ---------------------------------------------------------------------------- */

static int greet(struct target *target, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = next_message(target, deadline(target), &message, error);

	if (result < 0)
		return result;
	if (message->message_case != JAUNT__CONTROL__MESSAGE_HELLO) {
		result = unexpected(message, error);
	} else {
		hello_send(&target->link);
		target->same_clock = hello_same_clock(message->hello);
		result = hello_check(message->hello, error);
	}
	control_free(message);
	return result < 0 ? result : 0;
}

/* 1: prepared, 0: was a dry run. */
static int configure(struct target *target, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = next_message(target, deadline(target), &message, error);

	if (result < 0)
		return result;
	if (message->message_case != JAUNT__CONTROL__MESSAGE_CONFIGURE) {
		result = unexpected(message, error);
		control_free(message);
		return result;
	}
	const Jaunt__Configure *wanted = message->configure;
	bool dry_run = wanted->dry_run;
	pthread_mutex_lock(&target->base.mutex);
	snprintf(target->base.status.vm, sizeof(target->base.status.vm), "%s", wanted->vm_name);
	pthread_mutex_unlock(&target->base.mutex);
	result = target_prepare(target, wanted, error);
	control_free(message);
	if (result < 0)
		return result;

	Jaunt__Control answer = JAUNT__CONTROL__INIT;
	Jaunt__Ready ready = JAUNT__READY__INIT;
	ready.fault_threads = target->shards;
	answer.message_case = JAUNT__CONTROL__MESSAGE_READY;
	answer.ready = &ready;
	target->channels_wanted = !dry_run;
	link_send(&target->link, &answer);
	if (!dry_run)
		return 1;
	link_flush(&target->link, deadline(target) - clock_ns());
	target_unprepare(target);
	return 0;
}

static void refuse(struct target *target, const struct jaunt_error *error)
{
	if (!target->linked || target->link.closed)
		return;
	send_simple(target, JAUNT__CONTROL__MESSAGE_REFUSED, error->reason, error->text);
	link_flush(&target->link, deadline(target) - clock_ns());
}

/* 1: a VM is prepared and the source knows. 0: cancelled here. */
static int await_source(struct target *target, struct jaunt_error *error)
{
	for (;;) {
		migration_phase(&target->base, JAUNT_PHASE_WAITING);
		while (!target->linked) {
			Jaunt__Control *message;
			if (atomic_load(&target->base.cancel) || atomic_load(&target->base.abandon))
				return error_set(error, ECANCELED, "cancelled",
						 "cancelled while waiting for a source");
			int result = turn(target, UINT64_MAX, &message);
			if (result < 0)
				return error_set(error, EIO, "io_uring", "wait for a source");
		}
		migration_phase(&target->base, JAUNT_PHASE_PREPARING);
		int result = greet(target, error);
		if (result == 0)
			result = configure(target, error);
		if (result == 1)
			return 1;
		if (result < 0) {
			trace_event(target->base.lane, "refused", "%s", error->text);
			refuse(target, error);
			pthread_mutex_lock(&target->base.mutex);
			snprintf(target->base.status.error, sizeof(target->base.status.error), "%s",
				 error->text);
			pthread_mutex_unlock(&target->base.mutex);
			if (error->code == ECANCELED && atomic_load(&target->base.cancel))
				return -ECANCELED;
		}
		error_clear(error);
		drop_link(target);
	}
}

/* --- Switchover
 * ------------------------------------------------------------------------------------------- */

static int take_state(struct target *target, const Jaunt__State *state, struct jaunt_error *error)
{
	if (state->bytes.len > CONTROL_STATE_MAX - target->state_bytes)
		return error_set(error, EMSGSIZE, "state-too-large",
				 "the device state is larger than %u bytes", CONTROL_STATE_MAX);
	uint8_t *bigger = realloc(target->state, target->state_bytes + state->bytes.len + 1);
	if (!bigger)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	target->state = bigger;
	memcpy(bigger + target->state_bytes, state->bytes.data, state->bytes.len);
	target->state_bytes += state->bytes.len;
	target->last_instruction_ns = state->last_instruction_ns;
	return state->last;
}

static int freeze(struct target *target, const Jaunt__Freeze *freeze, struct jaunt_error *error)
{
	/* Before FREEZE no page was placed (no rounds), so there is nothing to call stale. */
	if (freeze->n_dirty || !freeze->epoch)
		return error_set(error, EPROTO, "protocol",
				 "the source calls pages stale that it never sent");
	if (target->channels_wanted)
		return error_set(error, EPROTO, "protocol",
				 "the source switches over before all of its channels have come");
	migration_phase(&target->base, JAUNT_PHASE_SWITCHOVER);
	atomic_store(&target->shared.session.epoch, freeze->epoch);
	for (unsigned i = 0; i < target->shards; i++) /* faults that were parked until now */
		worker_wake(&target->demands[i]->worker);
	return 0;
}

/* Everything up to a loaded VM. */
static int receive_state(struct target *target, struct jaunt_error *error)
{
	/* How long the source takes until it pauses is its own affair. */
	for (bool loaded = false; !loaded;) {
		Jaunt__Control *message;
		int result = next_message(target, UINT64_MAX, &message, error);
		if (result < 0)
			return result;
		switch (message->message_case) {
		case JAUNT__CONTROL__MESSAGE_FREEZE:
			inject_kill(INJECT_KILL_SWITCHOVER);
			result = freeze(target, message->freeze, error);
			break;
		case JAUNT__CONTROL__MESSAGE_STATE:
			if (!atomic_load(&target->shared.session.epoch))
				result = unexpected(message, error);
			else
				result = take_state(target, message->state, error);
			loaded = result == 1;
			break;
		default:
			result = unexpected(message, error);
		}
		control_free(message);
		if (result < 0)
			return result;
	}
	uint64_t before = clock_ns();
	int result =
		target->factory->ops->load(target->vm, target->state, target->state_bytes, error);
	if (result < 0)
		return error_context(error, "load the VM's state");
	inject_kill(INJECT_KILL_BEFORE_COMMIT);

	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Loaded loaded = JAUNT__LOADED__INIT;
	loaded.load_ns = clock_ns() - before;
	message.message_case = JAUNT__CONTROL__MESSAGE_LOADED;
	message.loaded = &loaded;
	pthread_mutex_lock(&target->base.mutex);
	target->base.loaded = true; /* before it can be heard */
	pthread_mutex_unlock(&target->base.mutex);
	if (inject_fires(INJECT_LINK_CUT_LOADED))
		channel_shutdown(target->link.channel);
	link_send(&target->link, &message);
	return 0;
}

/* In doubt: 0 COMMIT, 1 ABORT or an operator says that the VM is not ours, 2 an operator says it
 * is. */
static int await_commit(struct target *target, struct jaunt_error *error)
{
	bool asked = false, lost = false;

	for (;;) {
		Jaunt__Control *message;
		int result = lost ? (ring_wait(target->ring, -1), 0)
				  : turn(target, UINT64_MAX, &message);
		if (result < 0) {
			struct jaunt_error why = {0};
			link_why(&target->link, &why);
			error_set(&why, ECONNRESET, "in-doubt",
				  "the link was lost before COMMIT or ABORT was heard: the VM may "
				  "run at the source. Fence the source before running it here");
			pthread_mutex_lock(&target->base.mutex);
			snprintf(target->base.status.reason, sizeof(target->base.status.reason),
				 "%s", why.reason);
			snprintf(target->base.status.error, sizeof(target->base.status.error), "%s",
				 why.text);
			target->base.status.vm_is_at = JAUNT_AT_UNKNOWN;
			pthread_mutex_unlock(&target->base.mutex);
			migration_phase(&target->base, JAUNT_PHASE_IN_DOUBT);
			lost = true;
		}
		if (result == 1) {
			Jaunt__Control__MessageCase what = message->message_case;
			if (what != JAUNT__CONTROL__MESSAGE_COMMIT)
				unexpected(message, error);
			control_free(message);
			if (what == JAUNT__CONTROL__MESSAGE_COMMIT)
				return 0;
			if (what == JAUNT__CONTROL__MESSAGE_ABORT)
				return 1;
			/* Nonsense ends the link, not the doubt. */
			channel_shutdown(target->link.channel);
		}
		if (atomic_load(&target->base.abandon)) {
			error_set(error, ECANCELED, "abandoned", "abandoned here by the operator");
			return 1;
		}
		if (lost && atomic_load(&target->base.resume_fenced))
			return 2;
		if (atomic_load(&target->base.cancel) && !asked && !lost) {
			asked = true; /* only a request: the source decides */
			send_simple(target, JAUNT__CONTROL__MESSAGE_CANCEL_REQUEST, NULL, NULL);
		}
	}
}

static int resume(struct target *target, uint64_t commit_ns, struct jaunt_error *error)
{
	struct jaunt_migration *base = &target->base;
	uint64_t first_entry_ns = 0;

	inject_kill(INJECT_KILL_AFTER_COMMIT);
	int result = target->factory->ops->resume(target->vm, &first_entry_ns, error);
	if (result < 0) {
		error_context(error, "resume the VM");
		return result;
	}
	pthread_mutex_lock(&base->mutex);
	base->committed = true;
	base->status.vm_is_at = JAUNT_AT_TARGET;
	base->status.switchover_us = (double)(first_entry_ns - commit_ns) / 1e3;
	if (target->same_clock)
		base->status.downtime_us =
			(double)(first_entry_ns - target->last_instruction_ns) / 1e3;
	pthread_mutex_unlock(&base->mutex);

	Jaunt__Control message = JAUNT__CONTROL__INIT;
	Jaunt__Resumed resumed = JAUNT__RESUMED__INIT;
	resumed.first_entry_ns = first_entry_ns;
	resumed.commit_to_entry_ns = first_entry_ns - commit_ns;
	message.message_case = JAUNT__CONTROL__MESSAGE_RESUMED;
	message.resumed = &resumed;
	link_send(&target->link, &message);
	ring_submit(target->ring);
	atomic_store(&target->shared.granting, true);
	for (unsigned i = 0; i < target->streams; i++)
		worker_wake(&target->fills[i]->worker);
	migration_phase(base, JAUNT_PHASE_POSTCOPY);
	return 0;
}

/* --- After COMMIT
 * ------------------------------------------------------------------------------------------ */

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
	if (atomic_load(&shared->session.lost) || target->link.closed) {
		struct jaunt_error lost = {0};
		if (atomic_load(&shared->session.lost)) {
			pthread_mutex_lock(&shared->session.mutex);
			lost = shared->session.why;
			pthread_mutex_unlock(&shared->session.mutex);
		} else {
			link_why(&target->link, &lost);
		}
		error_set(why, ECONNRESET, lost.reason,
			  "%s; %" PRIu64 " pages are missing, and the guest waits where it needs "
			  "one of them",
			  lost.text, missing);
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

static void look_around(struct target *target)
{
	struct jaunt_error why = {0};

	if (is_blocked(target, &why)) {
		migration_blocked(&target->base, &why);
	} else {
		bool was = target->base.status.phase == JAUNT_PHASE_BLOCKED;
		if (was) {
			migration_place(&target->base, JAUNT_AT_TARGET);
			pthread_mutex_lock(&target->base.mutex);
			target->base.status.reason[0] = target->base.status.error[0] = '\0';
			pthread_mutex_unlock(&target->base.mutex);
			migration_phase(&target->base, JAUNT_PHASE_POSTCOPY);
		}
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
		if (pages->zero + pages->hole + pages->pushed + pages->demanded >= pages->total ||
		    clock_ns() >= until)
			return;
		ring_wait(target->ring, MS_NS / 10);
	}
}

/* Tells the source until it has heard; 0 also when it is gone: the VM needs it no more. */
static void release_source(struct target *target)
{
	for (;;) {
		Jaunt__Control *message;
		if (target->link.closed || target_send_progress(target, true, NULL) < 0)
			return;
		uint64_t again = clock_ns() + COMPLETE_NS;
		while (clock_ns() < again) {
			int result = turn(target, again, &message);
			if (result < 0 || atomic_load(&target->base.abandon))
				return;
			if (result == 0)
				continue;
			bool released = message->message_case == JAUNT__CONTROL__MESSAGE_RELEASED;
			control_free(message);
			if (released)
				return;
		}
	}
}

static int serve_postcopy(struct target *target, struct jaunt_error *error)
{
	struct target_shared *shared = &target->shared;
	uint64_t progress_ns = clock_ns() + PROGRESS_NS;

	while (pagemap_missing(&shared->map)) {
		Jaunt__Control *message;
		int result = 0;
		if (target->link.closed)
			ring_wait(target->ring, PROGRESS_NS);
		else
			result = turn(target, progress_ns, &message);
		if (result == 1)
			control_free(message);
		inject_kill(INJECT_KILL_POSTCOPY);
		look_around(target);
		if (!target->link.closed && clock_ns() >= progress_ns) {
			bool blocked = target->base.status.phase == JAUNT_PHASE_BLOCKED;
			target_send_progress(target, false,
					     blocked ? target->base.status.reason : NULL);
			progress_ns = clock_ns() + PROGRESS_NS;
		}
		if (atomic_load(&target->base.abandon)) {
			/* The guest must not run on without a handler: it would read zeros. */
			uint64_t when;
			target->factory->ops->pause(target->vm, &when, error);
			target_release_memory(target);
			target_stop_threads(target);
			error_set(error, ECANCELED, "abandoned",
				  "abandoned by the operator with %" PRIu64
				  " pages missing: the VM "
				  "is stopped here",
				  pagemap_missing(&shared->map));
			return migration_end(&target->base, JAUNT_INCOMPLETE, JAUNT_AT_BLOCKED,
					     error);
		}
	}
	trace_event(target->base.lane, "complete", "every page is present");
	target_release_memory(target);
	await_counts(target);
	/* The channels stay until the source has heard: a lost one would alarm it. */
	release_source(target);
	target_stop_threads(target);
	return migration_end(&target->base, JAUNT_DONE, JAUNT_AT_TARGET, NULL);
}

/* --- The whole
 * ---------------------------------------------------------------------------------------------- */

/* Before COMMIT: the VM runs at the source, or will. */
static int give_up(struct target *target, struct jaunt_error *error)
{
	bool cancelled = error->code == ECANCELED;

	if (target->linked && !target->link.closed) {
		send_simple(target, JAUNT__CONTROL__MESSAGE_FAILED, error->reason, error->text);
		link_flush(&target->link, 1000 * (int64_t)MS_NS);
	}
	target_unprepare(target);
	return migration_end(&target->base, cancelled ? JAUNT_CANCELLED : JAUNT_FAILED,
			     JAUNT_AT_SOURCE, error);
}

static int move(struct target *target, struct jaunt_error *error)
{
	if (await_source(target, error) < 0)
		return give_up(target, error);
	inject_kill(INJECT_KILL_PREPARE);
	if (receive_state(target, error) < 0)
		return give_up(target, error);
	switch (await_commit(target, error)) {
	case 1:
		return give_up(target, error);
	case 2:
		error_clear(error);
		break;
	}
	if (resume(target, clock_ns(), error) < 0)
		return give_up(target, error);
	return serve_postcopy(target, error);
}

static int target_run(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct target *target = (struct target *)migration;
	int result = ring_create(&target->ring, 256);

	if (result < 0)
		error_set(error, -result, "io_uring",
			  "create an io_uring: %s; `jaunt doctor` says what this host lacks",
			  strerror(-result));
	session_set_owner(&target->shared.session, target->ring);
	if (result == 0 && (result = gate_open(&target->gate, target->listener, target->ring,
					       migration->options.connect_timeout_ms)) < 0)
		error_set(error, -result, "listen", "accept connections: %s", strerror(-result));
	int outcome = result < 0 ? migration_end(migration, JAUNT_FAILED, JAUNT_AT_SOURCE, error)
				 : move(target, error);
	drop_link(target);
	gate_close(&target->gate);
	session_set_owner(&target->shared.session, NULL);
	if (target->ring)
		ring_destroy(target->ring);
	target->ring = NULL;
	listener_free(target->listener);
	target->listener = NULL;
	return outcome;
}

static void target_set_push(struct jaunt_migration *migration, bool push)
{
	struct target *target = (struct target *)migration;

	atomic_store(&target->shared.push, push);
	trace_event(migration->lane, "push", "%s", push ? "on" : "off");
	for (unsigned i = 0; i < TARGET_STREAMS_MAX; i++)
		if (target->fills[i])
			worker_wake(&target->fills[i]->worker);
}

static void target_close(struct jaunt_migration *migration)
{
	struct target *target = (struct target *)migration;

	target_unprepare(target);
	if (target->listener)
		listener_free(target->listener);
	migration_fini(migration);
	free(target);
}

static int target_check_resume(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct target *target = (struct target *)migration;
	uint64_t missing = pagemap_missing(&target->shared.map);

	if (migration->committed)
		return error_set(error, EINVAL, "runs-here",
				 "the VM was already resumed here; it waits for %" PRIu64
				 " pages that only the source has",
				 missing);
	if (missing)
		return error_set(error, EINVAL, "memory-missing",
				 "%" PRIu64 " pages of the VM's memory are only at the source: it "
				 "cannot run here. Resume it there (after fencing this host), or "
				 "give this copy up with `jaunt cancel VM --abandon`",
				 missing);
	return 0;
}

static const struct side_ops target_ops = {.run = target_run,
					   .status = target_status,
					   .close = target_close,
					   .set_push = target_set_push,
					   .check_resume = target_check_resume};

int jaunt_target_open(struct jaunt_migration **out, const struct jaunt_vm_factory *factory,
		      void *context, const struct jaunt_options *options, struct jaunt_error *error)
{
	struct target *target = calloc(1, sizeof(*target));
	struct address address;

	if (!target)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	int result =
		migration_init(&target->base, &target_ops, &target->shared.session, options, error);
	if (result < 0) {
		free(target);
		return result;
	}
	target->factory = factory;
	target->context = context;
	pthread_mutex_init(&target->shared.prefetch_mutex, NULL);
	pthread_mutex_init(&target->shared.suspects_mutex, NULL);
	inject_side(INJECT_TARGET);
	result = migration_check_address(options, &address, true, error);
	if (result == 0)
		result = transport_listen(&target->listener, &address, error);
	if (result < 0) {
		target_close(&target->base);
		return result;
	}
	target->port = listener_port(target->listener);
	target->base.status.phase = JAUNT_PHASE_WAITING;
	*out = &target->base;
	return 0;
}

unsigned jaunt_target_port(const struct jaunt_migration *migration)
{
	return ((const struct target *)migration)->port;
}

void *jaunt_migration_vm(struct jaunt_migration *migration)
{
	if (migration->side != &target_ops)
		return NULL;
	pthread_mutex_lock(&migration->mutex);
	void *vm = ((struct target *)migration)->vm;
	pthread_mutex_unlock(&migration->mutex);
	return vm;
}

bool jaunt_migration_was_demanded(const struct jaunt_migration *migration, size_t region,
				  uint64_t page)
{
	const struct target *target = (const struct target *)migration;

	if (migration->side != &target_ops || region >= target->shared.memory.region_count ||
	    page >= target->shared.memory.regions[region].pages || !target->shared.demanded[region])
		return false;
	return atomic_load_explicit(&target->shared.demanded[region][page / 64],
				    memory_order_relaxed) >>
		       (page % 64) &
	       1;
}
