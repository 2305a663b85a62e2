/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the target hears of exposed memory: chunks as they are registered, before the pause and
 * after COMMIT; and with FREEZE, those that are stale.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/source/source.h"
#include "engine/trace.h"

#define CHUNKS_A_MESSAGE 1024u
#define LOOK_NS          100000000u
#define ROOM_LEFT        8u /* for messages that somebody waits for */

static void chunks_ready(void *user)
{
	struct source *source = user;
	session_wake(&source->shared.session);
}

void source_tell_exposed(struct source *source)
{
	struct expose_told told[CHUNKS_A_MESSAGE];
	Jaunt__Chunk chunks[CHUNKS_A_MESSAGE], *list[CHUNKS_A_MESSAGE];
	size_t count;

	/* A target that takes none is told later. */
	while (link_room(&source->link) > ROOM_LEFT &&
	       (count = expose_take(&source->expose, told, CHUNKS_A_MESSAGE))) {
		Jaunt__Control message = JAUNT__CONTROL__INIT;
		Jaunt__Exposed exposed = JAUNT__EXPOSED__INIT;
		for (size_t i = 0; i < count; i++) {
			list[i] = &chunks[i];
			jaunt__chunk__init(&chunks[i]);
			chunks[i].region = (uint32_t)told[i].region;
			chunks[i].first_page = told[i].first;
			chunks[i].page_count = told[i].count;
			chunks[i].address = told[i].address;
			chunks[i].key = told[i].key;
		}
		exposed.chunks = list;
		exposed.n_chunks = count;
		message.message_case = JAUNT__CONTROL__MESSAGE_EXPOSED;
		message.exposed = &exposed;
		if (link_send(&source->link, &message) < 0)
			return;
	}
}

static void trace_pass(struct source *source)
{
	struct expose_figures figures;
	struct jaunt_error why;

	expose_figures(&source->expose, &figures);
	trace_event(source->base.lane, "exposed",
		    "%" PRIu64 " MiB registered (%" PRIu64 " MiB of it were holes) in %.1f ms, "
		    "estimated %.1f ms",
		    figures.bytes >> 20, figures.hole_bytes >> 20, (double)figures.took_ns / 1e6,
		    (double)figures.estimate_ns / 1e6);
	if (expose_why(&source->expose, &why))
		trace_event(source->base.lane, "expose", "%s", why.text);
}

/* Until the first pass is over and all of it told, or nobody wants to wait for it any more. The
 * guest runs meanwhile: what this takes is no part of its downtime. */
static int tell_first_pass(struct source *source, struct jaunt_error *error)
{
	uint64_t deadline = 0; /* for the target to take what is told */

	for (;;) {
		Jaunt__Control *message;
		if (atomic_load(&source->base.switch_wanted))
			expose_stop(&source->expose);
		bool finished = expose_finished(&source->expose);
		source_tell_exposed(source);
		if (finished && !atomic_load(&source->expose.untold))
			return 0;
		if (finished && !deadline)
			deadline = source_deadline(source);
		if (deadline && clock_ns() >= deadline)
			return error_set(error, ETIMEDOUT, "peer-silent",
					 "the target has taken no message for %u ms",
					 source->base.options.peer_timeout_ms);
		int result = source_look(source, clock_ns() + LOOK_NS, &message, error);
		if (result == 1) {
			result = source_unexpected(message, error);
			control_free(message);
		}
		if (result < 0)
			return result;
	}
}

int source_expose(struct source *source, struct jaunt_error *error)
{
	/* With pre-copy alone nothing is left to be asked for after the switch. */
	if (!source->takes_read || !channel_can_read(source->link.channel) ||
	    strcmp(source->base.options.mode, "pre-copy") == 0)
		return 0;
	/* What a guest gives back meanwhile would make the target READ pages that are not the
	 * guest's any more: without reports nothing is registered while it runs. */
	bool reports = source->ops->report_to;
	int result =
		(reports ? expose_start : expose_open)(&source->expose, &source->shared.memory,
						       source->link.channel, chunks_ready, source);
	if (result < 0) { /* then all is fetched by message */
		trace_event(source->base.lane, "expose", "the registration did not start");
		return 0;
	}
	if (!reports && !source->expose.on_demand) {
		trace_event(source->base.lane, "expose",
			    "only after the switch: the driver does not report discards");
		return 0;
	}
	struct expose_figures figures;
	expose_figures(&source->expose, &figures);
	trace_event(source->base.lane, "expose",
		    "%" PRIu64 " MiB to be registered, estimated %.1f ms", figures.wanted >> 20,
		    (double)figures.estimate_ns / 1e6);
	source->exposing = true;
	/* Beside rounds it goes on by itself. */
	return migration_has_rounds(source->base.options.mode)
		       ? 0
		       : source_await_exposed(source, error);
}

int source_await_exposed(struct source *source, struct jaunt_error *error)
{
	int result = source->exposing ? tell_first_pass(source, error) : 0;

	source_end_exposing(source);
	return result;
}

void source_end_exposing(struct source *source)
{
	if (!source->exposing)
		return;
	source->exposing = false;
	expose_stop(&source->expose);
	source_tell_exposed(source);
	trace_pass(source);
}

void source_expose_again(struct source *source)
{
	if (!source->takes_read || !channel_can_read(source->link.channel))
		return;
	expose_use(&source->expose, source->link.channel);
	if (expose_again(&source->expose) < 0)
		trace_event(source->base.lane, "expose", "the registration did not start");
}

int source_freeze_exposed(struct source *source, Jaunt__Freeze *freeze, struct jaunt_error *error)
{
	uint64_t room = source->expose.block_count + JAUNT_MAX_REGIONS + 1;

	freeze->unexposed = NULL;
	freeze->n_unexposed = 0;
	if (!source->expose.block_count)
		return 0;
	if (room > CONTROL_RUNS_MAX)
		room = CONTROL_RUNS_MAX;
	struct expose_told *told = malloc(room * sizeof(*told));
	size_t count = told ? expose_freeze(&source->expose, told, room) : 0;
	Jaunt__Run *runs = malloc(count * sizeof(*runs) + 1);
	Jaunt__Run **list = malloc(count * sizeof(Jaunt__Run *) + 1);
	if (!told || !runs || !list) {
		free(told);
		free(runs);
		free(list);
		return error_set(error, ENOMEM, "no-memory",
				 "out of memory for the list of memory not to be READ");
	}
	for (size_t i = 0; i < count; i++) {
		list[i] = &runs[i];
		jaunt__run__init(&runs[i]);
		runs[i].region = (uint32_t)told[i].region;
		runs[i].first_page = told[i].first;
		runs[i].page_count = told[i].count;
	}
	free(told);
	freeze->unexposed = list;
	freeze->n_unexposed = count;
	if (!count)
		free(runs);
	return 0;
}

void source_freeze_forget(Jaunt__Freeze *freeze)
{
	if (freeze->n_unexposed)
		free(freeze->unexposed[0]); /* all runs are one allocation */
	free(freeze->unexposed);
	freeze->unexposed = NULL;
	freeze->n_unexposed = 0;
}

void source_exposed_status(struct source *source, struct jaunt_status *status)
{
	struct expose_figures figures;
	struct jaunt_error why;

	expose_figures(&source->expose, &figures);
	status->registered_bytes = figures.bytes;
	status->registered_hole_bytes = figures.hole_bytes;
	status->registered_stale = figures.stale;
	status->register_ms = (double)figures.took_ns / 1e6;
	status->registered_wanted_bytes = figures.wanted;
	status->register_estimate_ms = (double)figures.estimate_ns / 1e6;
	if (expose_why(&source->expose, &why))
		snprintf(status->register_error, sizeof(status->register_error), "%s", why.text);
}
