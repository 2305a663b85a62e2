/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of guest memory were written while the VM runs: one interface for the driver's own
 * tracking (ops->track_*) and for those that need nothing of a driver.
 *
 * tracker_start() → { tracker_collect() }* → tracker_stop(), any number of times. All of them are
 * called from one thread, the source's. Before the start some can look at a sample, which costs the
 * guest as much less as it is smaller: tracker_sample() → { tracker_sampled() }*.
 *
 * The promise: a page that was written after tracker_start() returned is reported by a collect, at
 * the latest by the one that begins after the vCPUs were stopped. What a collect reports is armed
 * again before it is marked dirty, so bytes that are read behind the mark are as new as the mark,
 * and a write after that is for the next collect. More may be reported than was written, never
 * less.
 *
 * No tracker sees pages that are given back (a hole being punched), or writes that pass the VM's
 * view: these the driver reports (jaunt_migration_discarded(), jaunt_migration_wrote()).
 */
#ifndef ENGINE_SOURCE_TRACKER_H
#define ENGINE_SOURCE_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/guestmem.h"
#include "engine/source/dirty.h"
#include "jaunt.h"

enum tracker_kind {
	TRACKER_AUTO,          /* the first of the following that this VM and host have */
	TRACKER_DRIVER,        /* "driver": ops->track_* */
	TRACKER_WRITE_PROTECT, /* "write-protect": asynchronous userfaultfd and PAGEMAP_SCAN */
	TRACKER_SOFT_DIRTY,    /* "soft-dirty": /proc/PID/clear_refs and pagemap */
};

struct tracker;

/* Finds out which one can be used and makes it ready; costs the guest nothing yet. `memory` and
 * `dirty` must outlive it. */
int tracker_open(struct tracker **out, enum tracker_kind kind, const struct jaunt_vm_ops *ops,
		 void *vm, const struct guestmem *memory, struct dirty *dirty,
		 struct jaunt_error *error);
void tracker_close(struct tracker *tracker); /* stops it, if it can; NULL is fine */

/* From now on it is noted whether about one page in `every`, a power of two, is written; the start
 * or the stop ends it. -errno: it cannot be done here. */
int tracker_sample(struct tracker *tracker, unsigned every);
/* How many of these pages were written since, or -errno. */
int64_t tracker_sampled(struct tracker *tracker);
/* -ENOTSUP: no kind that may be used can track this VM, even if one could look at a sample. If it
 * fails nothing is on, the sample neither, or a stop is to try that again. */
int tracker_start(struct tracker *tracker, struct jaunt_error *error);
/* Marks in `dirty` what was written since the start or the last collect. `running` is false only
 * while every vCPU stands still: then it may be faster, and the next collect may tell the same. */
int tracker_collect(struct tracker *tracker, bool running, struct jaunt_error *error);
/* The same of a running VM, when what it marks is told to the target as stale and sent by no round
 * any more: whatever is written to such a page later, seen or not, need not be told again. So the
 * VM is not paused for a device that writes late. */
int tracker_collect_stale(struct tracker *tracker, struct jaunt_error *error);
/* Whether even that has the driver pause the VM for a moment. */
bool tracker_pauses(const struct tracker *tracker);
/* A start or a collect failed and left the VM paused: it is to be resumed. */
bool tracker_stands_still(const struct tracker *tracker);
/* The guest is as fast as before: 0, also if it was not started. Else it may not be, -errno with
 * `error`: nothing can be collected any more, and to stop can be tried again. */
int tracker_stop(struct tracker *tracker, struct jaunt_error *error);

/* What it is; TRACKER_AUTO: nothing, a start has found that none can be used. Its name as in
 * options and messages. */
enum tracker_kind tracker_kind(const struct tracker *tracker);
const char *tracker_kind_name(enum tracker_kind kind);
/* NULL is "auto". */
bool tracker_kind_parse(const char *name, enum tracker_kind *kind);

#endif
