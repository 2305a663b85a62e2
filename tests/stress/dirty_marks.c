/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No mark of a dirty page is lost. Writers change a page's value and mark it afterwards; takers,
 * one for each stripe as the streams of a migration are, take pages and copy their value. Whatever
 * is read after a take must be no older than what was marked, and in the end the copy equals the
 * original. The values are atomic, relaxed: only the map orders them. Of some pages the marks are
 * taken all the while, as of those that were told: what becomes of these pages is not looked at.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/source/dirty.h"

#define PAGES   (2 * DIRTY_GROUP_PAGES + 77)
#define STRIPE  16u /* pages: several stripes lie in one word */
#define WRITERS 3u
#define TAKERS  3u
#define HOT     70u   /* pages that are written most */
#define OWN     4000u /* page of one thread alone, in the group of the hot ones */
#define WRITES  2000000u

static struct guestmem memory = {.region_count = 1,
				 .regions = {{.pages = PAGES, .page_bytes = 4096}}};
static struct dirty dirty;
static _Atomic uint32_t original[PAGES]; /* written before the mark */
static _Atomic uint32_t copied[PAGES];   /* by the taker that owns the stripe */
static _Atomic unsigned writing = WRITERS;
static struct dirty told;

static void fail(const char *what, uint64_t page)
{
	fprintf(stderr, "dirty_marks: %s (page %llu)\n", what, (unsigned long long)page);
	exit(1);
}

static void *write_pages(void *argument)
{
	uint64_t state = (uintptr_t)argument + 1;
	for (unsigned i = 0; i < WRITES; i++) {
		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		/* Mostly the same few pages, so that marks and takes of a word meet. */
		uint64_t count = 1 + (state >> 25) % 3, first = (state >> 33) % HOT;
		if ((state >> 20) % 8 == 0)
			first = DIRTY_GROUP_PAGES + (state >> 33) % (PAGES - DIRTY_GROUP_PAGES);
		for (uint64_t page = first; page < first + count && page < PAGES; page++)
			atomic_fetch_add_explicit(&original[page], 1, memory_order_relaxed);
		dirty_mark(&dirty, 0, first, count);
	}
	atomic_fetch_sub(&writing, 1);
	return NULL;
}

/* One walk over the own stripes; whether something was taken. */
static bool take_stripes(unsigned taker)
{
	bool any = false;
	for (uint64_t stripe = taker; stripe * STRIPE < PAGES; stripe += TAKERS) {
		uint64_t from = stripe * STRIPE, end = from + STRIPE, first, count;
		while (stripe != OWN / STRIPE &&
		       dirty_take(&dirty, 0, from, end, 5, &first, &count)) {
			if (first < from || first + count > end || count > 5)
				fail("a take went out of its bounds", first);
			for (uint64_t page = first; page < first + count; page++) {
				uint32_t now =
					atomic_load_explicit(&original[page], memory_order_relaxed);
				uint32_t before = atomic_exchange_explicit(&copied[page], now,
									   memory_order_relaxed);
				if (now < before)
					fail("a page became older", page);
			}
			from = first + count;
			any = true;
		}
	}
	return any;
}

static void *take_pages(void *argument)
{
	unsigned taker = (unsigned)(uintptr_t)argument;
	bool over;
	do {
		/* Before the walk: what was marked before it must be found by it. */
		over = !atomic_load(&writing);
	} while (take_stripes(taker) || !over);
	return NULL;
}

static bool is_told(uint64_t page)
{
	return page % 8 == 7;
}

static void *subtract(void *argument)
{
	uint64_t taken = 0;
	(void)argument;
	while (atomic_load(&writing))
		taken += dirty_subtract(&dirty, &told);
	if (!taken)
		fail("nothing was subtracted", 0);
	return NULL;
}

/* Its own mark must be found by the take right behind it, whatever others do in the same group. */
static void *mark_and_take(void *argument)
{
	uint64_t first, count;
	(void)argument;
	while (atomic_load(&writing)) {
		dirty_mark(&dirty, 0, OWN, 1);
		if (!dirty_take(&dirty, 0, OWN, OWN + 1, 1, &first, &count))
			fail("a mark was not found", OWN);
	}
	return NULL;
}

int main(void)
{
	pthread_t writers[WRITERS], takers[TAKERS], owner, subtracter;
	if (dirty_open(&dirty, &memory) < 0 || dirty_open(&told, &memory) < 0)
		fail("out of memory", 0);
	for (uint64_t page = 0; page < PAGES; page++)
		if (is_told(page))
			dirty_mark(&told, 0, page, 1);
	for (uintptr_t i = 0; i < TAKERS; i++)
		pthread_create(&takers[i], NULL, take_pages, (void *)i);
	for (uintptr_t i = 0; i < WRITERS; i++)
		pthread_create(&writers[i], NULL, write_pages, (void *)i);
	pthread_create(&owner, NULL, mark_and_take, NULL);
	pthread_create(&subtracter, NULL, subtract, NULL);
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(writers[i], NULL);
	pthread_join(owner, NULL);
	pthread_join(subtracter, NULL);
	for (unsigned i = 0; i < TAKERS; i++)
		pthread_join(takers[i], NULL);
	for (uint64_t page = 0; page < PAGES; page++)
		if (!is_told(page) && atomic_load(&original[page]) != atomic_load(&copied[page]))
			fail("a write was never taken", page);
	if (dirty_count_all(&dirty))
		fail("the count does not agree", dirty_count_all(&dirty));
	if (dirty_next(&dirty, 0, 0, PAGES) != PAGES)
		fail("something is left", dirty_next(&dirty, 0, 0, PAGES));
	dirty_close(&dirty);
	dirty_close(&told);
	return 0;
}
