/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: the blocks that a stream has out
 *
 * The prefetcher gives out blocks of 2 MiB. Of each, the absent runs are asked for with one GRANT a
 * run, all in one message; the source answers each with DATA and ZERO frames and a GRANT END, in
 * order. Whatever is still absent then is simply absent: the prefetcher will offer it again.
 * Nothing is remembered of what was sent; the page map decides.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/target/fill.h"
#include "engine/trace.h"

#define COOKIE(i) ((uint64_t)(i) + 1)

static void drain_hints(struct target_shared *shared)
{
	for (unsigned i = 0; i < shared->hint_count; i++) {
		struct hints *hints = &shared->hints[i];
		uint32_t head = atomic_load_explicit(&hints->head, memory_order_acquire);
		if (head - hints->read > HINTS)
			hints->read = head - HINTS;
		for (; hints->read != head; hints->read++) {
			uint64_t at = atomic_load_explicit(&hints->at[hints->read % HINTS],
							   memory_order_relaxed);
			size_t region = at >> 48;
			uint64_t page = at & ((UINT64_C(1) << 48) - 1);
			prefetch_fault(&shared->prefetch, region, page);
		}
	}
}

static struct fill_block *free_block(struct fill *fill, unsigned *index)
{
	for (unsigned i = 0; i < fill->window.most; i++) {
		if (fill->blocks[i] && (fill->blocks[i]->used || fill->blocks[i]->sending))
			continue;
		if (!fill->blocks[i] && (fill->blocks[i] = calloc(1, sizeof(struct fill_block))))
			counter_add(&fill->memory_bytes, sizeof(struct fill_block));
		*index = i;
		return fill->blocks[i];
	}
	return NULL;
}

/* Lists the absent runs of a block and encodes a GRANT for each. */
static void list_runs(struct fill *fill, struct fill_block *block)
{
	struct target_shared *shared = fill->shared;
	uint64_t at = block->block.first, end = at + block->block.count;
	uint64_t first, count;

	block->runs = 0;
	block->bytes = 0;
	block->described = false;
	/* Before the grants: what becomes a suspect from here on may be on its way already. */
	if (shared->session.verify)
		place_check(shared, &fill->checker, block->block.region, at, end - at,
			    &fill->counters);
	for (unsigned i = 0; shared->session.verify && i < FILL_BLOCK_WORDS; i++)
		block->suspects[i] = checker_suspects(shared, block->block.region, at / 64 + i);
	while (block->runs < FILL_BLOCK_RUNS &&
	       pagemap_find_absent(&shared->map, block->block.region, at, end, &first, &count)) {
		struct frame frame = {.type = FRAME_GRANT,
				      .region = (uint16_t)block->block.region,
				      .epoch = atomic_load(&shared->session.epoch),
				      .page_count = (uint32_t)count,
				      .first_page = first};
		if (pull_grant(fill, block, first, &count)) {
			frame.flags = FRAME_FLAG_DESCRIBE;
			frame.page_count = (uint32_t)count;
		}
		if (first + count <= atomic_load(&shared->told[block->block.region]))
			frame.flags |= FRAME_FLAG_TOLD;
		frame_encode(&frame, block->grants + block->runs * FRAME_BYTES);
		block->range[block->runs].first = first;
		block->range[block->runs].count = count;
		block->runs++;
		block->bytes += count * shared->memory.regions[block->block.region].page_bytes;
		at = first + count;
	}
}

void fill_return_block(struct fill *fill, struct fill_block *block)
{
	pthread_mutex_lock(&fill->shared->prefetch_mutex);
	prefetch_return(&fill->shared->prefetch, &block->block);
	pthread_mutex_unlock(&fill->shared->prefetch_mutex);
	block->used = false;
	fill->out_count--;
	fill->out_bytes -= block->bytes;
	block->bytes = 0;
}

bool fill_ask_for_block(struct fill *fill)
{
	struct target_shared *shared = fill->shared;
	unsigned index;
	struct fill_block *block = free_block(fill, &index);

	if (!block)
		return false;
	pthread_mutex_lock(&shared->prefetch_mutex);
	drain_hints(shared);
	bool found = prefetch_next(&shared->prefetch, &block->block);
	pthread_mutex_unlock(&shared->prefetch_mutex);
	if (!found)
		return false;
	bool idle = !fill->out_count; /* not while READs are under way */
	block->used = true;
	fill->out_count++;
	list_runs(fill, block);
	fill->out_bytes += block->bytes;
	if (block->runs == 0) { /* filled in between */
		fill_return_block(fill, block);
		return true;
	}
	if (channel_send(fill->channel, NULL, 0, block->grants, block->runs * FRAME_BYTES,
			 COOKIE(index)) < 0) {
		fill_return_block(fill, block);
		return false;
	}
	block->sending = true;
	fill->sending++;
	block->next_end = 0;
	if (idle)
		window_asked(&fill->window, clock_ns());
	fill->order[(fill->order_head + fill->order_count++) % FILL_BLOCKS_MAX] = index;
	trace_grant(fill->lane, (unsigned)block->block.region, block->block.first,
		    block->block.count, fill->index);
	return true;
}

void fill_sent(void *user, uint64_t cookie)
{
	struct fill *fill = user;

	if (!cookie)
		return;
	fill->blocks[cookie - 1]->sending = false;
	fill->sending--;
}

void fill_return_blocks(struct fill *fill)
{
	for (unsigned i = 0; i < FILL_BLOCKS_MAX; i++) {
		struct fill_block *block = fill->blocks[i];
		if (block && block->used)
			fill_return_block(fill, block);
		if (!block)
			continue;
		block->sending = false;
		block->reading = 0; /* of READs that ended with their channel nobody is told */
	}
	fill->order_head = fill->order_count = fill->sending = 0;
	fill->left = 0;
}
