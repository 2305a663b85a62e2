/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Order. PAGEMAP_SCAN takes each page table's lock, finds the entries without write-protection,
 * sets it, and flushes the TLBs before it returns. A write that used a stale TLB entry is thus over
 * when the call returns, and whoever reads the page after that reads it; a write after that faults,
 * loses the protection, and is found by the next scan. So pages are emitted only after the call
 * that protected them.
 *
 * Holes. The kernel calls every entry that carries no protection "written", also one that maps
 * nothing. That must stay so: a page that was written and then swapped out leaves an empty entry
 * (asking for "written and present" misses it, as tried). But protecting what was never there makes
 * page tables for it, 2 GiB for a sparse TiB. So memory is dealt with in blocks of 2 MiB, what one
 * page table spans, and a block is protected once the file has data in it: from then on it is
 * `armed`, and an entry without protection in it is news. A block that has got its first data since
 * the last look is told by what the file has in it, hole by hole, and armed.
 *
 * Speed. Asked for "written" alone, in and out, the kernel takes a short path: 0.25 ms per GiB
 * where nothing is dirty, against 1.5 to 5 ms. What is not needed is not asked for. Scans hold the
 * mapping's lock for reading only, so several may run at once: by the GiB, in as many threads as
 * there are CPUs, where there is enough to scan. A call covers 64 MiB at most: as long as it lasts
 * a VMM's own page tables over that range are being invalidated, and its vCPUs' faults wait.
 */
#include "fault/wp.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "fault/pagemap_abi.h"
#include "fault/uffd_abi.h"

#define CALL_BLOCKS     UINT64_C(32)  /* 64 MiB */
#define PIECE_BLOCKS    UINT64_C(512) /* 1 GiB, whole words of `armed` */
#define PIECES_ALONE    UINT64_C(8)   /* fewer are not worth a thread */
#define THREADS_MOST    8u
#define REGIONS         256
#define UNREGISTER_STEP GIB(1)

/* One scan over many calls, by one or more threads. */
struct scan {
	struct wp *wp;
	uint64_t flags;
	bool arm;      /* protect, and remember */
	wp_emit *emit; /* NULL: nobody wants to know */
	void *context;
	_Atomic uint64_t next_piece;
	_Atomic int failed; /* -errno of the first call that did */
};

static bool is_armed(const struct wp *wp, uint64_t block)
{
	return atomic_load_explicit(&wp->armed[block / 64], memory_order_relaxed) >> (block % 64) &
	       1;
}

static uint64_t block_end(const struct wp *wp, uint64_t block)
{
	uint64_t end = (block + 1) * WP_BLOCK_BYTES;
	return end < wp->bytes ? end : wp->bytes;
}

/* Offsets from the start of the mapping. What of them the file has, it emits. */
static void emit_data(struct scan *scan, uint64_t from, uint64_t end)
{
	const struct wp *wp = scan->wp;

	while (from < end) {
		off_t data = lseek(wp->fd, (off_t)(wp->fd_offset + from), SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return;
		off_t hole = data < 0 ? -1 : lseek(wp->fd, data, SEEK_HOLE);
		if (hole < 0) { /* a file that does not tell: all data */
			data = (off_t)(wp->fd_offset + from);
			hole = (off_t)(wp->fd_offset + end);
		}
		uint64_t first = (uint64_t)data - wp->fd_offset;
		uint64_t last = (uint64_t)hole - wp->fd_offset;
		if (first >= end)
			return;
		if (last > end)
			last = end;
		/* A page that is in the file in part is there. */
		first = first / wp->page_bytes;
		last = (last + wp->page_bytes - 1) / wp->page_bytes;
		scan->emit(scan->context, first, last - first);
		from = last * wp->page_bytes;
	}
}

/* One or more calls over [from, end). `fresh`: holes in the file are no news. */
static int scan_range(struct scan *scan, uint64_t from, uint64_t end, bool fresh)
{
	const struct wp *wp = scan->wp;
	struct page_region regions[REGIONS];
	struct pm_scan_arg call = {.size = sizeof(call),
				   .flags = scan->flags,
				   .start = wp->address + from,
				   .end = wp->address + end,
				   .vec = (uintptr_t)regions,
				   .vec_len = REGIONS,
				   .category_mask = PAGE_IS_WRITTEN,
				   .return_mask = PAGE_IS_WRITTEN};

	while (call.start < call.end) {
		int found = ioctl(wp->pagemap_fd, PAGEMAP_SCAN, &call);
		if (found < 0 && errno == EINTR)
			continue;
		if (found < 0)
			return -errno;
		for (int i = 0; i < found && scan->emit; i++) {
			uint64_t first = regions[i].start - wp->address;
			uint64_t last = regions[i].end - wp->address;
			if (fresh)
				emit_data(scan, first, last);
			else
				scan->emit(scan->context, first / wp->page_bytes,
					   (last - first) / wp->page_bytes);
		}
		call.start = call.walk_end;
	}
	return 0;
}

/* The next block from this one on that is armed, or in which the file has something; `end`: none.
 */
static uint64_t next_block(const struct wp *wp, uint64_t block, uint64_t end)
{
	if (block == end || is_armed(wp, block))
		return block;
	off_t data = lseek(wp->fd, (off_t)(wp->fd_offset + block * WP_BLOCK_BYTES), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? end : block;
	uint64_t there = ((uint64_t)data - wp->fd_offset) / WP_BLOCK_BYTES;
	return there < end ? there : end;
}

static int scan_piece(struct scan *scan, uint64_t block, uint64_t end)
{
	struct wp *wp = scan->wp;

	while ((block = next_block(wp, block, end)) < end) {
		uint64_t last = block + 1;
		bool fresh = !is_armed(wp, block);
		while (!fresh && last < end && last - block < CALL_BLOCKS && is_armed(wp, last))
			last++;
		int failed =
			scan_range(scan, block * WP_BLOCK_BYTES, block_end(wp, last - 1), fresh);
		if (failed)
			return failed;
		if (fresh && scan->arm)
			atomic_fetch_or(&wp->armed[block / 64], UINT64_C(1) << (block % 64));
		block = last;
	}
	return 0;
}

static void *scan_pieces(void *argument)
{
	struct scan *scan = argument;
	uint64_t blocks = scan->wp->blocks, first;

	while (!atomic_load(&scan->failed) &&
	       (first = atomic_fetch_add(&scan->next_piece, 1) * PIECE_BLOCKS) < blocks) {
		uint64_t end = first + PIECE_BLOCKS < blocks ? first + PIECE_BLOCKS : blocks;
		int none = 0, failed = scan_piece(scan, first, end);
		if (failed)
			atomic_compare_exchange_strong(&scan->failed, &none, failed);
	}
	return NULL;
}

static unsigned threads_for(const struct wp *wp)
{
	uint64_t armed = 0;
	for (uint64_t i = 0; i < (wp->blocks + 63) / 64; i++)
		armed += (uint64_t)__builtin_popcountll(
			atomic_load_explicit(&wp->armed[i], memory_order_relaxed));
	uint64_t worth = armed / (PIECE_BLOCKS * PIECES_ALONE);
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t most = cpus > 1 ? (uint64_t)cpus : 1;
	if (most > THREADS_MOST)
		most = THREADS_MOST;
	return (unsigned)(worth < most ? worth : most);
}

static int scan_all(struct scan *scan)
{
	pthread_t helpers[THREADS_MOST];
	unsigned wanted = threads_for(scan->wp), started = 0;

	while (started + 1 < wanted &&
	       pthread_create(&helpers[started], NULL, scan_pieces, scan) == 0)
		started++;
	scan_pieces(scan);
	for (unsigned i = 0; i < started; i++)
		pthread_join(helpers[i], NULL);
	return atomic_load(&scan->failed);
}

static int open_pagemap(int pid)
{
	char path[64] = "/proc/self/pagemap";
	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* An empty range asks for nothing, and says whether the call exists. */
static bool can_scan(int pagemap_fd)
{
	struct pm_scan_arg call = {.size = sizeof(call)};
	return ioctl(pagemap_fd, PAGEMAP_SCAN, &call) >= 0;
}

int wp_open(struct wp *wp, struct jaunt_error *error)
{
	wp->armed = NULL;
	wp->pagemap_fd = -1;
	if (!wp->uffd->wp_async)
		return error_set(error, ENOTSUP, "no-tracker",
				 "dirty tracking by write-protection: this kernel's userfaultfd "
				 "has no asynchronous mode; it needs Linux 6.7 or newer");
	wp->pagemap_fd = open_pagemap(wp->pid);
	if (wp->pagemap_fd < 0)
		return error_set(error, -wp->pagemap_fd, "no-pagemap",
				 "dirty tracking by write-protection: open the process's pagemap: "
				 "%s; is /proc mounted, and may this user trace the process?",
				 strerror(-wp->pagemap_fd));
	if (!can_scan(wp->pagemap_fd)) {
		wp_close(wp);
		return error_set(error, ENOTSUP, "no-tracker",
				 "dirty tracking by write-protection: this kernel has no "
				 "PAGEMAP_SCAN; it needs Linux 6.7 or newer");
	}
	wp->blocks = (wp->bytes + WP_BLOCK_BYTES - 1) / WP_BLOCK_BYTES;
	wp->armed = calloc((wp->blocks + 63) / 64, sizeof(*wp->armed));
	if (wp->armed)
		return 0;
	wp_close(wp);
	return error_set(error, ENOMEM, "no-memory", "dirty tracking: out of memory");
}

void wp_close(struct wp *wp)
{
	if (wp->pagemap_fd >= 0)
		close(wp->pagemap_fd);
	free((void *)wp->armed);
	wp->pagemap_fd = -1;
	wp->armed = NULL;
}

int wp_start(struct wp *wp, struct jaunt_error *error)
{
	int failed = uffd_register_wp(wp->uffd, wp->address, wp->bytes, error);
	if (failed)
		return failed;
	for (uint64_t i = 0; i < (wp->blocks + 63) / 64; i++)
		atomic_store_explicit(&wp->armed[i], 0, memory_order_relaxed);
	struct scan scan = {
		.wp = wp, .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, .arm = true};
	failed = scan_all(&scan);
	if (!failed)
		return 0;
	wp_stop(wp);
	return error_set(error, -failed, "write-protect", "write-protect guest memory: %s",
			 strerror(-failed));
}

int wp_collect(struct wp *wp, bool again, wp_emit *emit, void *context, struct jaunt_error *error)
{
	struct scan scan = {.wp = wp,
			    .flags = (again ? PM_SCAN_WP_MATCHING : 0) | PM_SCAN_CHECK_WPASYNC,
			    .arm = again,
			    .emit = emit,
			    .context = context};
	int failed = scan_all(&scan);
	if (!failed)
		return 0;
	return error_set(error, -failed, "write-protect",
			 "look for written pages of guest memory: %s%s", strerror(-failed),
			 failed == -EPERM ? "; somebody mapped or registered it anew" : "");
}

void wp_stop(struct wp *wp)
{
	/* In steps: each holds the mapping's lock for writing, and faults wait for that. */
	for (uint64_t at = 0; at < wp->bytes; at += UNREGISTER_STEP) {
		uint64_t left = wp->bytes - at;
		(void)uffd_unregister(wp->uffd, wp->address + at,
				      left < UNREGISTER_STEP ? left : UNREGISTER_STEP);
	}
}

bool wp_supported(char *why, size_t room)
{
	struct uffd uffd;
	struct jaunt_error error = {0};
	if (uffd_open(&uffd, &error) < 0) {
		snprintf(why, room, "%s", error.text);
		return false;
	}
	struct wp wp = {.uffd = &uffd, .bytes = WP_BLOCK_BYTES};
	bool can = wp_open(&wp, &error) == 0;
	if (can)
		wp_close(&wp);
	else
		snprintf(why, room, "%s", error.text);
	uffd_close(&uffd);
	return can;
}
