/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * "4" written to /proc/PID/clear_refs clears the soft-dirty bit of every page of the process and
 * protects it; the fault of the next write sets it again, and /proc/PID/pagemap shows it. A page
 * table entry that is gone takes the bit with it: of a page of a file that was written and then
 * swapped out, or unmapped by reclaim, nothing remains in the mapping. So a page that the file has
 * and the mapping has not counts as written: too much where a page was never mapped, never too
 * little.
 *
 * A kernel without it (CONFIG_MEM_SOFT_DIRTY) accepts the clearing all the same and never shows the
 * bit. One with it shows every page of a new mapping as dirty, which is how to tell.
 */
#include "fault/soft_dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "fault/pagemap_abi.h"

#define SMALL_PAGE UINT64_C(4096)
#define ENTRIES    1024 /* read at once: 4 MiB of the mapping */

static int open_proc(int pid, const char *name, int flags)
{
	char path[64];
	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", name);
	int fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int clear(int fd)
{
	return pwrite(fd, "4", 1, 0) == 1 ? 0 : -errno;
}

bool soft_dirty_supported(void)
{
	int pagemap_fd = open_proc(0, "pagemap", O_RDONLY);
	volatile char *page =
		mmap(NULL, SMALL_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t entry = 0;
	bool works = false;
	if (pagemap_fd >= 0 && page != MAP_FAILED) {
		*page = 1;
		off_t at = (off_t)((uintptr_t)page / SMALL_PAGE * sizeof(entry));
		works = pread(pagemap_fd, &entry, sizeof(entry), at) == sizeof(entry) &&
			(entry & PAGEMAP_SOFT_DIRTY);
	}
	if (page != MAP_FAILED)
		munmap((void *)page, SMALL_PAGE);
	if (pagemap_fd >= 0)
		close(pagemap_fd);
	return works;
}

int soft_dirty_open(struct soft_dirty *soft_dirty, int pid, struct jaunt_error *error)
{
	soft_dirty->clear_fd = soft_dirty->pagemap_fd = -1;
	if (!soft_dirty_supported())
		return error_set(error, ENOTSUP, "no-tracker",
				 "dirty tracking: this kernel has no soft-dirty bits "
				 "(CONFIG_MEM_SOFT_DIRTY); what is used before them, asynchronous "
				 "write-protection, needs Linux 6.7");
	soft_dirty->clear_fd = open_proc(pid, "clear_refs", O_WRONLY);
	soft_dirty->pagemap_fd = open_proc(pid, "pagemap", O_RDONLY);
	if (soft_dirty->clear_fd >= 0 && soft_dirty->pagemap_fd >= 0)
		return 0;
	int code = soft_dirty->clear_fd < 0 ? -soft_dirty->clear_fd : -soft_dirty->pagemap_fd;
	soft_dirty_close(soft_dirty);
	return error_set(error, code, "no-pagemap",
			 "dirty tracking: open the process's pagemap and clear_refs: %s; may this "
			 "user trace the process?",
			 strerror(code));
}

void soft_dirty_close(struct soft_dirty *soft_dirty)
{
	if (soft_dirty->clear_fd >= 0)
		close(soft_dirty->clear_fd);
	if (soft_dirty->pagemap_fd >= 0)
		close(soft_dirty->pagemap_fd);
	soft_dirty->clear_fd = soft_dirty->pagemap_fd = -1;
}

int soft_dirty_clear(struct soft_dirty *soft_dirty, struct jaunt_error *error)
{
	int failed = clear(soft_dirty->clear_fd);
	if (!failed)
		return 0;
	return error_set(error, -failed, "soft-dirty", "clear soft-dirty bits: %s",
			 strerror(-failed));
}

static int64_t seek_data(const struct soft_dirty_range *range, uint64_t offset)
{
	off_t data = lseek(range->fd, (off_t)(range->fd_offset + offset), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? INT64_MAX : (int64_t)offset;
	return (int64_t)((uint64_t)data - range->fd_offset);
}

/* Whether the page at this offset, of which the mapping has nothing, is to count as written. */
static bool unmapped_is_dirty(const struct soft_dirty_range *range, uint64_t offset, int64_t *data)
{
	if (*data < (int64_t)offset)
		*data = seek_data(range, offset);
	return *data < (int64_t)(offset + SMALL_PAGE);
}

int soft_dirty_read(struct soft_dirty *soft_dirty, const struct soft_dirty_range *range,
		    wp_emit *emit, void *context, struct jaunt_error *error)
{
	uint64_t entries[ENTRIES], first = 0, end = 0; /* the run so far, in the file's pages */
	int64_t data = -1; /* where the file has data next, from the last question on */

	for (uint64_t at = seek_data(range, 0) == INT64_MAX ? range->bytes : 0;
	     at < range->bytes;) {
		uint64_t left = (range->bytes - at) / SMALL_PAGE;
		uint64_t wanted = left < ENTRIES ? left : ENTRIES;
		ssize_t got = pread(soft_dirty->pagemap_fd, entries, wanted * 8,
				    (off_t)((range->address + at) / SMALL_PAGE * 8));
		if (got < 8)
			return error_set(error, got < 0 ? errno : EIO, "soft-dirty",
					 "read the process's pagemap: %s",
					 strerror(got < 0 ? errno : EIO));
		for (uint64_t i = 0; i < (uint64_t)got / 8; i++, at += SMALL_PAGE) {
			bool mapped = entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED);
			bool dirty = entries[i] & PAGEMAP_SOFT_DIRTY;
			if (!mapped)
				dirty = unmapped_is_dirty(range, at, &data);
			if (!dirty)
				continue;
			uint64_t page = at / range->page_bytes;
			if (first < end && page > end)
				emit(context, first, end - first);
			if (first == end || page > end)
				first = page;
			end = page + 1;
		}
		/* Over what the file does not have, nothing can have been written. */
		int64_t next = at < range->bytes ? seek_data(range, at) : 0;
		if (next > (int64_t)at)
			at = (uint64_t)next < range->bytes
				     ? (uint64_t)next / SMALL_PAGE * SMALL_PAGE
				     : range->bytes;
	}
	if (first < end)
		emit(context, first, end - first);
	return 0;
}
