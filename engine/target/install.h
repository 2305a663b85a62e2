/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How bytes become pages that the guest sees. One module owns the choice of the way (see
 * docs/theory.md) and the handling of every answer of the kernel.
 */
#ifndef ENGINE_TARGET_INSTALL_H
#define ENGINE_TARGET_INSTALL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/guestmem.h"
#include "engine/stats.h"
#include "engine/target/pagemap.h"
#include "fault/uffd.h"

#define INSTALL_SHARDS_MAX 16
/* Pages of 4 KiB that one ioctl covers: COPY costs the same per page from 16 on, and a longer one
 * would hold whoever waits for its first page. */
#define INSTALL_RUN_PAGES 32u
/* The unit of `in_file`. */
#define INSTALL_CHUNK_BYTES (UINT64_C(2) << 20)

struct install {
	struct guestmem *memory;
	struct pagemap *map;
	struct uffd uffds[INSTALL_SHARDS_MAX]; /* by install_shard() */
	unsigned shards;
	void *zero_page; /* for hugetlb, which has no ZEROPAGE */
	/* One bit per INSTALL_CHUNK_BYTES: the file may hold an older copy of a page here. Set
	 * before anything is placed through the engine's view, never cleared. */
	_Atomic uint64_t *in_file[JAUNT_MAX_REGIONS];
	/* With a ledger, else NULL: one bit a page, of claimed pages where `in_file` is set. The
	 * file has what the guest is to see, all of it, and the guest may see it from now on. Set
	 * between the last byte and the call that makes the page visible, never cleared. */
	_Atomic uint64_t *written[JAUNT_MAX_REGIONS];
	const struct ledger *ledger; /* has the bitmaps, not owned; NULL: they are this struct's */
	_Atomic bool stop;           /* gives up waiting for memory */
	_Atomic uint32_t no_memory;  /* threads that wait for memory right now */
	_Atomic bool broken;         /* a page could not be made visible, and never will be */
	_Atomic int broken_errno;
	/* Called once, by whichever thread made the last missing page present. */
	void (*complete)(void *user);
	void *user;
};

/* Takes the uffds over once they are registered. */
int install_open(struct install *install, struct guestmem *memory, struct pagemap *map);
/* The same with the bitmaps of a ledger of that memory, as they are. */
int install_open_ledger(struct install *install, struct guestmem *memory, struct pagemap *map,
			const struct ledger *ledger);
void install_close(struct install *install);
/* Memory that it holds. */
uint64_t install_bytes(const struct install *install);

/* A shard owns pages by GiB of their region, modulo shards. */
static inline unsigned install_shard(const struct install *install,
				     const struct guest_region *region, uint64_t page)
{
	return install->shards == 1
		       ? 0
		       : (unsigned)((page * region->page_bytes >> 30) % install->shards);
}

/* Claims, places, makes visible and wakes whatever of the run nobody has claimed; drops the rest.
 * Adds to *installed. 0, or -errno when pages could not be made visible: those stay claimed and
 * never become present, so the guest blocks on them rather than reading anything wrong. */
int install_pages(struct install *install, size_t region, uint64_t first, uint64_t count,
		  const uint8_t *bytes, uint64_t *installed, struct page_counters *counters);

/* The same for one page, by the one thread that reads the faults on it (of its shard): saves the
 * WAKE behind what COPY or CONTINUE have woken. */
int install_own_page(struct install *install, size_t region, uint64_t page, const uint8_t *bytes,
		     uint64_t *installed, struct page_counters *counters);

/* install_pages() for a run of zeros of any length. `now`: somebody waits, so place the zero page
 * at once; otherwise its first touch will. */
int install_zeros(struct install *install, size_t region, uint64_t first, uint64_t count, bool now,
		  uint64_t *installed, struct page_counters *counters);

/* Gives up claims on pages of one word, whose bytes will not come (the channel died, its I/O was
 * cancelled): they are absent again, and whoever waits looks again. */
void install_release(struct install *install, size_t region, uint64_t word, uint64_t mask);

/* A fault on a present page: map it again, or zero-fill what the guest gave back. */
int install_present(struct install *install, size_t region, uint64_t page, bool minor,
		    struct page_counters *counters);

/* Before the epoch: bytes over whatever the file holds of these pages; nothing becomes visible. */
int install_place(struct install *install, size_t region, uint64_t first, uint64_t count,
		  const uint8_t *bytes);
/* The same for zeros, of pages of one word. */
int install_unplace(struct install *install, size_t region, uint64_t word, uint64_t mask);

/* With a ledger, when the process that claimed these pages of a word is dead: those of them that
 * the guest may have seen. The others it has not, and what the file holds of them counts for
 * nothing. */
uint64_t install_seen(const struct install *install, size_t region, uint64_t word,
		      uint64_t claimed);
/* Wakes whoever waits anywhere in the region: faults that nobody alive has read are read again. */
void install_wake_all(struct install *install, size_t region);

/* Whether the file may hold a copy of this page, or of one of the same INSTALL_CHUNK_BYTES. */
bool install_in_file(const struct install *install, size_t region, uint64_t page);

/* Before bytes are placed through the engine's view in that range. */
void install_mark_in_file(struct install *install, size_t region, uint64_t first, uint64_t count);

#endif
