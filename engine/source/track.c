/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty tracking as the source uses it: the tracker's reports and the driver's end up as marks in
 * one bitmap.
 *
 * Order. Whoever changes memory past the tracker changes it first and reports it then. If the
 * report finds `tracking` clear, the change came before source_track() set it, and the first round,
 * which reads every page after that, reads it. If the report finds it set, the page is dirty. The
 * tracker runs before `tracking` is set, the first round comes after both.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "engine/source/source.h"
#include "engine/trace.h"

static int open_tracker(struct source *source, enum tracker_kind kind, struct jaunt_error *error)
{
	struct source_shared *shared = &source->shared;

	if (!shared->dirty.region_count && dirty_open(&shared->dirty, &shared->memory) < 0)
		return error_set(error, ENOMEM, "no-memory",
				 "out of memory for the map of dirty pages");
	return source->tracker ? 0
			       : tracker_open(&source->tracker, kind, source->ops, source->vm,
					      &shared->memory, &shared->dirty, error);
}

int source_sample(struct source *source, enum tracker_kind kind, unsigned every,
		  struct jaunt_error *error)
{
	int result = open_tracker(source, kind, error);

	if (result == 0 && (result = tracker_sample(source->tracker, every)) < 0)
		return error_set(error, -result, "no-sample",
				 "sample the pages that are written: %s", strerror(-result));
	return result;
}

int64_t source_sampled(struct source *source)
{
	return tracker_sampled(source->tracker);
}

int source_track(struct source *source, enum tracker_kind kind, struct jaunt_error *error)
{
	int result = open_tracker(source, kind, error);

	if (result < 0)
		return result;
	result = tracker_start(source->tracker, error);
	if (tracker_stands_still(source->tracker))
		source->to_resume = true; /* as behind a collect */
	if (result < 0)
		return result;
	atomic_store(&source->shared.tracking, true);
	trace_event(source->base.lane, "tracking", "%s",
		    tracker_kind_name(tracker_kind(source->tracker)));
	return 0;
}

int source_collect(struct source *source, struct jaunt_error *error)
{
	int result = tracker_collect(source->tracker, !source->stands_still, error);

	if (tracker_stands_still(source->tracker))
		source->to_resume = true; /* whoever ends the migration here tries again */
	return result;
}

int source_collect_stale(struct source *source, struct jaunt_error *error)
{
	int result = tracker_collect_stale(source->tracker, error);

	if (tracker_stands_still(source->tracker))
		source->to_resume = true;
	return result;
}

int source_untrack(struct source *source, struct jaunt_error *error)
{
	/* A report that has seen it set may still be marking: the map stays until the source is
	 * closed. */
	atomic_store(&source->shared.tracking, false);
	int result = tracker_stop(source->tracker, error);
	if (result < 0)
		trace_event(source->base.lane, "untrack", "%s", error->text);
	return result;
}

void source_changed(struct jaunt_migration *migration, size_t region, uint64_t first,
		    uint64_t count, bool discarded)
{
	struct source *source = (struct source *)migration;

	if (discarded) { /* what is registered with a device is not the guest's any more */
		atomic_store(&source->shared.discards, true);
		if (!atomic_load(&source->shared.session.epoch)) {
			expose_discarded(&source->expose, region, first, count);
		} else if (atomic_load(&source->expose.exposing) && !source->expose.on_demand) {
			/* Its key may be in use, so it cannot be revoked; nor can the READs be
			 * believed. */
			atomic_store(&source->discarded_late, true);
			session_lose(&source->shared.session, "late-discard",
				     "the VM's driver reported a discard after the pause");
		}
	}
	if (atomic_load(&source->shared.tracking))
		dirty_mark(&source->shared.dirty, region, first, count);
}
