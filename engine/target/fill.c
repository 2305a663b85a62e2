/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation: what a stream receives, and how much it asks for
 *
 * Pages are installed from the channel's receive buffer as soon as a run that one ioctl covers is
 * there, so that the copy into the guest finds the bytes in the cache.
 *
 * How much is kept outstanding is for window.c to say, in bytes of absent pages, not in blocks:
 * behind rounds a block may have one stale page, and a few such blocks a round trip would take
 * minutes. At first, when nothing is known, a link of 1 Gbit/s is assumed and the round trip is
 * that of the control link: a window that grew from nothing would need many round trips.
 */
#include "engine/target/fill.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/clock.h"
#include "engine/trace.h"
#include "transport/ring.h"

/* Asking again after there was nothing to ask for: only blocks that lost pages come back. */
#define IDLE_NS      50000000
#define RATE_ASSUMED 125000000u /* bytes a second, of all streams */

static size_t refuse(struct fill *fill, size_t bytes, const char *text)
{
	session_lose_of(&fill->shared->session, fill->attachment, "protocol", "%s: %s",
			channel_name(fill->channel), text);
	fill->dead = true;
	channel_shutdown(fill->channel);
	return bytes;
}

/* --- Receiving ----------------------------------------------------------------------------------
 */

static void install_run(struct fill *fill, size_t region, uint64_t first, uint64_t count,
			const uint8_t *bytes)
{
	uint64_t installed = 0;

	if (!count)
		return;
	if (install_pages(&fill->shared->install, region, first, count, bytes, &installed,
			  &fill->counters) < 0)
		session_wake(&fill->shared->session);
	counter_add(&fill->counters.pushed, installed);
	trace_run(fill->lane, (unsigned)region, first, count, TRACE_RUN_PUSHED);
}

/* Whether the copy of a page that has come was asked for, with that block, when the page was a
 * suspect already. */
static bool asked_again(const struct fill_block *block, size_t region, uint64_t page)
{
	if (!block || region != block->block.region || page < block->block.first ||
	    page - block->block.first >= block->block.count)
		return false;
	return block->suspects[page / 64 - block->block.first / 64] >> (page % 64) & 1;
}

/* The block whose grants are being answered. */
static const struct fill_block *answered_block(const struct fill *fill)
{
	return fill->order_count ? fill->blocks[fill->order[fill->order_head]] : NULL;
}

static bool in_round(struct fill *fill, const struct frame *frame)
{
	return !frame->epoch && place_begin(&fill->place);
}

static void note_placed(struct fill *fill, int result)
{
	if (result < 0 && result != -ECANCELED)
		session_lose(&fill->shared->session, "install", "place a page: %s",
			     strerror(-result));
}

static void take_round_pages(struct fill *fill, uint64_t first, unsigned count,
			     const uint8_t *bytes)
{
	struct target_shared *shared = fill->shared;
	size_t region = fill->frame.region;

	counter_add(&fill->counters.payload_bytes,
		    count * shared->memory.regions[region].page_bytes);
	note_placed(fill, place_pages(shared, region, first, count, bytes));
}

void fill_take_pages(struct fill *fill, const struct fill_block *block, size_t region,
		     uint64_t first, unsigned count, const uint8_t *bytes)
{
	struct target_shared *shared = fill->shared;
	uint64_t page_bytes = shared->memory.regions[region].page_bytes;
	uint64_t wrong = 0;

	counter_add(&fill->counters.payload_bytes, count * page_bytes);
	window_answered(&fill->window, clock_ns(), count * page_bytes, 0);
	if (shared->session.verify &&
	    checker_pages(&fill->checker, region, first, count, bytes, &wrong, &fill->counters) < 0)
		return;
	uint64_t right = bits_mask(0, count) & ~wrong;
	for (struct bits_run run = bits_take_run(&right); run.count; run = bits_take_run(&right))
		install_run(fill, region, first + run.first, run.count,
			    bytes + run.first * page_bytes);
	for (; wrong; wrong &= wrong - 1) {
		uint64_t page = first + (unsigned)__builtin_ctzll(wrong);
		checker_suspect(shared, region, page, asked_again(block, region, page));
	}
}

static void place_zeros(struct fill *fill, uint64_t first, uint64_t count)
{
	struct target_shared *shared = fill->shared;
	uint64_t installed = 0;

	if (install_zeros(&shared->install, fill->frame.region, first, count, false, &installed,
			  &fill->counters) < 0)
		session_wake(&shared->session);
	counter_add(fill->frame.flags & FRAME_FLAG_HOLE ? &fill->counters.hole
							: &fill->counters.zero,
		    installed);
}

/* Places those zeros of the run that the digests confirm. A run that is not all zero is asked about
 * in halves, until the pages are found that are something else: those are suspects like any other
 * page with a wrong digest. */
static void check_zeros(struct fill *fill, uint64_t first, uint64_t count)
{
	int zero = checker_zeros(&fill->checker, fill->frame.region, first, count, &fill->counters);

	if (zero == 1) {
		place_zeros(fill, first, count);
	} else if (zero == 0 && count > 1) {
		check_zeros(fill, first, count / 2);
		check_zeros(fill, first + count / 2, count - count / 2);
	} else if (zero == 0) {
		/* What nobody asked for (a hole told) was not asked for again. */
		checker_suspect(
			fill->shared, fill->frame.region, first,
			!(fill->frame.flags & FRAME_FLAG_HOLE) &&
				asked_again(answered_block(fill), fill->frame.region, first));
	}
}

static void take_round_zeros(struct fill *fill, const struct frame *frame)
{
	struct target_shared *shared = fill->shared;

	if (frame->flags & FRAME_FLAG_HOLE)
		place_holes(shared, frame->region, frame->first_page, frame->page_count);
	else
		note_placed(fill, place_zero_run(shared, frame->region, frame->first_page,
						 frame->page_count));
}

static void take_zeros(struct fill *fill, const struct frame *frame)
{
	uint64_t first = frame->first_page, left = frame->page_count;
	uint64_t answered = left * fill->shared->memory.regions[frame->region].page_bytes;
	if (!session_in_epoch(&fill->shared->session, frame->epoch)) {
		if (in_round(fill, frame))
			take_round_zeros(fill, frame);
		return;
	}
	uint64_t most =
		FRAME_DIGEST_ZERO_BYTES / fill->shared->memory.regions[frame->region].page_bytes;
	while (fill->shared->session.verify && left) {
		uint64_t step = left < most ? left : most;
		check_zeros(fill, first, step);
		first += step;
		left -= step;
	}
	if (left)
		place_zeros(fill, first, left);
	if (!(frame->flags & FRAME_FLAG_HOLE)) /* nobody asked for holes */
		window_answered(&fill->window, clock_ns(), 0, answered);
}

static bool end_grant(struct fill *fill, const struct frame *frame)
{
	if (fill->order_count == 0)
		return false;
	struct fill_block *block = fill->blocks[fill->order[fill->order_head]];
	if (block->block.region != frame->region ||
	    block->range[block->next_end].first != frame->first_page ||
	    block->range[block->next_end].count != frame->page_count)
		return false;
	if (block->described)
		window_answered(&fill->window, clock_ns(), 0, 0);
	if (++block->next_end < block->runs)
		return true;
	if (block->described)
		pull_add(fill, fill->order[fill->order_head]);
	else
		fill_return_block(fill, block);
	fill->order_head = (fill->order_head + 1) % FILL_BLOCKS_MAX;
	fill->order_count--;
	return true;
}

/* With digests the holes of a round are not taken, so what is absent may be a hole: it is told
 * again in the epoch. */
static void take_told(struct fill *fill, const struct frame *frame)
{
	struct target_shared *shared = fill->shared;
	bool counts = session_in_epoch(&shared->session, frame->epoch) ||
		      (in_round(fill, frame) && !shared->copied[frame->region]);

	if (counts && frame->first_page > atomic_load(&shared->told[frame->region]))
		atomic_store(&shared->told[frame->region], frame->first_page);
}

static const char *take_frame(struct fill *fill, const struct frame *frame)
{
	struct target_shared *shared = fill->shared;

	if (frame->type == FRAME_ROUND)
		return place_round(&fill->place, fill->channel, frame);
	if (frame->region >= shared->memory.region_count)
		return "a frame for a memory region that the VM does not have";
	const struct guest_region *region = &shared->memory.regions[frame->region];
	if (frame->type == FRAME_TOLD) {
		if (frame->first_page > region->pages)
			return "holes told beyond the end of a memory region";
		take_told(fill, frame);
		return NULL;
	}
	if (!frame_in_region(frame, region->pages, region->page_bytes))
		return "a frame for pages beyond the end of a memory region";
	switch (frame->type) {
	case FRAME_DATA:
		fill->left = frame->page_count;
		return NULL;
	case FRAME_ZERO:
		take_zeros(fill, frame);
		return NULL;
	case FRAME_GRANT_END:
		return end_grant(fill, frame) ? NULL : "the end of a grant that was never made";
	default:
		return "a frame that has no place here";
	}
}

static size_t fill_received(void *user, const uint8_t *data, size_t bytes)
{
	struct fill *fill = user;
	size_t used = 0;

	while (!fill->dead) {
		if (fill->left) {
			const struct guest_region *region =
				&fill->shared->memory.regions[fill->frame.region];
			uint64_t first =
				fill->frame.first_page + fill->frame.page_count - fill->left;
			/* As many as one ioctl covers, up to a boundary of such runs. */
			unsigned unit =
				region->hugetlb
					? 1
					: INSTALL_RUN_PAGES - (unsigned)(first % INSTALL_RUN_PAGES);
			if (unit > fill->left)
				unit = fill->left;
			if (bytes - used < unit * region->page_bytes) {
				channel_want(fill->channel,
					     fill->left * region->page_bytes - (bytes - used));
				break;
			}
			if (session_in_epoch(&fill->shared->session, fill->frame.epoch))
				fill_take_pages(fill, answered_block(fill), fill->frame.region,
						first, unit, data + used);
			else if (in_round(fill, &fill->frame))
				take_round_pages(fill, first, unit, data + used);
			used += unit * region->page_bytes;
			fill->left -= unit;
			continue;
		}
		if (bytes - used < FRAME_BYTES)
			break;
		enum frame_fault fault = frame_decode(&fill->frame, data + used);
		if (fault != FRAME_OK)
			return refuse(fill, bytes, frame_fault_text(fault));
		const char *wrong = take_frame(fill, &fill->frame);
		if (wrong)
			return refuse(fill, bytes, wrong);
		used += FRAME_BYTES;
	}
	return used;
}

static void fill_closed(void *user, int error)
{
	struct fill *fill = user;

	fill->dead = true;
	session_lose_channel(&fill->shared->session, fill->attachment, fill->channel, error,
			     "a stream");
}

static const struct channel_events fill_events = {.received = fill_received,
						  .sent = fill_sent,
						  .closed = fill_closed,
						  .read_done = pull_done};

/* --- The thread ---------------------------------------------------------------------------------
 */

/* None of their I/O is under way any more when it returns, so nothing of theirs can come. */
static void close_channels(struct fill *fill)
{
	if (fill->checker.shared)
		checker_close(&fill->checker);
	channel_drop(fill->check_channel); /* what there is to say the control link says */
	channel_drop(fill->channel);
	fill->channel = fill->check_channel = NULL;
	pull_close(fill);
}

static int open_channels(struct fill *fill)
{
	struct target_shared *shared = fill->shared;
	size_t room = target_buffer_bytes(shared, budget_receive_bytes(shared->streams));
	int result = 0;

	if (fill->check_channel) {
		result = checker_open(&fill->checker, shared, fill->check_channel,
				      shared->hint_count + fill->index, fill->attachment,
				      &fill->handover.pending);
		fill->check_channel = NULL;
	}
	if (result == 0)
		result = channel_bind(fill->channel, fill->ring, &fill_events, fill, room);
	if (result == 0)
		result = preamble_send(fill->channel, &shared->session, ATTACH_STREAM, fill->index);
	if (result == 0) /* before a wait for digests, which serves another ring */
		result = ring_submit(fill->ring);
	if (result == 0)
		pull_open(fill);
	return result;
}

static void fill_end(void *user)
{
	struct fill *fill = user;

	close_channels(fill);
	for (unsigned i = 0; i < FILL_BLOCKS_MAX; i++) {
		free(fill->blocks[i]);
		fill->blocks[i] = NULL;
	}
}

static int fill_begin(void *user, struct ring *ring)
{
	struct fill *fill = user;

	fill->ring = ring;
	counter_add(&fill->memory_bytes,
		    target_buffer_bytes(fill->shared, budget_receive_bytes(fill->shared->streams)));
	int result = open_channels(fill);
	if (result < 0)
		fill_end(fill);
	return result;
}

static void take_handover(struct fill *fill)
{
	struct channel *channel, *check_channel;
	uint32_t attachment;

	if (!handover_take(&fill->handover, &channel, &check_channel, &attachment))
		return;
	close_channels(fill);
	fill_return_blocks(fill);
	fill->channel = channel;
	fill->check_channel = check_channel;
	fill->attachment = attachment;
	fill->dead = false;
	fill->granting = false; /* perhaps another way, of another length */
	int result = open_channels(fill);
	if (result < 0) {
		close_channels(fill);
		fill->dead = true;
		session_lose_of(&fill->shared->session, attachment, "start", "serve a stream: %s",
				strerror(-result));
	}
}

/* A block of one huge page may be more than the whole window. With digests, what rounds brought of
 * a block is checked before it is asked for, which takes round trips: never while grants of those
 * before wait to be sent. */
static bool may_ask(const struct fill *fill)
{
	if (fill->shared->session.verify && fill->sending)
		return false;
	return (fill->out_count < FILL_BLOCKS_MIN ||
		fill->out_bytes < fill->window.blocks * PREFETCH_BLOCK_BYTES) &&
	       channel_room(fill->channel);
}

static int64_t fill_pump(void *user)
{
	struct fill *fill = user;
	struct target_shared *shared = fill->shared;

	take_handover(fill);
	/* Without digests nothing that came could be installed, and would be asked for for ever. */
	if (fill->dead || (shared->session.verify && fill->checker.dead) ||
	    !atomic_load(&shared->granting) ||
	    !(atomic_load(&shared->push) || atomic_load(&shared->complete_first)))
		return -1;
	if (!fill->granting)
		window_open(&fill->window, budget_blocks(shared->streams),
			    budget_share(RATE_ASSUMED, shared->streams),
			    atomic_load(&shared->round_trip_ns));
	fill->granting = true;
	pull_pump(fill);
	while (may_ask(fill) && fill_ask_for_block(fill))
		if (shared->session.verify) /* it took a while: what has come since? */
			return 0;
	return fill->order_count || fill->pull.count || !pagemap_missing(&shared->map) ? -1
										       : IDLE_NS;
}

static const struct worker_ops fill_ops = {.begin = fill_begin, .pump = fill_pump, .end = fill_end};

int fill_start(struct fill *fill, struct target_shared *shared, unsigned index,
	       struct channel *channel, struct channel *check_channel)
{
	char name[16];

	memset(fill, 0, sizeof(*fill));
	fill->shared = shared;
	fill->index = index;
	fill->place.shared = shared;
	fill->channel = channel;
	fill->check_channel = check_channel;
	fill->attachment = atomic_load(&shared->session.attachment);
	handover_init(&fill->handover);
	window_open(&fill->window, budget_blocks(shared->streams), 0, 0);
	snprintf(name, sizeof(name), "jaunt-fill-%u", index);
	fill->lane = trace_lane(shared->trace, name);
	int result = worker_start(&fill->worker, name, WORKER_BULK, &fill_ops, fill);
	if (result < 0) /* perhaps begin() never ran */
		fill_end(fill);
	return result;
}

void fill_reattach(struct fill *fill, struct channel *channel, struct channel *check_channel,
		   uint32_t attachment)
{
	handover_give(&fill->handover, channel, check_channel, attachment);
	worker_wake(&fill->worker);
}

void fill_stop(struct fill *fill)
{
	worker_stop(&fill->worker);
	handover_forget(&fill->handover);
}
