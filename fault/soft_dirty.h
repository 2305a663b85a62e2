/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of a process's mappings were written, by the kernel's soft-dirty bits: for kernels
 * that have no better (see wp.h). Clearing is for the whole process, and reading and clearing are
 * two steps: whoever writes must stand still from the one to the other.
 */
#ifndef FAULT_SOFT_DIRTY_H
#define FAULT_SOFT_DIRTY_H

#include <stdbool.h>
#include <stdint.h>

#include "fault/wp.h"
#include "jaunt.h"

struct soft_dirty {
	int pagemap_fd, clear_fd;
};

struct soft_dirty_range { /* a shared mapping of a memory file */
	uint64_t address, bytes, page_bytes;
	int fd;
	uint64_t fd_offset;
};

/* pid 0: this process. -ENOTSUP where the kernel has no soft-dirty bits. */
int soft_dirty_open(struct soft_dirty *soft_dirty, int pid, struct jaunt_error *error);
void soft_dirty_close(struct soft_dirty *soft_dirty);

/* Nothing is dirty from now on. */
int soft_dirty_clear(struct soft_dirty *soft_dirty, struct jaunt_error *error);
/* Calls `emit` for what was written since it was cleared. */
int soft_dirty_read(struct soft_dirty *soft_dirty, const struct soft_dirty_range *range,
		    wp_emit *emit, void *context, struct jaunt_error *error);

/* Whether this kernel has it. For doctor. */
bool soft_dirty_supported(void);

#endif
