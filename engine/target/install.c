/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Pages arrive in a hot staging buffer (the channel's receive buffer) and are claimed only now that
 * their bytes are there. Where the file cannot hold an older copy (`in_file` clear) COPY puts the
 * bytes into a fresh page and maps it in one go. Where it may, the bytes are written over the old
 * copy in the file, which the guest cannot see, and CONTINUE maps the page. errno cannot tell the
 * two cases apart (COPY says EEXIST to both a mapped page and one that is only in the file), hence
 * the flag.
 *
 * After a page is visible, `present` is set and then the range is woken: COPY and CONTINUE wake
 * their waiters themselves, but a guest that gives the page back and touches it again before
 * `present` is set would find it "filling" and wait for a wake-up that had already happened. Only
 * the thread that reads the faults of a page could find that; where it is itself the one that
 * installs the page, the fault is read after `present` was set, and needs no wake-up.
 *
 * EEXIST on a page that we hold the claim of means that somebody mapped it behind our back; what
 * the guest sees there is unknown. The claim is kept, `present` is never set, and the migration is
 * `broken`: better a blocked guest than a corrupt one.
 *
 * If the process dies with a claim, the next one must know whether the guest may have seen the page
 * (takeup.c). Where the file was empty the kernel says so: COPY and ZEROPAGE put a page into the
 * file and show it to the guest in one step, and nothing else puts one there. Where the file may
 * have held an older copy, `written` says so.
 */
#include "engine/target/install.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/inject.h"
#include "engine/target/hooks.h"
#include "engine/target/ledger.h"

#ifdef JAUNT_INJECT
struct install_hooks install_hooks;
#endif

static uint64_t in_file_bytes(const struct guest_region *region)
{
	uint64_t chunks = round_up(region->pages * region->page_bytes, INSTALL_CHUNK_BYTES) /
			  INSTALL_CHUNK_BYTES;
	return round_up(chunks, 64) / 8;
}

static void *map_bits(uint64_t bytes)
{
	void *bits = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return bits == MAP_FAILED ? NULL : bits;
}

int install_open_ledger(struct install *install, struct guestmem *memory, struct pagemap *map,
			const struct ledger *ledger)
{
	memset(install, 0, sizeof(*install));
	install->memory = memory;
	install->map = map;
	install->ledger = ledger;
	for (unsigned i = 0; i < INSTALL_SHARDS_MAX; i++)
		install->uffds[i].fd = -1;
	uint64_t largest = guestmem_largest_page(memory);
	for (size_t i = 0; i < memory->region_count; i++) {
		install->written[i] = ledger ? ledger->written[i] : NULL;
		install->in_file[i] =
			ledger ? ledger->in_file[i] : map_bits(in_file_bytes(&memory->regions[i]));
		if (!install->in_file[i]) {
			install_close(install);
			return -ENOMEM;
		}
	}
	if (largest > 4096) {
		/* Never written, so all of it is the kernel's one page of zeros. */
		install->zero_page = mmap(NULL, largest, PROT_READ,
					  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (install->zero_page == MAP_FAILED) {
			install->zero_page = NULL;
			install_close(install);
			return -ENOMEM;
		}
	}
	return 0;
}

int install_open(struct install *install, struct guestmem *memory, struct pagemap *map)
{
	return install_open_ledger(install, memory, map, NULL);
}

void install_close(struct install *install)
{
	if (!install->memory)
		return;
	for (size_t i = 0; i < install->memory->region_count; i++) {
		if (install->in_file[i] && !install->ledger)
			munmap((void *)install->in_file[i],
			       in_file_bytes(&install->memory->regions[i]));
	}
	if (install->zero_page)
		munmap(install->zero_page, guestmem_largest_page(install->memory));
	for (unsigned i = 0; i < install->shards; i++)
		uffd_close(&install->uffds[i]);
	memset(install, 0, sizeof(*install));
}

uint64_t install_bytes(const struct install *install)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < install->memory->region_count; i++)
		bytes += in_file_bytes(&install->memory->regions[i]);
	return bytes;
}

static const struct uffd *uffd_of(const struct install *install, const struct guest_region *region,
				  uint64_t page)
{
	return &install->uffds[install_shard(install, region, page)];
}

void install_mark_in_file(struct install *install, size_t region, uint64_t first, uint64_t count)
{
	uint64_t page = install->memory->regions[region].page_bytes;
	uint64_t from = first * page / INSTALL_CHUNK_BYTES;
	uint64_t to = ((first + count) * page - 1) / INSTALL_CHUNK_BYTES;

	for (uint64_t chunk = from; chunk <= to; chunk++)
		atomic_fetch_or(&install->in_file[region][chunk / 64], UINT64_C(1) << (chunk % 64));
}

static bool is_in_file(const struct install *install, size_t region, uint64_t page)
{
	uint64_t chunk = page * install->memory->regions[region].page_bytes / INSTALL_CHUNK_BYTES;
	return atomic_load(&install->in_file[region][chunk / 64]) >> (chunk % 64) & 1;
}

/* Who takes the ledger up leaves claims alone then: see install_seen(). */
static int give_up(struct install *install, int error)
{
	atomic_store(&install->broken_errno, error);
	if (install->ledger && error != -ECANCELED)
		atomic_store(&install->ledger->header->broken_errno, error);
	atomic_store(&install->broken, true);
	return error;
}

/* What to do about an answer that is not progress: 0 try again, else the error to give up with. */
static int reconsider(struct install *install, int error)
{
	static const struct timespec pause = {.tv_nsec = 10000000};

	switch (error) {
	case -EAGAIN:
		/* The mappings are changing. No event that we would have to read causes it, since
		 * none but page faults were asked for. */
		sched_yield();
		return atomic_load(&install->stop) ? -ECANCELED : 0;
	case -ENOMEM:
	case -ENOSPC:
		/* The bytes are here and the claim is ours: keep both until there is room. */
		if (atomic_load(&install->stop))
			return -ECANCELED;
		atomic_fetch_add(&install->no_memory, 1);
		nanosleep(&pause, NULL);
		atomic_fetch_sub(&install->no_memory, 1);
		return 0;
	default:
		return error;
	}
}

static bool memory_is_full(void)
{
	return inject_fires(INJECT_MEMORY_FULL);
}

/* From here on the guest may see these pages, whose claim the caller holds: a run within a word. */
static void note_written(struct install *install, size_t region, uint64_t word, uint64_t mask)
{
	if (install->written[region] && is_in_file(install, region, word * 64))
		atomic_fetch_or(&install->written[region][word], mask);
	inject_kill(INJECT_KILL_WRITTEN);
}

/* Zeros into pages whose claim the caller holds, or that the guest gave back. */
static int place_zeros(struct install *install, const struct guest_region *region, uint64_t first,
		       uint64_t count)
{
	uint64_t address = guestmem_vm_address(region, first);
	uint64_t left = count * region->page_bytes;
	const struct uffd *uffd = uffd_of(install, region, first);

	while (left) {
		uint64_t unit = region->hugetlb ? region->page_bytes : left;
		int64_t done = memory_is_full()  ? -ENOMEM
			       : region->hugetlb ? uffd_copy(uffd, address, install->zero_page,
							     unit, UFFD_WAKE)
						 : uffd_zeropage(uffd, address, unit, UFFD_WAKE);
		if (done > 0) {
			address += (uint64_t)done;
			left -= (uint64_t)done;
			continue;
		}
		int result = reconsider(install, (int)done);
		if (result < 0)
			return result;
	}
	return 0;
}

static int place_by_copy(struct install *install, const struct guest_region *region, uint64_t first,
			 uint64_t count, const uint8_t *bytes)
{
	uint64_t address = guestmem_vm_address(region, first);
	uint64_t left = count * region->page_bytes;
	const struct uffd *uffd = uffd_of(install, region, first);

	while (left) {
		int64_t done = memory_is_full() ? -ENOMEM
						: uffd_copy(uffd, address, bytes, left, UFFD_WAKE);
		if (done > 0) {
			address += (uint64_t)done;
			bytes += done;
			left -= (uint64_t)done;
			continue;
		}
		int result = reconsider(install, (int)done);
		if (result < 0)
			return result;
	}
	return 0;
}

static int write_file(struct install *install, const struct guest_region *region, uint64_t first,
		      uint64_t count, const uint8_t *bytes)
{
	uint64_t left = count * region->page_bytes;
	uint64_t offset = region->fd_offset + first * region->page_bytes;

	if (region->hugetlb) { /* has no write() */
		memcpy(region->view + first * region->page_bytes, bytes, left);
		return 0;
	}
	while (left) {
		ssize_t done = pwrite(region->fd, bytes, left, (off_t)offset);
		if (done > 0) {
			bytes += done;
			offset += (uint64_t)done;
			left -= (uint64_t)done;
			continue;
		}
		if (done < 0 && errno == EINTR)
			continue;
		int result = reconsider(install, done < 0 ? -errno : -EIO);
		if (result < 0)
			return result;
	}
	return 0;
}

/* Whether the engine's own view has a huge page: all that it placed, and nobody took away. One that
 * is not there must not come by a write, which ends the process where the pool is empty; COPY says
 * so instead. */
static bool has_huge_page(const struct guest_region *region, uint64_t page)
{
	unsigned char resident = 0;

	return mincore(region->view + page * region->page_bytes, 4096, &resident) == 0 &&
	       resident & 1;
}

static int place_by_write(struct install *install, size_t region_index, uint64_t first,
			  uint64_t count, const uint8_t *bytes)
{
	const struct guest_region *region = &install->memory->regions[region_index];

	if (region->hugetlb && !has_huge_page(region, first)) {
		int result = place_by_copy(install, region, first, count, bytes);
		if (result != -EEXIST)
			return result;
	}
	int result = write_file(install, region, first, count, bytes);
	if (result < 0)
		return result;
	note_written(install, region_index, first / 64,
		     bits_mask((unsigned)(first % 64), (unsigned)count));

	uint64_t address = guestmem_vm_address(region, first);
	uint64_t left = count * region->page_bytes;
	const struct uffd *uffd = uffd_of(install, region, first);
	while (left) {
		int64_t done = uffd_continue(uffd, address, left, UFFD_WAKE);
		if (done == -EFAULT) {
			/* The guest gave the page back between write and CONTINUE: zeros, by its
			 * own wish. */
			result = place_zeros(install, region,
					     first + count - left / region->page_bytes, 1);
			if (result < 0)
				return result;
			done = (int64_t)region->page_bytes;
		}
		if (done > 0) {
			address += (uint64_t)done;
			left -= (uint64_t)done;
			continue;
		}
		result = reconsider(install, (int)done);
		if (result < 0)
			return result;
	}
	return 0;
}

static void set_present(struct install *install, size_t region, uint64_t word, uint64_t mask)
{
	install_hook_before_present(region, word, mask);
	inject_kill(INJECT_KILL_VISIBLE);
	if (pagemap_set_present(install->map, region, word, mask) == 0 && install->complete)
		install->complete(install->user);
}

static void wake(struct install *install, const struct guest_region *region, uint64_t first,
		 uint64_t count)
{
	uint64_t address = guestmem_vm_address(region, first);

	if (!install_hook_no_wake())
		uffd_wake(uffd_of(install, region, first), address, count * region->page_bytes);
}

/* The largest step from `first` that stays within one word of the map, one ioctl, one shard. */
static unsigned step_from(const struct guest_region *region, uint64_t first, uint64_t count)
{
	if (region->hugetlb)
		return 1;
	uint64_t step = INSTALL_RUN_PAGES - first % INSTALL_RUN_PAGES;
	return (unsigned)(step < count ? step : count);
}

/* A step of a run, without the WAKE. */
static int install_step(struct install *install, size_t region_index, uint64_t first, unsigned step,
			const uint8_t *bytes, uint64_t *installed, struct page_counters *counters)
{
	const struct guest_region *region = &install->memory->regions[region_index];
	uint64_t word = first / 64;
	uint64_t mask = bits_mask((unsigned)(first % 64), step);
	uint64_t won = pagemap_claim(install->map, region_index, word, mask);
	uint64_t rest = won;
	int outcome = 0;

	counter_add(&counters->duplicate, (uint64_t)__builtin_popcountll(mask & ~won));
	inject_kill(INJECT_KILL_CLAIMED);
	for (struct bits_run run = bits_take_run(&rest); run.count; run = bits_take_run(&rest)) {
		uint64_t page = word * 64 + run.first;
		const uint8_t *from = bytes + (page - first) * region->page_bytes;
		int result = is_in_file(install, region_index, page)
				     ? place_by_write(install, region_index, page, run.count, from)
				     : place_by_copy(install, region, page, run.count, from);
		if (result < 0) {
			if (result == -EEXIST)
				counter_add(&counters->conflicts, 1);
			outcome = give_up(install, result);
			continue;
		}
		*installed += run.count;
		set_present(install, region_index, word, bits_mask(run.first, run.count));
	}
	return outcome;
}

int install_pages(struct install *install, size_t region_index, uint64_t first, uint64_t count,
		  const uint8_t *bytes, uint64_t *installed, struct page_counters *counters)
{
	const struct guest_region *region = &install->memory->regions[region_index];
	int outcome = 0;

	while (count) {
		unsigned step = step_from(region, first, count);
		int result = install_step(install, region_index, first, step, bytes, installed,
					  counters);
		if (result < 0)
			outcome = result;
		/* Also when everything was dropped: whoever waits for the reply that we drop must
		 * look again. */
		wake(install, region, first, step);
		first += step;
		count -= step;
		bytes += step * region->page_bytes;
	}
	return outcome;
}

int install_own_page(struct install *install, size_t region, uint64_t page, const uint8_t *bytes,
		     uint64_t *installed, struct page_counters *counters)
{
	uint64_t before = *installed;
	int result = install_step(install, region, page, 1, bytes, installed, counters);

	if (*installed == before)
		wake(install, &install->memory->regions[region], page, 1);
	return result;
}

/* Makes what the file holds of the run disappear; nothing to do where it cannot hold any. */
static int empty_file(struct install *install, size_t region, uint64_t word, uint64_t won)
{
	uint64_t rest = won;

	for (struct bits_run run = bits_take_run(&rest); run.count; run = bits_take_run(&rest)) {
		uint64_t page = word * 64 + run.first;
		if (!is_in_file(install, region, page))
			continue;
		int result = guestmem_punch(&install->memory->regions[region], page, run.count);
		if (result < 0)
			return result;
	}
	return 0;
}

static int place_zero_run_now(struct install *install, const struct guest_region *region,
			      uint64_t word, uint64_t won)
{
	for (struct bits_run run = bits_take_run(&won); run.count; run = bits_take_run(&won)) {
		int result = place_zeros(install, region, word * 64 + run.first, run.count);
		if (result < 0)
			return result;
	}
	return 0;
}

int install_zeros(struct install *install, size_t region_index, uint64_t first, uint64_t count,
		  bool now, uint64_t *installed, struct page_counters *counters)
{
	const struct guest_region *region = &install->memory->regions[region_index];
	/* Waiters are woken once per piece; a piece stays within one GiB and so within one shard.
	 */
	uint64_t gib_pages = GIB(1) / region->page_bytes;
	int outcome = 0;

	while (count) {
		uint64_t piece = gib_pages - first % gib_pages;
		if (piece > count)
			piece = count;
		for (uint64_t page = first; page < first + piece;) {
			uint64_t step = 64 - page % 64;
			if (step > first + piece - page)
				step = first + piece - page;
			uint64_t word = page / 64;
			uint64_t mask = bits_mask((unsigned)(page % 64), (unsigned)step);
			uint64_t won = pagemap_claim(install->map, region_index, word, mask);
			counter_add(&counters->duplicate,
				    (uint64_t)__builtin_popcountll(mask & ~won));
			if (won) {
				int result = empty_file(install, region_index, word, won);
				if (!result)
					note_written(install, region_index, word, won);
				if (!result && now)
					result = place_zero_run_now(install, region, word, won);
				if (result < 0) {
					if (result == -EEXIST)
						counter_add(&counters->conflicts, 1);
					outcome = give_up(install, result);
				} else {
					*installed += (uint64_t)__builtin_popcountll(won);
					set_present(install, region_index, word, won);
				}
			}
			page += step;
		}
		wake(install, region, first, piece);
		first += piece;
		count -= piece;
	}
	return outcome;
}

void install_release(struct install *install, size_t region_index, uint64_t word, uint64_t mask)
{
	pagemap_release(install->map, region_index, word, mask);
	/* Whoever faulted on them meanwhile was told that a filler would wake him. */
	for (struct bits_run run = bits_take_run(&mask); run.count; run = bits_take_run(&mask))
		wake(install, &install->memory->regions[region_index], word * 64 + run.first,
		     run.count);
}

int install_present(struct install *install, size_t region_index, uint64_t page, bool minor,
		    struct page_counters *counters)
{
	const struct guest_region *region = &install->memory->regions[region_index];
	uint64_t address = guestmem_vm_address(region, page);
	const struct uffd *uffd = uffd_of(install, region, page);

	for (;;) {
		int64_t done;
		if (minor)
			done = uffd_continue(uffd, address, region->page_bytes, UFFD_WAKE);
		else
			done = region->hugetlb ? uffd_copy(uffd, address, install->zero_page,
							   region->page_bytes, UFFD_WAKE)
					       : uffd_zeropage(uffd, address, region->page_bytes,
							       UFFD_WAKE);
		if (done > 0) {
			if (!minor)
				counter_add(&counters->discarded, 1);
			return 0;
		}
		switch (done) {
		case -EFAULT: /* the guest gave the page back since it faulted */
			if (!minor)
				return give_up(install, -EFAULT);
			minor = false;
			continue;
		case -EEXIST: /* somebody was faster: the waiter only has to look again */
		case -ENOENT: /* unregistered, all its waiters were woken */
			wake(install, region, page, 1);
			return 0;
		default: {
			int result = reconsider(install, (int)done);
			if (result < 0)
				return result == -ECANCELED ? result : give_up(install, result);
		}
		}
	}
}

int install_place(struct install *install, size_t region, uint64_t first, uint64_t count,
		  const uint8_t *bytes)
{
	if (!is_in_file(install, region, first) || !is_in_file(install, region, first + count - 1))
		install_mark_in_file(install, region, first, count);
	return write_file(install, &install->memory->regions[region], first, count, bytes);
}

/* A huge page that is given up is not reserved for this guest any more, and when it is written to
 * again there may be none left: it stays, with zeros. Where nothing was placed (a hole that was
 * told) nothing is touched: COPY would find a page that it does not expect. */
int install_unplace(struct install *install, size_t region, uint64_t word, uint64_t mask)
{
	const struct guest_region *at = &install->memory->regions[region];

	if (!at->hugetlb)
		return empty_file(install, region, word, mask);
	for (; mask; mask &= mask - 1) {
		uint64_t page = word * 64 + (unsigned)__builtin_ctzll(mask);
		if (is_in_file(install, region, page))
			memset(at->view + page * at->page_bytes, 0, at->page_bytes);
	}
	return 0;
}

uint64_t install_seen(const struct install *install, size_t region, uint64_t word, uint64_t claimed)
{
	const struct guest_region *at = &install->memory->regions[region];
	uint64_t seen = 0;

	if (is_in_file(install, region, word * 64))
		return claimed & atomic_load(&install->written[region][word]);
	for (; claimed; claimed &= claimed - 1) {
		uint64_t page = word * 64 + (unsigned)__builtin_ctzll(claimed);
		if (guestmem_next_data(at, page) == page)
			seen |= claimed & -claimed;
	}
	return seen;
}

void install_wake_all(struct install *install, size_t region)
{
	const struct guest_region *at = &install->memory->regions[region];
	uint64_t step = install->shards == 1 ? at->pages : GIB(1) / at->page_bytes;

	for (uint64_t page = 0; page < at->pages; page += step)
		wake(install, at, page, at->pages - page < step ? at->pages - page : step);
}

bool install_in_file(const struct install *install, size_t region, uint64_t page)
{
	return is_in_file(install, region, page);
}
