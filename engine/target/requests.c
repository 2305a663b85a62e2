/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/requests.h"

#include <string.h>

#define SLOTS (REQUESTS_MAX * 2)

static unsigned home_of(uint16_t region, uint64_t page)
{
	uint64_t key = (page ^ ((uint64_t)region << 48)) * UINT64_C(0x9e3779b97f4a7c15);
	return (unsigned)(key >> 40) % SLOTS;
}

struct request *requests_find(struct requests *requests, uint16_t region, uint64_t page)
{
	for (unsigned i = home_of(region, page);; i = (i + 1) % SLOTS) {
		struct request *slot = &requests->slots[i];
		if (!slot->used)
			return NULL;
		if (slot->page == page && slot->region == region)
			return slot;
	}
}

enum request_result requests_enter(struct requests *requests, uint16_t region, uint64_t page,
				   uint64_t read_ns, struct request **out)
{
	unsigned i = home_of(region, page);

	for (; requests->slots[i].used; i = (i + 1) % SLOTS)
		if (requests->slots[i].page == page && requests->slots[i].region == region) {
			*out = &requests->slots[i];
			return REQUEST_JOINED;
		}
	if (requests->count == REQUESTS_MAX)
		return REQUEST_FULL;
	requests->slots[i] =
		(struct request){.page = page, .read_ns = read_ns, .region = region, .used = true};
	requests->count++;
	*out = &requests->slots[i];
	return REQUEST_NEW;
}

void requests_remove(struct requests *requests, struct request *request)
{
	unsigned hole = (unsigned)(request - requests->slots);

	requests->slots[hole].used = false;
	requests->count--;
	/* Moves later entries of the same probe sequence forward, so that no search stops short. */
	for (unsigned i = (hole + 1) % SLOTS; requests->slots[i].used; i = (i + 1) % SLOTS) {
		unsigned home = home_of(requests->slots[i].region, requests->slots[i].page);
		if ((i - home + SLOTS) % SLOTS < (i - hole + SLOTS) % SLOTS)
			continue;
		requests->slots[hole] = requests->slots[i];
		requests->slots[i].used = false;
		hole = i;
	}
}
