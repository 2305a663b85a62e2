/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record of discards that Jaunt shares with the agent: made here, written by QEMU's threads
 * (vmm/qemu/agent/discards), collected here. Its layout and its memory ordering: agent/protocol.h.
 */
#ifndef VMM_QEMU_RECORD_H
#define VMM_QEMU_RECORD_H

#include <stdatomic.h>
#include <stdint.h>

struct record {
	int fd; /* sealed memfd, for attach_watch() */
	char *memory;
	uint64_t bits;
	_Atomic uint64_t *summary; /* pairs with the agent's release, like `words` */
	_Atomic uint64_t *words;
};

/* -errno. */
int record_open(struct record *record, uint64_t bits);
void record_close(struct record *record);

/* Calls `emit` for every run of bits set since the last time, in order, and clears them. What is
 * being noted meanwhile may be told now or the next time. One thread at a time. */
void record_collect(struct record *record,
		    void (*emit)(void *context, uint64_t first, uint64_t count), void *context);

#endif
