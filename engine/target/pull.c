/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: the half of a stream thread that READs
 *
 * Where the source has exposed its memory, a GRANT only asks it for a description: it answers with
 * the ZERO runs of the range and its end. Those are installed as they come, so when the last grant
 * of a block has ended, what is still absent in it is data (or on its way to a fault thread). That
 * is READ in runs, several at once, into a landing small enough to stay in the cache, and installed
 * from there like what a stream brings: claimed only when the bytes are there, so that a fault
 * never waits for bulk. When no READ of the block is left it goes back to the prefetcher, which
 * offers again whatever is absent then.
 *
 * A block with a page that did not match its digest is asked for by message, all of it: whatever
 * was wrong, the other way may do.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bits.h"
#include "engine/target/fill.h"
#include "engine/trace.h"

#define RUN_BYTES KIB(128)

void pull_open(struct fill *fill)
{
	struct target_shared *shared = fill->shared;
	struct pull *pull = &fill->pull;
	uint64_t largest = guestmem_largest_page(&shared->memory);
	struct jaunt_error error = {0};

	*pull = (struct pull){.at = UINT64_MAX};
	if (!shared->reads.memory || !channel_can_read(fill->channel))
		return;
	pull->slot_bytes = largest > RUN_BYTES ? largest : RUN_BYTES;
	uint64_t slots = budget_landing_bytes(shared->streams) / pull->slot_bytes;
	pull->slots = slots < 1 ? 1 : slots > PULL_READS_MAX ? PULL_READS_MAX : (unsigned)slots;
	if (channel_landing(&pull->landing, fill->channel, pull->slots * pull->slot_bytes, &error) <
	    0) {
		trace_event(fill->lane, "reads", "%s", error.text);
		return;
	}
	counter_add(&fill->memory_bytes, pull->landing.size);
}

void pull_close(struct fill *fill)
{
	counter_set(&fill->memory_bytes,
		    counter_get(&fill->memory_bytes) - fill->pull.landing.size);
	landing_free(&fill->pull.landing);
}

bool pull_grant(struct fill *fill, struct fill_block *block, uint64_t first, uint64_t *count)
{
	struct reads_place place;

	if (!fill->pull.landing.private)
		return false;
	for (unsigned i = 0; fill->shared->session.verify && i < FILL_BLOCK_WORDS; i++)
		if (block->suspects[i])
			return false;
	if (!reads_find(&fill->shared->reads, block->block.region, first, *count, &place))
		return false;
	*count = place.count;
	block->described = true;
	return true;
}

void pull_add(struct fill *fill, unsigned block)
{
	struct pull *pull = &fill->pull;

	assert(pull->count < FILL_BLOCKS_MAX);
	pull->order[(pull->head + pull->count++) % FILL_BLOCKS_MAX] = block;
	pull_pump(fill);
}

static uint64_t free_slots(const struct pull *pull)
{
	uint64_t all = pull->slots >= 64 ? UINT64_MAX : (UINT64_C(1) << pull->slots) - 1;
	return all & ~pull->busy;
}

/* The next run of a block to READ from `at` on; false: none. */
static bool next_run(const struct fill *fill, const struct fill_block *block, uint64_t at,
		     uint64_t *first, struct reads_place *place)
{
	struct target_shared *shared = fill->shared;
	uint64_t end = block->block.first + block->block.count;
	uint64_t most =
		fill->pull.slot_bytes / shared->memory.regions[block->block.region].page_bytes;
	uint64_t count;

	while (pagemap_find_absent(&shared->map, block->block.region, at, end, first, &count)) {
		/* Runs end where those that one ioctl covers do. */
		uint64_t fit = most - *first % most;
		if (reads_find(&shared->reads, block->block.region, *first,
			       count < fit ? count : fit, place))
			return true;
		at = *first + 1; /* granted the other way */
	}
	return false;
}

/* false: no room for more right now. */
static bool start_read(struct fill *fill, unsigned index, uint64_t first,
		       const struct reads_place *place)
{
	struct pull *pull = &fill->pull;
	struct fill_block *block = fill->blocks[index];
	uint64_t page_bytes = fill->shared->memory.regions[block->block.region].page_bytes;
	unsigned slot = (unsigned)__builtin_ctzll(free_slots(pull));

	int result = channel_read(fill->channel, &pull->landing, slot * pull->slot_bytes,
				  place->address, place->key, place->count * page_bytes, slot);
	if (result < 0) {
		if (result != -EAGAIN && result != -EPIPE)
			session_lose_of(&fill->shared->session, fill->attachment, "link-lost",
					"READ pages: %s", strerror(-result));
		return false;
	}
	pull->busy |= UINT64_C(1) << slot;
	pull->slot[slot].first = first;
	pull->slot[slot].count = place->count;
	pull->slot[slot].block = index;
	block->reading++;
	return true;
}

void pull_pump(struct fill *fill)
{
	struct pull *pull = &fill->pull;

	while (pull->count && !fill->dead) {
		unsigned index = pull->order[pull->head];
		struct fill_block *block = fill->blocks[index];
		struct reads_place place;
		uint64_t first;
		if (pull->at == UINT64_MAX)
			pull->at = block->block.first;
		if (next_run(fill, block, pull->at, &first, &place)) {
			if (!free_slots(pull) || !channel_read_room(fill->channel) ||
			    !start_read(fill, index, first, &place))
				return;
			pull->at = first + place.count;
			continue;
		}
		pull->at = UINT64_MAX;
		pull->head = (pull->head + 1) % FILL_BLOCKS_MAX;
		pull->count--;
		block->described = false; /* all of its READs have been started */
		if (!block->reading)
			fill_return_block(fill, block);
	}
}

static void take_run(struct fill *fill, const struct fill_block *block, uint64_t first,
		     uint64_t count, const uint8_t *bytes)
{
	const struct guest_region *region = &fill->shared->memory.regions[block->block.region];

	counter_add(&fill->counters.read, count);
	counter_add(&fill->counters.read_bytes, count * region->page_bytes);
	while (count) {
		unsigned unit = region->hugetlb
					? 1
					: INSTALL_RUN_PAGES - (unsigned)(first % INSTALL_RUN_PAGES);
		if (unit > count)
			unit = (unsigned)count;
		fill_take_pages(fill, block, block->block.region, first, unit, bytes);
		bytes += unit * region->page_bytes;
		first += unit;
		count -= unit;
	}
}

void pull_done(void *user, uint64_t cookie, int error)
{
	struct fill *fill = user;
	struct pull *pull = &fill->pull;

	assert(cookie < pull->slots && pull->busy >> cookie & 1);
	struct fill_block *block = fill->blocks[pull->slot[cookie].block];
	if (!error)
		take_run(fill, block, pull->slot[cookie].first, pull->slot[cookie].count,
			 pull->landing.bytes + cookie * pull->slot_bytes);
	pull->busy &= ~(UINT64_C(1) << cookie);
	if (--block->reading == 0 && !block->described && !fill->dead)
		fill_return_block(fill, block);
	if (!error)
		pull_pump(fill);
}
