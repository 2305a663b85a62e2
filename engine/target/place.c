/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * What is entered in the page map before the epoch. Of a page that was placed both bits are set,
 * `claimed` and `present`; of all others none. So when the epoch begins each page is in one of the
 * states of pagemap.h, and its rules hold from there on, if what is present is the source's last
 * version. That is so because
 *
 * - a page that the source wrote after it read it for sending is among the stale runs: the tracker
 *   was armed before the page was read, and is asked for the last time when the vCPUs stand still;
 * - stale runs take both bits away after the last byte was placed: the source told them after every
 *   stream had acknowledged its last ROUND, and place_end() with place_busy() makes sure of it
 * here, whatever the source does;
 * - frames of epoch 0 that come later are dropped: `placing` is clear;
 * - no fault is answered, no range granted and nothing mapped before, so nobody has seen a bit that
 *   was taken away, and the VM's view maps nothing that could be stale.
 *
 * A stale page's older copy stays in the file. Its chunk has `in_file` set, so the newer copy is
 * written over it before CONTINUE, and zeros punch it (install.c). In a round zeros punch an older
 * copy, too, but for huge pages, which they overwrite.
 */
#include "engine/target/place.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/inject.h"
#include "engine/target/checker.h"
#include "proto/frame.h"
#include "transport/transport.h"

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t bitmap_bytes(const struct target_shared *shared, size_t region)
{
	return round_up(shared->memory.regions[region].pages, 64) / 8;
}

int place_open(struct target_shared *shared)
{
	if (!shared->session.verify)
		return 0;
	for (size_t i = 0; i < shared->memory.region_count; i++) {
		void *bits = mmap(NULL, bitmap_bytes(shared, i), PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (bits == MAP_FAILED)
			return -ENOMEM;
		shared->copied[i] = bits;
	}
	return 0;
}

void place_close(struct target_shared *shared)
{
	for (size_t i = 0; i < shared->memory.region_count; i++) {
		if (shared->copied[i])
			munmap((void *)shared->copied[i], bitmap_bytes(shared, i));
		shared->copied[i] = NULL;
	}
}

bool place_begin(struct place *place)
{
	if (!atomic_load_explicit(&place->busy, memory_order_relaxed))
		atomic_store(&place->busy, true);
	return atomic_load(&place->shared->placing);
}

/* Those of the pages of a word that something was placed for. */
static uint64_t placed(const struct target_shared *shared, size_t region, uint64_t word)
{
	return shared->copied[region] ? atomic_load(&shared->copied[region][word])
				      : atomic_load(&shared->map.regions[region].present[word]);
}

static void enter(struct target_shared *shared, size_t region, uint64_t word, uint64_t mask)
{
	if (shared->copied[region])
		atomic_fetch_or(&shared->copied[region][word], mask);
	else
		pagemap_place(&shared->map, region, word, mask);
}

/* Steps through the words of a range: the next, and its mask. */
static bool next_word(uint64_t *first, uint64_t end, uint64_t *word, uint64_t *mask)
{
	if (*first >= end)
		return false;
	uint64_t step = least(64 - *first % 64, end - *first);
	*word = *first / 64;
	*mask = bits_mask((unsigned)(*first % 64), (unsigned)step);
	*first += step;
	return true;
}

int place_pages(struct target_shared *shared, size_t region, uint64_t first, uint64_t count,
		const uint8_t *bytes)
{
	uint64_t end = first + count, word, mask;
	int result = install_place(&shared->install, region, first, count, bytes);

	if (result < 0)
		return result;
	while (next_word(&first, end, &word, &mask))
		enter(shared, region, word, mask);
	return 0;
}

int place_zero_run(struct target_shared *shared, size_t region, uint64_t first, uint64_t count)
{
	uint64_t end = first + count, word, mask;

	while (next_word(&first, end, &word, &mask)) {
		uint64_t older = placed(shared, region, word) & mask;
		int result = older ? install_unplace(&shared->install, region, word, older) : 0;
		if (result < 0)
			return result;
		if (shared->copied[region])
			atomic_fetch_and(&shared->copied[region][word], ~mask);
		else
			pagemap_place(&shared->map, region, word, mask);
	}
	return 0;
}

void place_holes(struct target_shared *shared, size_t region, uint64_t first, uint64_t count)
{
	uint64_t end = first + count, word, mask;

	while (!shared->copied[region] && next_word(&first, end, &word, &mask))
		pagemap_place(&shared->map, region, word, mask);
}

const char *place_round(struct place *place, struct channel *channel, const struct frame *frame)
{
	struct frame answer = {.type = FRAME_ROUND_ACK, .first_page = frame->first_page};
	uint8_t bytes[FRAME_BYTES];

	if (frame->epoch || !atomic_load(&place->shared->placing))
		return "the end of a round where there are none";
	if (frame->first_page != place->rounds)
		return "rounds out of order";
	inject_kill(INJECT_KILL_ROUND);
	place->rounds++;
	atomic_store(&place->busy, false);
	frame_encode(&answer, bytes);
	channel_send(channel, bytes, sizeof(bytes), NULL, 0, 0);
	return NULL;
}

void place_end(struct target_shared *shared)
{
	atomic_store(&shared->placing, false);
}

bool place_busy(const struct place *place)
{
	return atomic_load(&place->busy);
}

void place_stale(struct target_shared *shared, size_t region, uint64_t first, uint64_t count)
{
	uint64_t end = first + count, word, mask;

	while (next_word(&first, end, &word, &mask)) {
		if (shared->copied[region])
			atomic_fetch_and(&shared->copied[region][word], ~mask);
		else
			pagemap_stale(&shared->map, region, word, mask);
	}
}

static void forget(struct target_shared *shared, size_t region, uint64_t page)
{
	atomic_fetch_and(&shared->copied[region][page / 64], ~(UINT64_C(1) << (page % 64)));
}

/* Whether a page that was copied has been given back by the guest since, and so its copy is gone.
 * What was copied is no page of zeros (those are not remembered), and hugetlbfs tells no holes. */
static bool is_given_back(const struct guest_region *region, uint64_t page, const uint8_t *bytes)
{
	off_t at = (off_t)(region->fd_offset + page * region->page_bytes);

	if (bytes[0] || memcmp(bytes, bytes + 1, region->page_bytes - 1) != 0)
		return false;
	return region->hugetlb || lseek(region->fd, at, SEEK_DATA) != at;
}

/* How many pages of the run, which lies in one word, nobody has claimed: who installs a page claims
 * it before the first byte is written, so what was read of those before was not being written. */
static unsigned count_unclaimed(const struct target_shared *shared, size_t region, uint64_t first,
				unsigned count)
{
	/* A read-modify-write that changes nothing: what was read before it stays before it. */
	uint64_t claimed = atomic_fetch_or(&shared->map.regions[region].claimed[first / 64], 0) >>
				   (first % 64) &
			   bits_mask(0, count);
	return claimed ? (unsigned)__builtin_ctzll(claimed) : count;
}

/* A run that one ioctl covers, and of which all was copied. */
static void check_run(struct target_shared *shared, struct checker *checker, size_t region,
		      uint64_t first, unsigned count, uint8_t *buffer,
		      struct page_counters *counters)
{
	const struct guest_region *at = &shared->memory.regions[region];
	uint64_t wrong = 0, installed = 0;

	if (guestmem_read(at, first, count, buffer) < 0)
		return;
	/* What somebody else installs meanwhile was perhaps read half written. */
	count = count_unclaimed(shared, region, first, count);
	for (unsigned i = 0; i < count; i++) {
		if (!is_given_back(at, first + i, buffer + i * at->page_bytes))
			continue;
		forget(shared, region, first + i); /* fetched like any other */
		count = i;
	}
	if (!count || checker_pages(checker, region, first, count, buffer, &wrong, counters) < 0)
		return; /* nothing is known: they stay absent */
	uint64_t right = bits_mask(0, count) & ~wrong;
	for (struct bits_run run = bits_take_run(&right); run.count; run = bits_take_run(&right))
		install_pages(&shared->install, region, first + run.first, run.count,
			      buffer + run.first * at->page_bytes, &installed, counters);
	counter_add(&counters->copied, installed);
	for (; wrong; wrong &= wrong - 1) {
		uint64_t page = first + (unsigned)__builtin_ctzll(wrong);
		forget(shared, region, page);
		checker_suspect(shared, region, page, false);
	}
}

void place_check(struct target_shared *shared, struct checker *checker, size_t region,
		 uint64_t first, uint64_t count, struct page_counters *counters)
{
	const struct guest_region *at = &shared->memory.regions[region];
	unsigned most = at->hugetlb ? 1 : INSTALL_RUN_PAGES;
	uint64_t end = first + count;
	uint8_t *buffer = NULL;

	while (shared->copied[region] && first < end && !checker->dead) {
		uint64_t bits = placed(shared, region, first / 64) >> (first % 64);
		if (!bits) {
			first = (first / 64 + 1) * 64;
			continue;
		}
		first += (unsigned)__builtin_ctzll(bits);
		bits >>= __builtin_ctzll(bits);
		unsigned room = (unsigned)least(
			least(end > first ? end - first : 0, 64 - first % 64), most);
		unsigned run = ~bits ? (unsigned)__builtin_ctzll(~bits) : 64;
		run = run < room ? run : room;
		if (!run)
			break;
		uint64_t absent, absent_count;
		if (!pagemap_find_absent(&shared->map, region, first, first + run, &absent,
					 &absent_count)) {
			first += run;
			continue;
		}
		if (!buffer && !(buffer = malloc(most * at->page_bytes)))
			return;
		check_run(shared, checker, region, absent, (unsigned)absent_count, buffer,
			  counters);
		first = absent + absent_count;
	}
	free(buffer);
}
