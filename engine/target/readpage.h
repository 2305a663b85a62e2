/* SPDX-License-Identifier: Apache-2.0 */
/*
 * READs of single pages, for one fault thread: a landing with a slot for each READ that is under
 * way. Used by its one thread.
 */
#ifndef ENGINE_TARGET_READPAGE_H
#define ENGINE_TARGET_READPAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/target/reads.h"
#include "transport/transport.h"

#define READPAGE_SLOTS 64u
#define READPAGE_BYTES (512u << 10) /* of the landing; but at least two of the largest page */

struct readpage {
	struct channel *channel; /* not owned; NULL: it cannot READ */
	struct landing landing;
	size_t slot_bytes;
	unsigned slots;
	uint64_t busy;  /* slots that belong to the device, or to whoever has taken a page */
	uint64_t pages; /* that have come; counted by the owner */
	struct {
		uint64_t page;
		uint16_t region;
	} page[READPAGE_SLOTS];
};

/* Does nothing where the channel cannot READ. 0 or -errno, then pages are fetched by message. */
int readpage_open(struct readpage *readpage, struct channel *channel, uint64_t largest_page);
/* The channel is closed, unbound or freed. */
void readpage_close(struct readpage *readpage);

/* Whether another READ can be started right now. */
bool readpage_room(const struct readpage *readpage);
/* Starts it; `read_done` of the channel follows. -ENOENT: not exposed, ask by message; -EAGAIN: no
 * room; -EPIPE. */
int readpage_start(struct readpage *readpage, const struct reads *reads, size_t region,
		   uint64_t page);

/* The page of a READ that is over, by its cookie; valid until readpage_free(). */
const uint8_t *readpage_take(const struct readpage *readpage, uint64_t cookie, size_t *region,
			     uint64_t *page);
void readpage_free(struct readpage *readpage, uint64_t cookie);

#endif
