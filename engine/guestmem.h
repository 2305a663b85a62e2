/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory as the engine sees it: regions in memory files, each with two views.
 *
 * The VM's view is the mapping that the guest runs on; at the target it is registered with
 * userfaultfd. The engine's view is the file itself: a second mapping, or pread() and pwrite().
 * Bytes placed through the engine's view are invisible to the guest until CONTINUE.
 */
#ifndef ENGINE_GUESTMEM_H
#define ENGINE_GUESTMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"

struct guest_region {
	char name[64];
	uint64_t guest_address;
	uint64_t pages;
	uint64_t page_bytes;
	bool hugetlb;
	int fd; /* the VMM's */
	uint64_t fd_offset;
	uint8_t *vm_view;   /* the VMM's, in its process: not to be read where that is another */
	uint8_t *view;      /* the engine's own mapping of all of it */
	uint8_t *near_view; /* whose page tables are likely filled: the VMM's if it is here */
};

struct guestmem {
	struct guest_region regions[JAUNT_MAX_REGIONS];
	size_t region_count;
	uint64_t pages; /* of all regions, each of its own size */
	uint64_t bytes;
	bool elsewhere; /* the VM's views are in another process */
};

/* Checks the description and maps the engine's views. Neither view is inherited by fork; with the
 * VM's views in another process, `elsewhere`, theirs are that process's affair. */
int guestmem_open(struct guestmem *memory, const struct jaunt_description *description,
		  bool elsewhere, struct jaunt_error *error);
void guestmem_close(struct guestmem *memory);

/* Target: makes the files empty and the VM's view unmapped. After REGISTER, before the first page.
 */
int guestmem_empty(struct guestmem *memory, struct jaunt_error *error);

/* Gives pages of the file back: they read as zeros. */
int guestmem_punch(const struct guest_region *region, uint64_t first, uint64_t count);

/* Copies pages out of the file, holes as zeros, without allocating what is not there (a read
 * through a mapping would). 0 or -errno. */
int guestmem_read(const struct guest_region *region, uint64_t first, uint64_t count, void *to);

/* The first page at or behind `page` that the file has, or the region's end. UINT64_MAX: the file
 * cannot say (hugetlbfs says that it has all). */
uint64_t guestmem_next_data(const struct guest_region *region, uint64_t page);

/* The region and page that an address of the VM's view belongs to. */
bool guestmem_locate(const struct guestmem *memory, uint64_t vm_address, size_t *region,
		     uint64_t *page);

/* The page size of the region that has the largest: what a buffer must hold. */
uint64_t guestmem_largest_page(const struct guestmem *memory);

static inline uint64_t guestmem_vm_address(const struct guest_region *region, uint64_t page)
{
	return (uint64_t)(uintptr_t)region->vm_view + page * region->page_bytes;
}

#endif
