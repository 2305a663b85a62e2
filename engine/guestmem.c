/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/guestmem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static int check_region(const struct jaunt_region *region, struct jaunt_error *error)
{
	const char *name = region->name ? region->name : "";
	uint64_t page = region->page_bytes;

	if (page < 4096 || (page & (page - 1)) != 0)
		return error_set(error, EINVAL, "bad-region",
				 "memory region \"%s\": page size %" PRIu64
				 " is not a power of two from 4096 on",
				 name, page);
	if (!region->bytes || region->bytes % page || region->fd_offset % page ||
	    region->guest_address % page || region->guest_address + region->bytes < region->bytes)
		return error_set(error, EINVAL, "bad-region",
				 "memory region \"%s\": size, offset and address must be multiples "
				 "of its page size",
				 name);
	struct stat status;
	if (fstat(region->fd, &status) < 0)
		return error_set(error, errno, "bad-region",
				 "memory region \"%s\" has no memory file: %s", name,
				 strerror(errno));
	if ((uint64_t)status.st_size < region->fd_offset + region->bytes)
		return error_set(error, EINVAL, "bad-region",
				 "memory region \"%s\": its file is shorter than the region", name);
	if (!region->view)
		return error_set(error, EINVAL, "bad-region",
				 "memory region \"%s\" is not mapped by the VMM", name);
	return 0;
}

int guestmem_open(struct guestmem *memory, const struct jaunt_description *description,
		  bool elsewhere, struct jaunt_error *error)
{
	memset(memory, 0, sizeof(*memory));
	memory->elsewhere = elsewhere;
	if (!description->region_count || description->region_count > JAUNT_MAX_REGIONS)
		return error_set(error, EINVAL, "bad-region",
				 "a VM has 1 to %d memory regions, not %zu", JAUNT_MAX_REGIONS,
				 description->region_count);
	for (size_t i = 0; i < description->region_count; i++) {
		const struct jaunt_region *from = &description->regions[i];
		struct guest_region *region = &memory->regions[i];
		int result = check_region(from, error);
		if (result < 0) {
			guestmem_close(memory);
			return result;
		}
		snprintf(region->name, sizeof(region->name), "%s", from->name ? from->name : "");
		region->guest_address = from->guest_address;
		region->page_bytes = from->page_bytes;
		region->pages = from->bytes / from->page_bytes;
		region->hugetlb = from->page_bytes > 4096;
		region->fd = from->fd;
		region->fd_offset = from->fd_offset;
		region->vm_view = from->view;
		region->view = mmap(NULL, from->bytes, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_NORESERVE, from->fd, (off_t)from->fd_offset);
		if (region->view == MAP_FAILED) {
			region->view = NULL;
			result = error_set(error, errno, "map",
					   "map memory region \"%s\" a second time: %s",
					   region->name, strerror(errno));
			guestmem_close(memory);
			return result;
		}
		memory->region_count = i + 1;
		/* A child of the VMM would read zeros where pages are missing. */
		madvise(region->view, from->bytes, MADV_DONTFORK);
		if (!elsewhere)
			madvise(region->vm_view, from->bytes, MADV_DONTFORK);
		region->near_view = elsewhere ? region->view : region->vm_view;
		memory->pages += region->pages;
		memory->bytes += from->bytes;
	}
	return 0;
}

void guestmem_close(struct guestmem *memory)
{
	for (size_t i = 0; i < memory->region_count; i++) {
		struct guest_region *region = &memory->regions[i];
		munmap(region->view, region->pages * region->page_bytes);
	}
	memset(memory, 0, sizeof(*memory));
}

uint64_t guestmem_largest_page(const struct guestmem *memory)
{
	uint64_t largest = 4096;

	for (size_t i = 0; i < memory->region_count; i++)
		if (memory->regions[i].page_bytes > largest)
			largest = memory->regions[i].page_bytes;
	return largest;
}

int guestmem_punch(const struct guest_region *region, uint64_t first, uint64_t count)
{
	if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(region->fd_offset + first * region->page_bytes),
		      (off_t)(count * region->page_bytes)) < 0)
		return -errno;
	return 0;
}

int guestmem_empty(struct guestmem *memory, struct jaunt_error *error)
{
	for (size_t i = 0; i < memory->region_count; i++) {
		struct guest_region *region = &memory->regions[i];
		int result = guestmem_punch(region, 0, region->pages);
		if (result < 0)
			return error_set(error, -result, "punch", "empty memory region \"%s\": %s",
					 region->name, strerror(-result));
		/* What somebody touched before REGISTER stays mapped, and later writes to the file
		 * would then show without an event. (The hole has unmapped what the file had, in
		 * every process; this is for what it may not have had.) */
		if (!memory->elsewhere &&
		    madvise(region->vm_view, region->pages * region->page_bytes, MADV_DONTNEED) < 0)
			return error_set(error, errno, "unmap",
					 "unmap the pages of memory region \"%s\": %s",
					 region->name, strerror(errno));
	}
	return 0;
}

int guestmem_read(const struct guest_region *region, uint64_t first, uint64_t count, void *to)
{
	uint64_t offset = region->fd_offset + first * region->page_bytes;
	uint64_t left = count * region->page_bytes;
	uint8_t *at = to;

	while (left) {
		ssize_t got = pread(region->fd, at, left, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			return -EIO; /* somebody made the file shorter */
		at += got;
		offset += (uint64_t)got;
		left -= (uint64_t)got;
	}
	return 0;
}

uint64_t guestmem_next_data(const struct guest_region *region, uint64_t page)
{
	off_t data = lseek(region->fd, (off_t)(region->fd_offset + page * region->page_bytes),
			   SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? region->pages : UINT64_MAX;
	uint64_t found = ((uint64_t)data - region->fd_offset) / region->page_bytes;
	return found < region->pages ? found : region->pages;
}

bool guestmem_locate(const struct guestmem *memory, uint64_t vm_address, size_t *region,
		     uint64_t *page)
{
	for (size_t i = 0; i < memory->region_count; i++) {
		const struct guest_region *at = &memory->regions[i];
		uint64_t offset = vm_address - (uint64_t)(uintptr_t)at->vm_view;
		if (offset < at->pages * at->page_bytes) {
			*region = i;
			*page = offset / at->page_bytes;
			return true;
		}
	}
	return false;
}
