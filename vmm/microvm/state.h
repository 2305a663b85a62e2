/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing and reading the saved state: sections of {tag, length, bytes} behind one header. A reader
 * trusts nothing: whatever the bytes are, it stays within them and says what is wrong.
 */
#ifndef VMM_MICROVM_STATE_H
#define VMM_MICROVM_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "jaunt.h"

enum state_tag {
	STATE_CLOCK = 1,
	STATE_PROGRESS,
	STATE_REGISTERS,
	STATE_SYSTEM,
	STATE_XSAVE,
	STATE_XCRS,
	STATE_MSRS,
	STATE_EVENTS,
	STATE_DEBUG,
	STATE_MP,
	STATE_THREAD,
};

/* A vCPU's TSC and when it was that, on the source's monotonic clock. */
struct state_clock {
	uint64_t tsc, monotonic_ns;
};

/* What the monitor has heard of the guest. */
struct state_progress {
	uint64_t operations, errors;
	uint32_t ready, crashed;
};

struct state_msr {
	uint32_t index, reserved;
	uint64_t value;
};

struct state_writer {
	uint8_t *bytes; /* malloc()ed */
	size_t used, room;
	bool failed; /* out of memory */
};

void state_put(struct state_writer *writer, enum state_tag tag, const void *bytes, size_t count);

struct state_reader {
	const uint8_t *bytes;
	size_t left;
	unsigned vcpu; /* for messages */
};

/* The next section, which must have that tag. Reason "bad-state". */
int state_take(struct state_reader *reader, enum state_tag tag, const uint8_t **bytes,
	       size_t *count, struct jaunt_error *error);
/* The same, into an object of exactly that size. */
int state_take_object(struct state_reader *reader, enum state_tag tag, void *object, size_t bytes,
		      struct jaunt_error *error);

#endif
