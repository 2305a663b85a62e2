/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The file is a memfd, sealed so that nobody can cut it short under its readers: a header, and the
 * bitmaps of each region, each on pages of its own. All of it has its memory from the beginning: 96
 * KiB a GiB of the guest's.
 *
 * It is locked through a second open file of the same memfd, one that is never passed on: a lock
 * belongs to the open file, and the copy that somebody else keeps would hold it for ever. The
 * kernel closes it when the last thread of the process has gone, and so no thread of a dead owner
 * can still be at work on a page when the next one has the lock. What its rings still had under way
 * ends in buffers of its own, never in guest memory.
 */
#include "engine/target/ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/room.h"
#include "engine/target/target.h"

#define PAGE  4096u
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
/* 64 TiB of pages in a region: what is more makes no sense, and could overflow. */
#define PAGES_MOST (UINT64_C(1) << 34)

enum { MAPS_PER_PAGE = 3 }; /* claimed, present, written */

/* --- Layout -------------------------------------------------------------------------------------
 */

static uint64_t page_map_bytes(uint64_t pages)
{
	return round_up(round_up(pages, 64) / 8, PAGE);
}

static uint64_t chunk_map_bytes(uint64_t pages)
{
	uint64_t chunks = round_up(pages * PAGE, INSTALL_CHUNK_BYTES) / INSTALL_CHUNK_BYTES;

	return round_up(round_up(chunks, 64) / 8, PAGE);
}

static uint64_t file_bytes(const struct ledger_header *header)
{
	uint64_t bytes = round_up(sizeof(*header), PAGE);

	for (uint64_t i = 0; i < header->region_count; i++)
		bytes += MAPS_PER_PAGE * page_map_bytes(header->regions[i].pages) +
			 chunk_map_bytes(header->regions[i].pages);
	return bytes;
}

static void lay_out(struct ledger *ledger, const struct ledger_header *header)
{
	char *at = (char *)ledger->header + round_up(sizeof(*header), PAGE);

	ledger->region_count = header->region_count;
	for (size_t i = 0; i < ledger->region_count; i++) {
		uint64_t pages = ledger->pages[i] = header->regions[i].pages;
		ledger->claimed[i] = (void *)at;
		ledger->present[i] = (void *)(at += page_map_bytes(pages));
		ledger->written[i] = (void *)(at += page_map_bytes(pages));
		ledger->in_file[i] = (void *)(at += page_map_bytes(pages));
		at += chunk_map_bytes(pages);
	}
}

static bool is_text(const char *text, size_t room)
{
	return memchr(text, '\0', room);
}

const char *ledger_fault(const struct ledger_header *header, uint64_t bytes)
{
	if (header->magic != LEDGER_MAGIC)
		return "it is something else";
	if (header->version != LEDGER_VERSION || header->header_bytes != sizeof(*header))
		return "it is of another version of Jaunt";
	if (header->region_count < 1 || header->region_count > JAUNT_MAX_REGIONS)
		return "its number of memory regions makes no sense";
	for (uint64_t i = 0; i < header->region_count; i++)
		if (header->regions[i].page_bytes != PAGE || !header->regions[i].pages ||
		    header->regions[i].pages > PAGES_MOST ||
		    !is_text(header->regions[i].name, sizeof(header->regions[i].name)))
			return "a memory region in it makes no sense";
	if (file_bytes(header) != bytes)
		return "it has not the length that it should have";
	if (!is_text(header->peer, sizeof(header->peer)) || !header->port ||
	    header->port > UINT16_MAX || !is_text(header->vm, sizeof(header->vm)) ||
	    !is_text(header->mode, sizeof(header->mode)))
		return "the address or a name in it makes no sense";
	if (header->streams < 1 || header->streams > TARGET_STREAMS_MAX || header->shards < 1 ||
	    header->shards > INSTALL_SHARDS_MAX)
		return "its number of channels makes no sense";
	if (atomic_load(&header->state) > LEDGER_RAN)
		return "how far it has come makes no sense";
	return NULL;
}

/* --- Making one, and finding it again -----------------------------------------------------------
 */

static int map_file(struct ledger *ledger, const struct ledger_header *header)
{
	uint64_t bytes = file_bytes(header);
	void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			  ledger->fd, 0);

	if (base == MAP_FAILED)
		return -errno;
	madvise(base, bytes, MADV_DONTFORK);
	ledger->header = base;
	ledger->bytes = bytes;
	lay_out(ledger, header);
	return 0;
}

static int lock(struct ledger *ledger)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", ledger->fd);
	ledger->lock_fd = open(path, O_RDWR | O_CLOEXEC);
	if (ledger->lock_fd < 0)
		return -errno;
	return flock(ledger->lock_fd, LOCK_EX | LOCK_NB) ? -errno : 0;
}

bool ledger_fits(const struct guestmem *memory)
{
	for (size_t i = 0; i < memory->region_count; i++)
		if (memory->regions[i].page_bytes != PAGE || memory->regions[i].pages > PAGES_MOST)
			return false;
	return true;
}

/* A page of it that is first touched where there is no room would end the process, by a signal; and
 * which page that is depends on the guest. So all of it is there from the beginning, or it is said
 * before anything moves. */
static int reserve(struct ledger *ledger, uint64_t bytes, const char *root,
		   struct jaunt_error *error)
{
	struct room room;
	int result;

	if (room_measure(&room, root) == 0 && bytes > room_for_pages(&room))
		return error_set(error, ENOMEM,
				 bytes > room.cgroup_bytes_free ? "cgroup-memory" : "no-memory",
				 "the page map of this VM takes %" PRIu64
				 " KiB, and there is room for %" PRIu64 " KiB%s%s",
				 bytes >> 10, room_for_pages(&room) >> 10,
				 bytes > room.cgroup_bytes_free ? " in control group " : "",
				 bytes > room.cgroup_bytes_free ? room.cgroup : "");
	do
		result = fallocate(ledger->fd, 0, 0, (off_t)bytes) ? -errno : 0;
	while (result == -EINTR);
	if (result == -ENOSPC || result == -ENOMEM)
		return error_set(error, ENOMEM, "no-memory",
				 "no room for the page map of this VM, %" PRIu64 " KiB: %s",
				 bytes >> 10, strerror(-result));
	return result;
}

static void describe(struct ledger_header *header, const struct guestmem *memory)
{
	*header = (struct ledger_header){.magic = LEDGER_MAGIC,
					 .version = LEDGER_VERSION,
					 .header_bytes = sizeof(*header),
					 .region_count = memory->region_count};
	for (size_t i = 0; i < memory->region_count; i++) {
		const struct guest_region *from = &memory->regions[i];
		struct ledger_region *to = &header->regions[i];
		snprintf(to->name, sizeof(to->name), "%s", from->name);
		to->guest_address = from->guest_address;
		to->pages = from->pages;
		to->page_bytes = from->page_bytes;
	}
}

int ledger_create(struct ledger *ledger, const struct guestmem *memory, const char *root,
		  struct jaunt_error *error)
{
	struct ledger_header header;

	*ledger = LEDGER_NONE;
	describe(&header, memory);
	ledger->fd = memfd_create("jaunt-ledger", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int result = ledger->fd < 0 ? -errno : 0;
	uint64_t bytes = file_bytes(&header);
	if (result == 0 && (ftruncate(ledger->fd, (off_t)bytes) ||
			    fcntl(ledger->fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL)))
		result = -errno;
	if (result == 0)
		result = reserve(ledger, bytes, root, error);
	if (result == 0)
		result = lock(ledger);
	if (result == 0)
		result = map_file(ledger, &header);
	if (result == 0) {
		*ledger->header = ledger->found = header;
		return 0;
	}
	ledger_close(ledger);
	return error->code ? result
			   : error_set(error, -result, "no-memory",
				       "a file for the page map of this VM: %s", strerror(-result));
}

static int read_header(const struct ledger *ledger, struct ledger_header *header,
		       struct jaunt_error *error)
{
	struct stat file;
	int seals = fcntl(ledger->fd, F_GET_SEALS);
	const char *fault = NULL;

	if (seals < 0 || (seals & SEALS) != SEALS || fstat(ledger->fd, &file) ||
	    pread(ledger->fd, header, sizeof(*header), 0) != sizeof(*header))
		fault = "it is something else";
	else
		fault = ledger_fault(header, (uint64_t)file.st_size);
	return fault ? error_set(error, EINVAL, "bad-ledger",
				 "what was kept of the migration cannot be used: %s", fault)
		     : 0;
}

int ledger_open(struct ledger *ledger, int fd, struct jaunt_error *error)
{
	struct ledger_header header;

	*ledger = LEDGER_NONE;
	ledger->fd = fd;
	int result = read_header(ledger, &header, error);
	if (result == 0 && (result = lock(ledger)))
		error_set(error, -result, result == -EWOULDBLOCK ? "name-taken" : "bad-ledger",
			  result == -EWOULDBLOCK
				  ? "the process that receives the VM lives, and goes on with it"
				  : "lock what was kept of the migration: %s",
			  strerror(-result));
	if (result == 0 && (result = map_file(ledger, &header)))
		error_set(error, -result, "no-memory", "map what was kept of the migration: %s",
			  strerror(-result));
	if (result)
		ledger_close(ledger);
	else
		ledger->found = header;
	return result;
}

void ledger_close(struct ledger *ledger)
{
	if (ledger->header)
		munmap(ledger->header, ledger->bytes);
	if (ledger->lock_fd >= 0)
		close(ledger->lock_fd);
	if (ledger->fd >= 0)
		close(ledger->fd);
	*ledger = LEDGER_NONE;
}

/* --- What it says -------------------------------------------------------------------------------
 */

bool ledger_matches(const struct ledger *ledger, const struct guestmem *memory)
{
	struct ledger_header wanted;

	describe(&wanted, memory);
	for (size_t i = 0; i < memory->region_count; i++)
		if (memory->regions[i].pages != ledger->pages[i])
			return false;
	return memory->region_count == ledger->region_count &&
	       memcmp(wanted.regions, ledger->found.regions, sizeof(wanted.regions)) == 0;
}

uint64_t ledger_missing(const struct ledger *ledger)
{
	uint64_t missing = 0;

	for (size_t i = 0; i < ledger->region_count; i++) {
		missing += ledger->pages[i];
		for (uint64_t word = 0; word < (ledger->pages[i] + 63) / 64; word++)
			missing -= (uint64_t)__builtin_popcountll(atomic_load_explicit(
				&ledger->present[i][word], memory_order_relaxed));
	}
	return missing;
}
