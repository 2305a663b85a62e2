/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of a mapping were written: write-protection by userfaultfd that the kernel lifts by
 * itself (WP_ASYNC), and PAGEMAP_SCAN, which finds pages without it and protects them again in one
 * step. Linux 6.7. The mapping may be another process's. Knows nothing of networks or migrations.
 *
 * What it does not see: writes past the mapping (another mapping or descriptor of the file), and
 * pages that are given back, before or after they were written.
 */
#ifndef FAULT_WP_H
#define FAULT_WP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fault/uffd.h"

#define WP_BLOCK_BYTES (UINT64_C(2) << 20)

/* A shared mapping of a memory file. The caller fills in the first part; wp_open() the rest. */
struct wp {
	const struct uffd *uffd; /* of that address space, which nobody else has registered */
	int pid;                 /* whose it is; 0: this process */
	uint64_t address, bytes, page_bytes;
	int fd; /* its file, to tell data from holes */
	uint64_t fd_offset;

	int pagemap_fd;
	uint64_t blocks;
	/* One bit a block: all of its pages are protected or have been written since. The others
	 * had nothing in the file when they were last looked at. */
	_Atomic uint64_t *armed;
};

/* -ENOTSUP where the kernel or the userfaultfd cannot; costs the mapping nothing yet. */
int wp_open(struct wp *wp, struct jaunt_error *error);
void wp_close(struct wp *wp);

/* Registers the mapping and protects what is in the file. A write after the return is seen by a
 * later collect. */
int wp_start(struct wp *wp, struct jaunt_error *error);

/* Calls `emit` for runs of pages that were written since the start or the last collect; several
 * threads may call it at once where the mapping is large. With `again` they are protected before
 * they are emitted; without, which is faster, and for when nobody writes, the next collect tells
 * them again. */
typedef void wp_emit(void *context, uint64_t first_page, uint64_t count);
int wp_collect(struct wp *wp, bool again, wp_emit *emit, void *context, struct jaunt_error *error);

/* Lifts all protection. */
void wp_stop(struct wp *wp);

/* Whether this kernel has what it takes; else why not. For doctor. */
bool wp_supported(char *why, size_t room);

#endif
