/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/tamper.h"

#ifdef JAUNT_INJECT

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/inject.h"

#define STALE_MAX      (UINT64_C(256) << 20) /* bytes of memory that are kept as they were */
#define STALE_PAGES    512u  /* so many are to have changed before the VM is paused… */
#define STALE_PATIENCE 200u  /* …unless it does not write: waits at most, */
#define STALE_PAUSE_US 5000u /* each of so long */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static uint8_t *old;
static const struct guest_region *old_region;
static uint64_t old_pages;

/* How many pages differ from their old copies, as far as `enough`. */
static uint64_t count_changed(uint64_t enough)
{
	uint64_t size = old_region->page_bytes, changed = 0;
	uint8_t *now = malloc(size);

	for (uint64_t page = 0; now && page < old_pages && changed < enough; page++)
		if (guestmem_read(old_region, page, 1, now) == 0)
			changed += memcmp(old + page * size, now, size) != 0;
	free(now);
	return changed;
}

void tamper_prepare(const struct guestmem *memory)
{
	if (!inject_armed(INJECT_DATA_STALE))
		return;
	tamper_forget();
	pthread_mutex_lock(&mutex);
	old_region = &memory->regions[0];
	uint64_t most = STALE_MAX / old_region->page_bytes;
	old_pages = old_region->pages < most ? old_region->pages : most;
	old = malloc(old_pages * old_region->page_bytes);
	if (!old || guestmem_read(old_region, 0, old_pages, old) < 0)
		old_pages = 0;
	/* A guest that the scheduler kept from running meanwhile has nothing stale to offer yet. */
	for (unsigned i = 0; i < STALE_PATIENCE && count_changed(STALE_PAGES) < STALE_PAGES; i++)
		usleep(STALE_PAUSE_US);
	pthread_mutex_unlock(&mutex);
}

void tamper_forget(void)
{
	pthread_mutex_lock(&mutex);
	free(old);
	old = NULL;
	old_pages = 0;
	pthread_mutex_unlock(&mutex);
}

bool tamper_active(void)
{
	return inject_armed(INJECT_DATA_FLIP) || inject_armed(INJECT_DATA_LOSE) ||
	       inject_armed(INJECT_DATA_TEAR) || inject_armed(INJECT_DATA_STALE) ||
	       inject_armed(INJECT_DATA_TWICE);
}

static void make_stale(const struct guest_region *region, uint64_t page, uint8_t *bytes)
{
	uint64_t size = region->page_bytes;

	pthread_mutex_lock(&mutex);
	/* Only where there is an older valid copy that differs is there anything to be caught. */
	if (region == old_region && page < old_pages) {
		const uint8_t *before = old + page * size;
		bool was_written = before[0] || memcmp(before, before + 1, size - 1) != 0;
		if (was_written && memcmp(before, bytes, size) != 0 &&
		    inject_fires(INJECT_DATA_STALE))
			memcpy(bytes, before, size);
	}
	pthread_mutex_unlock(&mutex);
}

enum tamper tamper_page(const struct guest_region *region, uint64_t page, uint8_t *bytes)
{
	uint64_t size = region->page_bytes;

	if (inject_armed(INJECT_DATA_STALE))
		make_stale(region, page, bytes);
	if (inject_armed(INJECT_DATA_FLIP) && inject_fires(INJECT_DATA_FLIP)) {
		uint64_t bit = inject_random(INJECT_DATA_FLIP) % (size * 8);
		bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	if (inject_armed(INJECT_DATA_TEAR) && inject_fires(INJECT_DATA_TEAR))
		for (uint64_t i = size / 2; i < size; i++)
			bytes[i] ^= 0xa5;
	if (inject_armed(INJECT_DATA_LOSE) && inject_fires(INJECT_DATA_LOSE)) {
		memset(bytes, 0, size);
		return TAMPER_LOST;
	}
	if (inject_armed(INJECT_DATA_TWICE) && inject_fires(INJECT_DATA_TWICE))
		return TAMPER_TWICE;
	return TAMPER_NONE;
}

#endif
