/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM as QEMU has it: asked of QEMU itself over QMP, and found in its table of mappings. All
 * of it must be shared files, or there is no second view of it. Errors come as -errno with `error`
 * filled; reason "ram-not-shared" says which options QEMU lacks, "ram-not-found" that QEMU and the
 * kernel do not agree about it.
 */
#ifndef VMM_QEMU_REGIONS_H
#define VMM_QEMU_REGIONS_H

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "jaunt.h"
#include "vmm/qemu/agent/protocol.h"
#include "vmm/qemu/qmp.h"

#define REGIONS_MAX JAUNT_MAX_REGIONS

struct regions {
	size_t count;
	struct regions_one {
		char id[64]; /* of QEMU's memory backend */
		int fd;      /* of the file, for reading and writing */
		uint64_t bytes, page_bytes;
		uint64_t address; /* in QEMU's address space */
		dev_t device;
		ino_t inode;
	} all[REGIONS_MAX];
};

/* In the order of their ids, so that two QEMUs of one configuration agree. `timeout_ms` is for each
 * question to QEMU. */
int regions_find(struct regions *regions, struct qmp *qmp, unsigned timeout_ms,
		 struct jaunt_error *error);
void regions_close(struct regions *regions);

/* Whether all of the memory is QEMU's: 0, or the reason "incomplete-memory" while pages of it are
 * still to come by a migration, even if nobody brings them. */
int regions_are_whole(const struct regions *regions, pid_t process, struct jaunt_error *error);

/* The first of them whose missing pages are somebody's to bring, by a table like /proc/PID/smaps:
 * it is registered with a userfaultfd for more than write-protection. NULL: none. */
const struct regions_one *regions_awaited(const struct regions *regions, FILE *smaps);

/* Where a file is mapped, shared and writable, from its beginning, by a table like
 * /proc/PID/maps; neighbouring pieces count as one. Returns the bytes, 0: nowhere. */
uint64_t regions_mapped(FILE *maps, dev_t device, ino_t inode, uint64_t *address);

#endif
