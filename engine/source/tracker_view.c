/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Trackers that watch the VM's view from outside, and need nothing of its driver: asynchronous
 * write-protection, and soft-dirty where the kernel is too old for that.
 *
 * Write-protection needs the userfaultfd of the address space that holds the view. The driver's is
 * taken if it has one (one that it made for this: UFFDIO_API has not been called on it), else one
 * of this process is opened. A range belongs to one userfaultfd at a time, so a VM that has just
 * arrived can be tracked once the migration that brought it is closed.
 */
#include <errno.h>

#include "base/error.h"
#include "engine/source/tracker_private.h"

struct emit_context {
	struct dirty *dirty;
	size_t region;
};

/* From any of several threads. */
static void emit(void *context, uint64_t first_page, uint64_t count)
{
	const struct emit_context *to = context;
	dirty_mark(to->dirty, to->region, first_page, count);
}

static int process_of(const struct tracker *tracker)
{
	return tracker->ops->process ? tracker->ops->process(tracker->vm) : 0;
}

/* The VM stands still, and no device of it writes, while `look` does. */
static int while_paused(struct tracker *tracker,
			int (*look)(struct tracker *tracker, struct jaunt_error *error),
			struct jaunt_error *error)
{
	uint64_t ignored;
	struct jaunt_error failed = {0};
	int result = tracker->ops->pause(tracker->vm, &ignored, error);

	if (result == 0)
		result = look(tracker, error);
	/* Whether it could be paused or not, it is to run. */
	int resumed = tracker->ops->resume(tracker->vm, &ignored, &failed);
	tracker->stands_still = resumed < 0;
	if (resumed < 0 && result == 0) {
		result = resumed;
		*error = failed;
	}
	return result;
}

/* --- Write-protection
 * ---------------------------------------------------------------------------- */

static int open_uffd(struct tracker *tracker, struct jaunt_error *error)
{
	const struct jaunt_vm_ops *ops = tracker->ops;
	bool hugetlb = guestmem_largest_page(tracker->memory) > 4096;

	if (!ops->userfaultfd)
		return uffd_open(&tracker->uffd, error);
	int fd = ops->userfaultfd(tracker->vm, error);
	return fd < 0 ? fd : uffd_adopt(&tracker->uffd, fd, hugetlb, error);
}

static void wp_close_all(struct tracker *tracker, size_t count)
{
	for (size_t i = 0; i < count; i++)
		wp_close(&tracker->wp[i]);
	uffd_close(&tracker->uffd);
}

static int write_protect_open(struct tracker *tracker, struct jaunt_error *error)
{
	/* Whatever stands in the way of a userfaultfd, another kind of tracker may do without. */
	if (open_uffd(tracker, error) < 0)
		return -ENOTSUP;
	for (size_t i = 0; i < tracker->memory->region_count; i++) {
		const struct guest_region *region = &tracker->memory->regions[i];
		tracker->wp[i] = (struct wp){.uffd = &tracker->uffd,
					     .pid = process_of(tracker),
					     .address = guestmem_vm_address(region, 0),
					     .bytes = region->pages * region->page_bytes,
					     .page_bytes = region->page_bytes,
					     .fd = region->fd,
					     .fd_offset = region->fd_offset};
		int result = wp_open(&tracker->wp[i], error);
		if (result < 0) {
			wp_close_all(tracker, i);
			return result;
		}
	}
	return 0;
}

static int protect_all(struct tracker *tracker, struct jaunt_error *error)
{
	for (size_t i = 0; i < tracker->memory->region_count; i++) {
		int result = wp_start(&tracker->wp[i], error);
		while (result < 0 && i--)
			wp_stop(&tracker->wp[i]);
		if (result < 0)
			return result;
	}
	tracker->half_on = true; /* even if the VM cannot be resumed now */
	return 0;
}

static int collect_all(struct tracker *tracker, bool running, struct jaunt_error *error)
{
	for (size_t i = 0; i < tracker->memory->region_count; i++) {
		struct emit_context to = {tracker->dirty, i};
		int result = wp_collect(&tracker->wp[i], running, emit, &to, error);
		if (result < 0)
			return result;
	}
	return 0;
}

/* What is found is armed again. A device that has looked up one of these pages may yet write to it
 * unseen; of another page that it looks up from now on the next collect tells. */
static int collect_and_arm(struct tracker *tracker, struct jaunt_error *error)
{
	return collect_all(tracker, true, error);
}

/* A device that looked up a page before it was armed writes to it unseen. */
static bool writes_late(const struct tracker *tracker)
{
	return tracker->ops->writes_late && tracker->ops->writes_late(tracker->vm);
}

static int write_protect_start(struct tracker *tracker, struct jaunt_error *error)
{
	return writes_late(tracker) ? while_paused(tracker, protect_all, error)
				    : protect_all(tracker, error);
}

static int write_protect_collect(struct tracker *tracker, bool running, struct jaunt_error *error)
{
	return running && writes_late(tracker) ? while_paused(tracker, collect_and_arm, error)
					       : collect_all(tracker, running, error);
}

static int write_protect_stop(struct tracker *tracker, struct jaunt_error *error)
{
	(void)error;
	for (size_t i = 0; i < tracker->memory->region_count; i++)
		wp_stop(&tracker->wp[i]);
	return 0;
}

static void write_protect_close(struct tracker *tracker)
{
	wp_close_all(tracker, tracker->memory->region_count);
}

const struct tracker_ops tracker_write_protect = {.kind = TRACKER_WRITE_PROTECT,
						  .open = write_protect_open,
						  .start = write_protect_start,
						  .collect = write_protect_collect,
						  .collect_stale = collect_and_arm,
						  .stop = write_protect_stop,
						  .close = write_protect_close};

/* --- Soft-dirty
 * ----------------------------------------------------------------------------------- */

static int soft_dirty_start_all(struct tracker *tracker, struct jaunt_error *error)
{
	return soft_dirty_clear(&tracker->soft_dirty, error);
}

static int open_soft_dirty(struct tracker *tracker, struct jaunt_error *error)
{
	/* The kernel keeps no soft-dirty bits for hugetlb pages: every write would be missed. */
	if (guestmem_largest_page(tracker->memory) > 4096)
		return error_set(error, ENOTSUP, "no-tracker",
				 "soft-dirty tracking: sees no writes to huge pages");
	return soft_dirty_open(&tracker->soft_dirty, process_of(tracker), error);
}

static int read_all(struct tracker *tracker, struct jaunt_error *error)
{
	for (size_t i = 0; i < tracker->memory->region_count; i++) {
		const struct guest_region *region = &tracker->memory->regions[i];
		struct emit_context to = {tracker->dirty, i};
		const struct soft_dirty_range range = {.address = guestmem_vm_address(region, 0),
						       .bytes = region->pages * region->page_bytes,
						       .page_bytes = region->page_bytes,
						       .fd = region->fd,
						       .fd_offset = region->fd_offset};
		int result = soft_dirty_read(&tracker->soft_dirty, &range, emit, &to, error);
		if (result < 0)
			return result;
	}
	return 0;
}

/* There is no way to read and clear in one step: a write in between would be lost. So the VM stands
 * still in between. */
static int read_and_clear(struct tracker *tracker, struct jaunt_error *error)
{
	int result = read_all(tracker, error);
	return result ? result : soft_dirty_clear(&tracker->soft_dirty, error);
}

static int soft_dirty_collect(struct tracker *tracker, bool running, struct jaunt_error *error)
{
	return running ? while_paused(tracker, read_and_clear, error) : read_all(tracker, error);
}

static int soft_dirty_stop(struct tracker *tracker, struct jaunt_error *error)
{
	(void)tracker, (void)error; /* what is still protected costs one fault each, and no more */
	return 0;
}

static void soft_dirty_close_it(struct tracker *tracker)
{
	soft_dirty_close(&tracker->soft_dirty);
}

const struct tracker_ops tracker_soft_dirty = {.kind = TRACKER_SOFT_DIRTY,
					       .pauses = true,
					       .open = open_soft_dirty,
					       .start = soft_dirty_start_all,
					       .collect = soft_dirty_collect,
					       .stop = soft_dirty_stop,
					       .close = soft_dirty_close_it};
