/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/tracker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/source/tracker_private.h"

static const char *const kind_names[] = {[TRACKER_AUTO] = "auto",
					 [TRACKER_DRIVER] = "driver",
					 [TRACKER_WRITE_PROTECT] = "write-protect",
					 [TRACKER_SOFT_DIRTY] = "soft-dirty"};

const char *tracker_kind_name(enum tracker_kind kind)
{
	return kind_names[kind];
}

bool tracker_kind_parse(const char *name, enum tracker_kind *kind)
{
	if (!name)
		name = kind_names[TRACKER_AUTO];
	for (unsigned i = 0; i < sizeof(kind_names) / sizeof(kind_names[0]); i++) {
		if (strcmp(kind_names[i], name) == 0) {
			*kind = (enum tracker_kind)i;
			return true;
		}
	}
	return false;
}

/* --- The driver's own
 * ----------------------------------------------------------------------------- */

static int driver_open(struct tracker *tracker, struct jaunt_error *error)
{
	const struct jaunt_vm_ops *ops = tracker->ops;

	if (ops->track_start && ops->track_collect && ops->track_stop)
		return 0;
	return error_set(error, ENOTSUP, "no-tracker",
			 "dirty tracking: driver %s has none of its own", ops->driver);
}

static int driver_start(struct tracker *tracker, struct jaunt_error *error)
{
	tracker->half_on = true; /* if it fails, too, for all that is known */
	return tracker->ops->track_start(tracker->vm, error);
}

static void emit(void *context, size_t region, uint64_t first_page, uint64_t count)
{
	dirty_mark(context, region, first_page, count);
}

static int driver_collect(struct tracker *tracker, bool running, struct jaunt_error *error)
{
	(void)running; /* it knows */
	return tracker->ops->track_collect(tracker->vm, emit, tracker->dirty, error);
}

static int driver_sample(struct tracker *tracker, unsigned every)
{
	const struct jaunt_vm_ops *ops = tracker->ops;

	if (!ops->track_sample || !ops->track_sampled)
		return -ENOTSUP;
	tracker->half_on = true;
	return ops->track_sample(tracker->vm, every);
}

static int64_t driver_sampled(struct tracker *tracker)
{
	return tracker->ops->track_sampled(tracker->vm);
}

static int driver_stop(struct tracker *tracker, struct jaunt_error *error)
{
	return tracker->ops->track_stop(tracker->vm, error);
}

static void driver_close(struct tracker *tracker)
{
	(void)tracker;
}

static const struct tracker_ops tracker_driver = {.kind = TRACKER_DRIVER,
						  .open = driver_open,
						  .start = driver_start,
						  .collect = driver_collect,
						  .sample = driver_sample,
						  .sampled = driver_sampled,
						  .stop = driver_stop,
						  .close = driver_close};

/* --- Whichever it is
 * ------------------------------------------------------------------------------ */

/* In the order of preference. */
static const struct tracker_ops *const kinds[] = {&tracker_driver, &tracker_write_protect,
						  &tracker_soft_dirty};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* Not to be had here, or taken by somebody else: a log or a userfaultfd has one user. */
static bool another_may(int result)
{
	return result == -ENOTSUP || result == -EBUSY;
}

/* The first kind from the i-th on that can be opened. What is said if none can is about the last
 * one that was tried. */
static int open_from(struct tracker *tracker, size_t i, struct jaunt_error *error)
{
	int result = -ENOTSUP;

	for (tracker->kind = NULL; i < KINDS && another_may(result); i++) {
		result = kinds[i]->open(tracker, error);
		if (result == 0)
			tracker->kind = kinds[i];
	}
	return result;
}

static size_t index_of(const struct tracker_ops *kind)
{
	size_t i = 0;
	while (kinds[i] != kind)
		i++;
	return i;
}

int tracker_open(struct tracker **out, enum tracker_kind kind, const struct jaunt_vm_ops *ops,
		 void *vm, const struct guestmem *memory, struct dirty *dirty,
		 struct jaunt_error *error)
{
	struct tracker *tracker = calloc(1, sizeof(*tracker));
	int result = -ENOTSUP;

	if (!tracker)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	*tracker = (struct tracker){.any = kind == TRACKER_AUTO,
				    .ops = ops,
				    .vm = vm,
				    .memory = memory,
				    .dirty = dirty,
				    .uffd = {.fd = -1}};
	if (tracker->any)
		result = open_from(tracker, 0, error);
	for (size_t i = 0; i < KINDS && !tracker->any; i++) {
		if (kinds[i]->kind != kind)
			continue;
		result = kinds[i]->open(tracker, error);
		tracker->kind = result ? NULL : kinds[i];
	}
	if (result < 0) {
		tracker_close(tracker);
		return result;
	}
	*out = tracker;
	return 0;
}

void tracker_close(struct tracker *tracker)
{
	if (!tracker)
		return;
	struct jaunt_error ignored = {0}; /* whoever wanted to know has stopped it before */
	tracker_stop(tracker, &ignored);
	if (tracker->kind)
		tracker->kind->close(tracker);
	free(tracker);
}

/* What has failed is not to cost the guest anything. If that cannot be done now, a stop tries
 * again.
 */
static void take_back(struct tracker *tracker)
{
	struct jaunt_error ignored = {0}; /* the first says why */
	tracker_stop(tracker, &ignored);
}

int tracker_sample(struct tracker *tracker, unsigned every)
{
	int result = -ENOTSUP;

	if (tracker->kind && tracker->kind->sample)
		result = tracker->kind->sample(tracker, every);
	if (result < 0)
		take_back(tracker);
	tracker->sampling = result == 0;
	return result;
}

int64_t tracker_sampled(struct tracker *tracker)
{
	return tracker->sampling ? tracker->kind->sampled(tracker) : -EINVAL;
}

/* What cannot be used is let go, its sample with it; the next kind takes its place. */
static int try_next(struct tracker *tracker, struct jaunt_error *error)
{
	size_t next = index_of(tracker->kind) + 1;

	int result = tracker_stop(tracker, error);
	if (result < 0)
		return result;
	tracker->kind->close(tracker);
	return open_from(tracker, next, error);
}

int tracker_start(struct tracker *tracker, struct jaunt_error *error)
{
	int result = -ENOTSUP;

	/* A driver may find out only now that this VM of its cannot. */
	while (tracker->kind && another_may(result = tracker->kind->start(tracker, error)) &&
	       tracker->any) {
		int opened = try_next(tracker, error);
		if (opened < 0)
			return error_context(error, "start dirty tracking");
	}
	if (!tracker->kind)
		return error_set(error, ENOTSUP, "no-tracker", "there is no dirty tracking here");
	if (result < 0) {
		take_back(tracker);
		return error_context(error, "start dirty tracking");
	}
	tracker->started = true;
	tracker->sampling = false;
	return 0;
}

int tracker_collect(struct tracker *tracker, bool running, struct jaunt_error *error)
{
	int result = tracker->started ? tracker->kind->collect(tracker, running, error)
				      : error_set(error, EINVAL, "bug", "dirty tracking is off");

	return result < 0 ? error_context(error, "collect dirty pages") : 0;
}

int tracker_collect_stale(struct tracker *tracker, struct jaunt_error *error)
{
	if (!tracker->started || !tracker->kind->collect_stale)
		return tracker_collect(tracker, true, error);
	int result = tracker->kind->collect_stale(tracker, error);
	return result < 0 ? error_context(error, "collect dirty pages") : 0;
}

bool tracker_pauses(const struct tracker *tracker)
{
	return tracker->kind->pauses;
}

bool tracker_stands_still(const struct tracker *tracker)
{
	return tracker->stands_still;
}

int tracker_stop(struct tracker *tracker, struct jaunt_error *error)
{
	if (!tracker || (!tracker->started && !tracker->sampling && !tracker->half_on))
		return 0;
	tracker->started = tracker->sampling = false;
	int result = tracker->kind->stop(tracker, error);
	tracker->half_on = result < 0;
	return result < 0 ? error_context(error, "stop dirty tracking") : 0;
}

enum tracker_kind tracker_kind(const struct tracker *tracker)
{
	return tracker->kind ? tracker->kind->kind : TRACKER_AUTO;
}
