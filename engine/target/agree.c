/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Until a VM is prepared and the source knows it. Whatever goes wrong with a peer here ends only
 * that peer's attempt: the target refuses, with the reason, and goes on waiting.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/hello.h"
#include "engine/target/target.h"
#include "engine/trace.h"

int target_take_hello(struct target *target, const Jaunt__Hello *hello, struct jaunt_error *error)
{
	hello_send(&target->link);
	target->same_clock = hello_same_clock(hello);
	target->answers_pings = hello_has(hello, "ping");
	target->source_rejoins = hello_has(hello, "rejoin");
	return hello_check(hello, error);
}

static int greet(struct target *target, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = target_next(target, target_deadline(target), &message, error);

	if (result < 0)
		return result;
	if (message->message_case != JAUNT__CONTROL__MESSAGE_HELLO) {
		result = target_unexpected(message, error);
	} else {
		result = target_take_hello(target, message->hello, error);
	}
	control_free(message);
	return result < 0 ? result : 0;
}

/* 1: prepared, 0: was a dry run. */
static int configure(struct target *target, struct jaunt_error *error)
{
	Jaunt__Control *message;
	int result = target_next(target, target_deadline(target), &message, error);

	if (result < 0)
		return result;
	if (message->message_case != JAUNT__CONTROL__MESSAGE_CONFIGURE) {
		result = target_unexpected(message, error);
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
	link_flush(&target->link, target_deadline(target) - clock_ns());
	target_unprepare(target);
	return 0;
}

static void refuse(struct target *target, const struct jaunt_error *error)
{
	if (!target->linked || target->link.closed)
		return;
	target_say(target, JAUNT__CONTROL__MESSAGE_REFUSED, error->reason, error->text);
	link_flush(&target->link, target_deadline(target) - clock_ns());
}

/* 1: a VM is prepared and the source knows. 0: cancelled here. */
int target_await_source(struct target *target, struct jaunt_error *error)
{
	for (;;) {
		migration_phase(&target->base, JAUNT_PHASE_WAITING);
		target->awaits_source = true;
		while (!target->linked) {
			Jaunt__Control *message;
			if (atomic_load(&target->base.cancel) || atomic_load(&target->base.abandon))
				return error_set(error, ECANCELED, "cancelled",
						 "cancelled while waiting for a source");
			int result = target_turn(target, UINT64_MAX, &message);
			if (result < 0)
				return error_set(error, EIO, "io_uring", "wait for a source");
		}
		target->awaits_source = false;
		migration_phase(&target->base, JAUNT_PHASE_PREPARING);
		target->differ = false;
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
		target_drop_link(target);
	}
}
