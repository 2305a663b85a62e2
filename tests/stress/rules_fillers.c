/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of the page map with everybody at them at once: fillers with different bytes for the
 * same pages, by COPY and over older copies; zeros and holes; a fault handler that fetches; guests
 * that read and write all the time, and that give pages back. Afterwards every page has exactly one
 * winner. Meanwhile:
 *
 *   - a guest sees a page whole, of one filler, and no older copy, ever;
 *   - what it saw, and what it wrote, stays;
 *   - in the part where guests discard, a page is that or zeros;
 *   - every fault ends: a lost wake-up is a guest that hangs, which the watchdog reports.
 *
 * A plain program, so that the thread sanitizer can run it.
 *
 *     rules_fillers [ROUNDS [no-wake]]    no-wake: without the WAKEs of rule 4, which must hang
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "engine/target/hooks.h"
#include "tests/unit/engine/world.h"

#define PAGES    1024u
#define FILLERS  3u
#define GUESTS   3u
#define DEMANDED FILLERS /* the version that the fault handler brings */
#define STALE    77u
#define NO_PAGE  UINT64_MAX
#define KEPT     0u /* region: nothing is discarded */
#define GIVEN    1u /* region: guests discard */

static struct world world;
static _Atomic uint32_t seen[PAGES]; /* version + 1 of a page of KEPT, zeros 100; 0: not yet */
static _Atomic bool finished;
static _Atomic unsigned guests_left;
static _Atomic uint64_t looks; /* faults that the handler has looked at */
static unsigned seed;

struct filler {
	pthread_t thread;
	unsigned version;
	uint64_t installed;
	struct page_counters counters;
};

static unsigned draw(uint64_t *state, unsigned below)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)(*state >> 33) % below;
}

/* --- Fillers ------------------------------------------------------------------------------------
 */

static void *fill(void *argument)
{
	struct filler *filler = argument;
	uint64_t state = seed * 1000 + filler->version;
	uint8_t *bytes = malloc(64 * PAGE);

	while (pagemap_missing(&world.shared.map)) {
		size_t region = draw(&state, 2);
		uint64_t first = draw(&state, PAGES);
		uint64_t count = 1 + draw(&state, draw(&state, 8) ? 8 : 64), missing;
		/* Towards the end, what is left. */
		if (draw(&state, 2) &&
		    pagemap_find_absent(&world.shared.map, region, first, PAGES, &first, &missing))
			count = count < missing ? count : missing;
		if (count > PAGES - first)
			count = PAGES - first;
		int result;
		if (draw(&state, 6) == 0) {
			result = install_zeros(&world.shared.install, region, first, count,
					       draw(&state, 2), &filler->installed,
					       &filler->counters);
		} else {
			for (uint64_t i = 0; i < count; i++)
				world_make(bytes + i * PAGE, PAGE, first + i, filler->version);
			result = install_pages(&world.shared.install, region, first, count, bytes,
					       &filler->installed, &filler->counters);
		}
		must(result == 0, "a filler could not install: %s", strerror(-result));
	}
	free(bytes);
	return NULL;
}

/* A filler that goes straight into the file: claims first, and mostly loses its link. */
static void *claim_and_give_up(void *argument)
{
	struct filler *filler = argument;
	uint64_t state = seed * 77 + 5;

	while (pagemap_missing(&world.shared.map)) {
		size_t region = draw(&state, 2);
		uint64_t word = draw(&state, PAGES / 64);
		uint64_t won = pagemap_claim(&world.shared.map, region, word,
					     bits_mask(draw(&state, 57), 8));
		/* Long enough for a guest to fault on it, and for the handler to look. */
		uint64_t before = atomic_load(&looks);
		for (unsigned i = 0; i < 200 && atomic_load(&looks) == before; i++)
			sched_yield();
		if (won)
			install_release(&world.shared.install, region, word, won);
	}
	(void)filler;
	return NULL;
}

/* What engine/target/demand does, with a source that answers at once. */
static void *handle_faults(void *argument)
{
	struct filler *filler = argument;
	uint8_t bytes[PAGE];

	while (!atomic_load(&finished)) {
		struct fault_event events[EVENTS_BATCH];
		unsigned other = 0;
		int count =
			events_read(&world.shared.install.uffds[0], events, EVENTS_BATCH, &other);
		must(count >= 0 && !other, "the userfaultfd cannot be read");
		if (count == 0)
			sched_yield();
		for (int i = 0; i < count; i++) {
			size_t region;
			uint64_t page;
			must(guestmem_locate(&world.shared.memory, events[i].address, &region,
					     &page),
			     "a fault outside of guest memory");
			enum page_state state = pagemap_state(&world.shared.map, region, page);
			atomic_fetch_add(&looks, 1);
			switch (state) {
			case PAGE_ABSENT:
				sched_yield(); /* the source is far away */
				world_make(bytes, PAGE, page, DEMANDED);
				must(install_own_page(&world.shared.install, region, page, bytes,
						      &filler->installed, &filler->counters) == 0,
				     "a demanded page could not be installed");
				break;
			case PAGE_FILLING:
				break;
			case PAGE_PRESENT:
				must(install_present(&world.shared.install, region, page,
						     events[i].minor, &filler->counters) == 0,
				     "a present page could not be served");
			}
		}
	}
	return NULL;
}

/* --- Guests -------------------------------------------------------------------------------------
 */

static void look_at(size_t region, uint64_t page, uint64_t *copy)
{
	uint64_t *at = (uint64_t *)(void *)world_at(&world, region, page);

	for (unsigned i = 0; i < PAGE / 8; i++)
		copy[i] = __atomic_load_n(&at[i], __ATOMIC_RELAXED);
}

/* Which filler's page it is; DEMANDED + 1 for zeros. Word 1 is the guests' to write. */
static unsigned whose(const uint64_t *copy, uint64_t page, bool given)
{
	static _Thread_local uint64_t expected[PAGE / 8];
	unsigned zeros = 0;

	for (unsigned i = 0; i < PAGE / 8; i++)
		zeros += i != 1 && copy[i] == 0;
	if (zeros == PAGE / 8 - 1)
		return DEMANDED + 1;
	for (unsigned version = 0; version <= DEMANDED; version++) {
		unsigned equal = 0;
		world_make(expected, PAGE, page, version);
		for (unsigned i = 0; i < PAGE / 8; i++)
			equal += i != 1 && (copy[i] == expected[i]);
		/* A guest that gives a page back while it reads sees the zeros begin. */
		if (equal == PAGE / 8 - 1 || (given && equal && equal + zeros == PAGE / 8 - 1))
			return version;
	}
	world_make(expected, PAGE, page, STALE);
	must(copy[0] != expected[0], "page %lu: an older copy was seen", page);
	must(false, "page %lu: torn, or nobody's", page);
	return 0;
}

static void visit(size_t region, uint64_t page)
{
	uint64_t copy[PAGE / 8];

	look_at(region, page, copy);
	unsigned version = whose(copy, page, region == GIVEN);
	if (region == GIVEN)
		return;
	uint32_t first = 0;
	if (!atomic_compare_exchange_strong(&seen[page], &first, version + 1))
		must(first == version + 1, "page %lu was filler %u's, and is %u's now", page,
		     first - 1, version);
}

static void *run_guest(void *argument)
{
	unsigned self = (unsigned)(uintptr_t)argument;
	uint64_t state = seed * 31 + self;
	bool written[PAGES] = {false};
	bool sweep;

	do {
		sweep = pagemap_missing(&world.shared.map) == 0; /* then once more, all of it */
		for (uint64_t i = 0; i < PAGES; i++) {
			uint64_t page = sweep ? i : draw(&state, PAGES);
			visit(KEPT, page);
			uint64_t *word = (uint64_t *)(void *)world_at(&world, KEPT, page) + 1;
			if (page % GUESTS == self) {
				if (written[page])
					must(__atomic_load_n(word, __ATOMIC_RELAXED) == page * 3,
					     "page %lu: what the guest wrote is gone", page);
				__atomic_store_n(word, page * 3, __ATOMIC_RELAXED);
				written[page] = true;
			}
			page = sweep ? i : draw(&state, PAGES);
			if (draw(&state, 4) == 0)
				must(madvise(world_at(&world, GIVEN, page), PAGE,
					     draw(&state, 2) ? MADV_REMOVE : MADV_DONTNEED) == 0,
				     "madvise");
			visit(GIVEN, page);
		}
	} while (!sweep);
	if (atomic_fetch_sub(&guests_left, 1) == 1)
		atomic_store(&finished, true);
	return NULL;
}

#ifdef JAUNT_INJECT
/* Time for a guest to give a page back that is visible and not yet present, and to touch it. */
static void linger(void *user, size_t region, uint64_t word, uint64_t mask)
{
	(void)user, (void)region, (void)word;
	for (unsigned i = 0; i < 3 && mask & 0x1111; i++)
		sched_yield();
}
#endif

/* --- A round ------------------------------------------------------------------------------------
 */

static void hang(int signal)
{
	static const char text[] = "rules_fillers: a guest hangs in a fault: a wake-up was lost\n";
	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(3);
}

static uint64_t play(void)
{
	struct world_region regions[] = {{PAGES, PAGE, 0}, {PAGES, PAGE, 5 * PAGE}};
	struct filler fillers[FILLERS + 2];
	pthread_t guests[GUESTS];
	uint64_t installed = 0, duplicates = 0;

	if (!world_open(&world, regions, 2, 1)) {
		fprintf(stderr, "rules_fillers: skipped: %s\n", world.lack);
		exit(77);
	}
	memset(fillers, 0, sizeof(fillers));
	memset(seen, 0, sizeof(seen));
	atomic_store(&finished, false);
	atomic_store(&guests_left, GUESTS);
	/* Half of each region may hold older copies, and every third page there does. */
	for (uint64_t page = 0; page < PAGES / 2; page += 3) {
		world_put_stale(&world, KEPT, page, STALE);
		world_put_stale(&world, GIVEN, page, STALE);
	}
	alarm(60);
	for (unsigned i = 0; i < FILLERS + 2; i++) {
		fillers[i].version = i;
		pthread_create(&fillers[i].thread, NULL,
			       i < FILLERS    ? fill
			       : i == FILLERS ? handle_faults
					      : claim_and_give_up,
			       &fillers[i]);
	}
	for (uintptr_t i = 0; i < GUESTS; i++)
		pthread_create(&guests[i], NULL, run_guest, (void *)i);
	for (unsigned i = 0; i < GUESTS; i++)
		pthread_join(guests[i], NULL);
	for (unsigned i = 0; i < FILLERS + 2; i++) {
		pthread_join(fillers[i].thread, NULL);
		installed += fillers[i].installed;
		duplicates += counter_get(&fillers[i].counters.duplicate);
		must(counter_get(&fillers[i].counters.conflicts) == 0, "a page had two owners");
	}
	alarm(0);
	must(installed == 2 * PAGES, "%lu pages were won, of %u", installed, 2 * PAGES);
	must(!atomic_load(&world.shared.install.broken), "broken");
	world_close(&world);
	return duplicates;
}

int main(int count, char **arguments)
{
	unsigned rounds = count > 1 ? (unsigned)atoi(arguments[1]) : 40;
	uint64_t duplicates = 0;

	signal(SIGALRM, hang);
#ifdef JAUNT_INJECT
	install_hooks.before_present = linger;
	install_hooks.no_wake = count > 2 && strcmp(arguments[2], "no-wake") == 0;
#endif
	for (seed = 1; seed <= rounds; seed++)
		duplicates += play();
	printf("rules_fillers: %u rounds, %u pages won, %lu dropped\n", rounds, rounds * 2 * PAGES,
	       duplicates);
	return 0;
}
