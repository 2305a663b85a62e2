/* SPDX-License-Identifier: Apache-2.0 */
/* What the kinds of trackers share. */
#ifndef ENGINE_SOURCE_TRACKER_PRIVATE_H
#define ENGINE_SOURCE_TRACKER_PRIVATE_H

#include "engine/source/tracker.h"
#include "fault/soft_dirty.h"
#include "fault/wp.h"

struct tracker_ops {
	enum tracker_kind kind;
	bool pauses; /* every collect of a running VM pauses it */
	/* Makes ready; -ENOTSUP where VM, driver or kernel cannot. */
	int (*open)(struct tracker *tracker, struct jaunt_error *error);
	int (*start)(struct tracker *tracker, struct jaunt_error *error);
	int (*collect)(struct tracker *tracker, bool running, struct jaunt_error *error);
	/* NULL: as collect() of a running VM. */
	int (*collect_stale)(struct tracker *tracker, struct jaunt_error *error);
	/* NULL, both: it cannot. */
	int (*sample)(struct tracker *tracker, unsigned every);
	int64_t (*sampled)(struct tracker *tracker);
	int (*stop)(struct tracker *tracker, struct jaunt_error *error);
	void (*close)(struct tracker *tracker);
};

struct tracker {
	const struct tracker_ops *kind; /* NULL: none is open */
	bool any;                       /* another kind would do, too */
	bool started, sampling;
	/* There may be something to stop: a start was tried, or a stop has failed. Never of a range
	 * that another userfaultfd holds: to unregister it here would take it from that one. */
	bool half_on;
	bool stands_still; /* it paused the VM, and could not resume it */
	const struct jaunt_vm_ops *ops;
	void *vm;
	const struct guestmem *memory;
	struct dirty *dirty;

	/* tracker_view.c: of what watches the VM's view from outside */
	struct uffd uffd;
	struct wp wp[JAUNT_MAX_REGIONS];
	struct soft_dirty soft_dirty;
};

extern const struct tracker_ops tracker_write_protect; /* tracker_view.c */
extern const struct tracker_ops tracker_soft_dirty;    /* tracker_view.c */

#endif
