/* SPDX-License-Identifier: Apache-2.0 */
/* Page faults as they come out of a userfaultfd. */
#ifndef FAULT_EVENTS_H
#define FAULT_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

struct uffd;

#define EVENTS_BATCH 64 /* events that one system call reads at most */

struct fault_event {
	uint64_t address; /* exact, as the faulting instruction had it */
	bool minor;       /* the page is in the file, the view does not map it */
	bool write;
};

/* Reads what is queued, with one system call. Returns the number of events, 0 when there are none,
 * or -errno. Fewer than `room` (at most EVENTS_BATCH) means that the queue is empty. Messages that
 * are not page faults are counted in *other and left out. */
int events_read(const struct uffd *uffd, struct fault_event *events, int room, unsigned *other);

#endif
