/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/tracker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

struct tracker {
	enum tracker_kind kind;
	const struct jaunt_vm_ops *ops;
	void *vm;
	const struct guestmem *memory;
	struct dirty *dirty;
	bool started;
};

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

static bool has_driver(const struct jaunt_vm_ops *ops)
{
	return ops->track_start && ops->track_collect && ops->track_stop;
}

int tracker_open(struct tracker **out, enum tracker_kind kind, const struct jaunt_vm_ops *ops,
		 void *vm, const struct guestmem *memory, struct dirty *dirty,
		 struct jaunt_error *error)
{
	if ((kind != TRACKER_AUTO && kind != TRACKER_DRIVER) || !has_driver(ops))
		return error_set(error, ENOTSUP, "no-tracker",
				 "dirty tracking: driver %s has none of its own", ops->driver);
	struct tracker *tracker = calloc(1, sizeof(*tracker));
	if (!tracker)
		return error_set(error, ENOMEM, "no-memory", "out of memory");
	*tracker = (struct tracker){.kind = TRACKER_DRIVER,
				    .ops = ops,
				    .vm = vm,
				    .memory = memory,
				    .dirty = dirty};
	*out = tracker;
	return 0;
}

void tracker_close(struct tracker *tracker)
{
	if (!tracker)
		return;
	tracker_stop(tracker);
	free(tracker);
}

int tracker_start(struct tracker *tracker, struct jaunt_error *error)
{
	int result = tracker->ops->track_start(tracker->vm, error);

	if (result < 0)
		return error_context(error, "start dirty tracking");
	tracker->started = true;
	return 0;
}

static void emit(void *context, size_t region, uint64_t first_page, uint64_t count)
{
	dirty_mark(context, region, first_page, count);
}

int tracker_collect(struct tracker *tracker, struct jaunt_error *error)
{
	int result = tracker->ops->track_collect(tracker->vm, emit, tracker->dirty, error);

	return result < 0 ? error_context(error, "collect dirty pages") : 0;
}

void tracker_stop(struct tracker *tracker)
{
	if (!tracker || !tracker->started)
		return;
	tracker->started = false;
	tracker->ops->track_stop(tracker->vm);
}

enum tracker_kind tracker_kind(const struct tracker *tracker)
{
	return tracker->kind;
}
