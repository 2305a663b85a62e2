/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory this host can still give to a guest. Asked before anything is built, so that a
 * target which is too small says so at prepare rather than midway. A snapshot: others may take it.
 */
#ifndef BASE_ROOM_H
#define BASE_ROOM_H

#include <stdint.h>

#define ROOM_UNLIMITED UINT64_MAX

struct room {
	uint64_t memory_bytes; /* the kernel's MemAvailable */
	uint64_t memory_total_bytes;
	/* What the tightest control group still allows, v1 or v2, this process's own or any above
	 * it; file cache that the kernel would drop counts as free. ROOM_UNLIMITED: no limit
	 * anywhere. */
	uint64_t cgroup_bytes_free;
	uint64_t cgroup_limit_bytes; /* of that group */
	uint64_t cgroup_used_bytes;  /* of that group, file cache not counted */
	char cgroup[256];            /* its directory, "" if none limits */
	/* Huge pages of 2 MiB: free, not promised to anybody, and allowed by the control groups. */
	uint64_t hugepage_bytes_free;
	uint64_t hugepage_bytes_total, hugepage_bytes_reserved;
	/* What fits into files in /dev/shm; a memfd is not limited by it. 0 if there is none. */
	uint64_t shm_bytes;
};

/* Fills `room`. `root` stands in front of every path, for tests; NULL or "": this host. 0, or
 * -errno when not even the amount of memory can be told. */
int room_measure(struct room *room, const char *root);

/* What this process may pin beyond what it has: RLIMIT_MEMLOCK, and ROOM_UNLIMITED with
 * CAP_IPC_LOCK. */
uint64_t room_lockable(void);
/* The same, of such a limit and the text of /proc/self/status. */
uint64_t room_lockable_of(uint64_t limit, const char *status);

/* For a guest in 4 KiB pages of a memfd. */
static inline uint64_t room_for_pages(const struct room *room)
{
	return room->memory_bytes < room->cgroup_bytes_free ? room->memory_bytes
							    : room->cgroup_bytes_free;
}

#endif
