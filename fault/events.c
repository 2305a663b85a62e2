/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/events.h"

#include <errno.h>
#include <unistd.h>

#include "fault/uffd.h"
#include "fault/uffd_abi.h"

int events_read(const struct uffd *uffd, struct fault_event *events, int room, unsigned *other)
{
	struct uffd_msg messages[EVENTS_BATCH];
	int found = 0;

	if (room > EVENTS_BATCH)
		room = EVENTS_BATCH;
	/* One pass, except after a full read that held something else than faults: returning then
	 * would be fewer than `room`, which promises an empty queue. */
	while (found < room) {
		size_t asked = (size_t)(room - found);
		ssize_t got = read(uffd->fd, messages, asked * sizeof(messages[0]));
		if (got < 0) {
			if (errno == EAGAIN || found)
				break;
			return -errno;
		}
		size_t count = (size_t)got / sizeof(messages[0]);
		for (size_t i = 0; i < count; i++) {
			const struct uffd_msg *message = &messages[i];
			if (message->event != UFFD_EVENT_PAGEFAULT) {
				(*other)++;
				continue;
			}
			events[found++] = (struct fault_event){
				.address = message->arg.pagefault.address,
				.minor = message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR,
				.write = message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
			};
		}
		if (count < asked)
			break;
	}
	return found;
}
