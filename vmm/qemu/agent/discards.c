/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation
 *
 * One table of regions is watched or none. Those who note count themselves in before they look for
 * it and out when they are done; who takes it away clears the pointer and then waits until nobody
 * is left inside. Both are sequentially consistent: either the one who notes sees no table, or the
 * one who takes it away sees the count. So the record can be unmapped with no lock on QEMU's paths.
 *
 * The record must not be able to bring QEMU down: it is sealed against shrinking, and populated
 * before anything is noted in it, since a write that finds no memory ends the process.
 */
#include "vmm/qemu/agent/discards.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct table {
	uint64_t count;
	struct agent_region regions[AGENT_REGIONS_MAX];
	char *record;
	uint64_t record_bytes;
	_Atomic uint64_t *summary;
	_Atomic uint64_t *bits;
};

static struct table the_table;          /* of whoever is watched for; see `watched` */
static _Atomic(struct table *) watched; /* pairs with `inside` */
static _Atomic unsigned inside;         /* threads that may be looking at the table */

/* --- Noting, on QEMU's threads ------------------------------------------------------------------
 */

static void set_bits(_Atomic uint64_t *words, uint64_t first, uint64_t end, memory_order order)
{
	while (first < end) {
		uint64_t next = (first | 63) + 1 < end ? (first | 63) + 1 : end;
		uint64_t mask = (~UINT64_C(0) >> (64 - (next - first))) << (first & 63);

		atomic_fetch_or_explicit(&words[first / 64], mask, order);
		first = next;
	}
}

/* [from, to) of the region, in bytes; parts of pages count as pages. */
static void note(const struct table *table, const struct agent_region *region, uint64_t from,
		 uint64_t to)
{
	uint64_t first = region->first_bit + from / AGENT_PAGE;
	uint64_t end = region->first_bit + agent_pages(to);

	set_bits(table->bits, first, end, memory_order_release);
	set_bits(table->summary, first / AGENT_SUMMARY_BITS, (end - 1) / AGENT_SUMMARY_BITS + 1,
		 memory_order_release);
}

/* What [start, start + bytes) has in common with the region that begins at `begin`. */
static void note_common(const struct table *table, const struct agent_region *region,
			uint64_t begin, uint64_t start, uint64_t bytes)
{
	uint64_t end = start + bytes < start ? UINT64_MAX : start + bytes;
	uint64_t from = start > begin ? start : begin;
	uint64_t to = end < begin + region->bytes ? end : begin + region->bytes;

	if (from < to)
		note(table, region, from - begin, to - begin);
}

static const struct table *enter(void)
{
	if (!atomic_load_explicit(&watched, memory_order_relaxed))
		return NULL;
	atomic_fetch_add(&inside, 1);
	const struct table *table = atomic_load(&watched);
	if (!table)
		atomic_fetch_sub(&inside, 1);
	return table;
}

static void leave(void)
{
	atomic_fetch_sub(&inside, 1);
}

void discards_note_file(int fd, int64_t offset, int64_t bytes)
{
	const struct table *table = enter();
	struct stat file;

	if (!table)
		return;
	if (offset >= 0 && bytes > 0 && fstat(fd, &file) == 0)
		for (uint64_t i = 0; i < table->count; i++) {
			const struct agent_region *region = &table->regions[i];
			if (region->device == file.st_dev && region->inode == file.st_ino)
				note_common(table, region, region->offset, (uint64_t)offset,
					    (uint64_t)bytes);
		}
	leave();
}

void discards_note_view(const void *address, uint64_t bytes)
{
	const struct table *table = enter();

	if (!table)
		return;
	for (uint64_t i = 0; i < table->count; i++)
		note_common(table, &table->regions[i], table->regions[i].address,
			    (uint64_t)(uintptr_t)address, bytes);
	leave();
}

/* --- The table, on the agent's thread -----------------------------------------------------------
 */

static bool region_is_sound(const struct agent_region *region, uint64_t bits)
{
	uint64_t pages = region->bytes / AGENT_PAGE;

	return region->bytes && region->bytes % AGENT_PAGE == 0 &&
	       region->address + region->bytes > region->address &&
	       region->offset + region->bytes > region->offset && region->first_bit <= bits &&
	       pages <= bits - region->first_bit;
}

static int map_record(struct table *table, int record)
{
	struct agent_record header;
	struct stat file;
	int seals = fcntl(record, F_GET_SEALS);

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return -EPERM;
	if (fstat(record, &file) || pread(record, &header, sizeof(header), 0) != sizeof(header))
		return -EINVAL;
	if (header.magic != AGENT_MAGIC || header.protocol != AGENT_PROTOCOL ||
	    header.bits > AGENT_BITS_MAX ||
	    (uint64_t)file.st_size < agent_record_bytes(header.bits))
		return -EINVAL;
	for (uint64_t i = 0; i < table->count; i++)
		if (!region_is_sound(&table->regions[i], header.bits))
			return -EINVAL;
	table->record_bytes = agent_record_bytes(header.bits);
	table->record =
		mmap(NULL, table->record_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, record, 0);
	if (table->record == MAP_FAILED)
		return -errno;
	/* Past our own wrapper. Kernels before 5.14 do not know it (EINVAL). */
	if (syscall(SYS_madvise, table->record, table->record_bytes, MADV_POPULATE_WRITE) &&
	    errno != EINVAL) {
		int result = -errno;
		munmap(table->record, table->record_bytes);
		return result;
	}
	table->summary = (void *)(table->record + agent_summary_offset());
	table->bits = (void *)(table->record + agent_bits_offset(header.bits));
	return 0;
}

int discards_watch(const struct agent_watch *watch, int record)
{
	int result;

	if (watch->count < 1 || watch->count > AGENT_REGIONS_MAX)
		return -EINVAL;
	discards_unwatch();
	the_table.count = watch->count;
	memcpy(the_table.regions, watch->regions, watch->count * sizeof(watch->regions[0]));
	result = map_record(&the_table, record);
	if (result == 0)
		atomic_store(&watched, &the_table);
	return result;
}

void discards_unwatch(void)
{
	struct table *table = atomic_exchange(&watched, NULL);

	if (!table)
		return;
	while (atomic_load(&inside))
		nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
	munmap(table->record, table->record_bytes);
}

void discards_forget(void)
{
	struct table *table = atomic_exchange(&watched, NULL);

	atomic_store(&inside, 0);
	if (table)
		munmap(table->record, table->record_bytes);
}
