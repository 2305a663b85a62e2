/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/readpage.h"

#include <assert.h>
#include <errno.h>

int readpage_open(struct readpage *readpage, struct channel *channel, uint64_t largest_page)
{
	struct jaunt_error ignored = {0};

	*readpage = (struct readpage){0};
	if (!channel || !channel_can_read(channel))
		return 0;
	uint64_t slots = READPAGE_BYTES / largest_page;
	slots = slots < 2 ? 2 : slots > READPAGE_SLOTS ? READPAGE_SLOTS : slots;
	int result = channel_landing(&readpage->landing, channel, slots * largest_page, &ignored);
	if (result < 0)
		return result;
	readpage->channel = channel;
	readpage->slot_bytes = largest_page;
	readpage->slots = (unsigned)slots;
	return 0;
}

void readpage_close(struct readpage *readpage)
{
	landing_free(&readpage->landing);
	*readpage = (struct readpage){0};
}

static uint64_t free_slots(const struct readpage *readpage)
{
	uint64_t all = readpage->slots >= 64 ? UINT64_MAX : (UINT64_C(1) << readpage->slots) - 1;
	return all & ~readpage->busy;
}

bool readpage_room(const struct readpage *readpage)
{
	return readpage->channel && free_slots(readpage) && channel_read_room(readpage->channel);
}

int readpage_start(struct readpage *readpage, const struct reads *reads, size_t region,
		   uint64_t page)
{
	struct reads_place place;

	if (!readpage->channel || !reads_find(reads, region, page, 1, &place))
		return -ENOENT;
	if (!readpage_room(readpage))
		return -EAGAIN;
	unsigned slot = (unsigned)__builtin_ctzll(free_slots(readpage));
	uint64_t page_bytes = reads->memory->regions[region].page_bytes;
	int result =
		channel_read(readpage->channel, &readpage->landing, slot * readpage->slot_bytes,
			     place.address, place.key, page_bytes, slot);
	if (result < 0)
		return result;
	readpage->busy |= UINT64_C(1) << slot;
	readpage->page[slot].page = page;
	readpage->page[slot].region = (uint16_t)region;
	return 0;
}

const uint8_t *readpage_take(const struct readpage *readpage, uint64_t cookie, size_t *region,
			     uint64_t *page)
{
	assert(cookie < readpage->slots && readpage->busy >> cookie & 1);
	*region = readpage->page[cookie].region;
	*page = readpage->page[cookie].page;
	return readpage->landing.bytes + cookie * readpage->slot_bytes;
}

void readpage_free(struct readpage *readpage, uint64_t cookie)
{
	assert(readpage->busy >> cookie & 1);
	readpage->busy &= ~(UINT64_C(1) << cookie);
}
