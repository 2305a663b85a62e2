/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A grant is answered with runs: DATA of up to 256 KiB, or ZERO, then GRANT END. The pages do not
 * change any more, so DATA is sent from guest memory itself. But a page that may be a hole must not
 * be touched through a mapping (even reading would allocate it): where the target does not say that
 * it has been told all holes of the range (then what it asks for is data), or where the guest has
 * given pages back since holes were told, pages are read with pread() into a buffer instead.
 *
 * A grant that only asks for a description (the target READs the rest itself) is answered with the
 * ZERO runs and GRANT END. The source may as well send DATA of it: what the target then finds
 * present it does not READ. So it does where a limit of bandwidth has to be kept, which binds what
 * this side sends, and where faults are injected into what is sent.
 *
 * Bulk must yield: the threads that a guest waits for outrank this one, and only so many frames are
 * ever on their way.
 */
#include "engine/source/pusher.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "engine/budget.h"
#include "engine/inject.h"
#include "engine/source/tamper.h"
#include "engine/source/zero.h"
#include "engine/trace.h"

static size_t refuse(struct pusher *pusher, size_t bytes, const char *text)
{
	session_lose(&pusher->shared->session, "protocol", "%s: %s", channel_name(pusher->channel),
		     text);
	pusher->dead = true;
	channel_shutdown(pusher->channel);
	return bytes;
}

static const char *take_round_ack(struct pusher *pusher, const struct frame *frame)
{
	int last = rounds_acknowledged(pusher->rounds, &pusher->walk, frame->first_page);

	if (last < 0)
		return "the target acknowledges a round that has not ended";
	if (last)
		session_wake(&pusher->shared->session);
	return NULL;
}

static const char *take_grant(struct pusher *pusher, const struct frame *frame)
{
	if (frame->type == FRAME_ROUND_ACK)
		return take_round_ack(pusher, frame);
	if (frame->type != FRAME_GRANT || !source_frame_ok(pusher->shared, frame))
		return "the target asks for pages that the VM does not have";
	if (pusher->grant_count == pusher->grants_max)
		return "the target grants more ranges at once than the protocol allows";
	if (!session_in_epoch(&pusher->shared->session, frame->epoch))
		return NULL;
	unsigned at = (pusher->grant_head + pusher->grant_count) % pusher->grants_max;
	pusher->grants[at].region = frame->region;
	pusher->grants[at].first = frame->first_page;
	pusher->grants[at].count = frame->page_count;
	pusher->grants[at].told = frame->flags & FRAME_FLAG_TOLD;
	pusher->grants[at].describe = frame->flags & FRAME_FLAG_DESCRIBE &&
				      !atomic_load(&pusher->shared->paced) && !tamper_active();
	if (pusher->grant_count++ == 0)
		pusher->at = frame->first_page;
	return NULL;
}

static size_t pusher_received(void *user, const uint8_t *data, size_t bytes)
{
	struct pusher *pusher = user;
	size_t used = 0;

	while (!pusher->dead && bytes - used >= FRAME_BYTES) {
		struct frame frame;
		if (!pusher->attached) {
			const char *why;
			int taken = preamble_take_echo(data + used, bytes - used, &why);
			if (taken < 0)
				return refuse(pusher, bytes, why);
			if (taken == 0)
				break;
			pusher->attached = true;
			used += (size_t)taken;
			continue;
		}
		enum frame_fault fault = frame_decode(&frame, data + used);
		if (fault != FRAME_OK)
			return refuse(pusher, bytes, frame_fault_text(fault));
		const char *wrong = take_grant(pusher, &frame);
		if (wrong)
			return refuse(pusher, bytes, wrong);
		used += FRAME_BYTES;
	}
	return used;
}

static void pusher_sent(void *user, uint64_t cookie)
{
	struct pusher *pusher = user;

	if (cookie)
		pusher->busy &= ~(1u << (cookie - 1));
}

static void pusher_closed(void *user, int error)
{
	struct pusher *pusher = user;

	pusher->dead = true;
	pusher->busy = 0;
	session_lose_channel(&pusher->shared->session, SESSION_NOW, pusher->channel, error,
			     "a stream");
}

static const struct channel_events pusher_events = {
	.received = pusher_received, .sent = pusher_sent, .closed = pusher_closed};

static void send_head(struct pusher *pusher, enum frame_type type, uint16_t flags, size_t region,
		      uint64_t first, uint64_t count)
{
	struct frame frame = {.type = (uint8_t)type,
			      .flags = flags,
			      .region = (uint16_t)region,
			      .epoch = atomic_load(&pusher->shared->session.epoch),
			      .page_count = (uint32_t)count,
			      .first_page = first};
	uint8_t head[FRAME_BYTES];

	frame_encode(&frame, head);
	channel_send(pusher->channel, head, sizeof(head), NULL, 0, 0);
}

static bool in_rounds(const struct pusher *pusher)
{
	return !atomic_load(&pusher->shared->session.epoch) &&
	       atomic_load(&pusher->rounds->begun) != 0;
}

/* Holes, as long as there are some and room for them. None behind the end of the round: what was
 * found and not told when a round was cut is searched for again in the epoch. */
static void tell_holes(struct pusher *pusher)
{
	struct hole_run run;
	bool told = false;

	if (in_rounds(pusher) && pusher->walk.ended)
		return;
	while (pusher->holes && channel_room(pusher->channel) > 8 &&
	       holes_take(pusher->holes, &run)) {
		struct hole_run whole = run;
		told = true;
		while (run.count) { /* a frame counts pages in 32 bits */
			uint64_t step = run.count > UINT32_MAX ? UINT32_MAX : run.count;
			send_head(pusher, FRAME_ZERO, FRAME_FLAG_HOLE, run.region, run.first, step);
			counter_add(&pusher->zero_pages, step);
			trace_run(pusher->lane, (unsigned)run.region, run.first, step,
				  TRACE_RUN_TOLD);
			run.first += step;
			run.count -= step;
		}
		send_head(pusher, FRAME_TOLD, 0, run.region, run.told, 0);
		if (in_rounds(pusher))
			rounds_searched(pusher->rounds, &whole);
	}
	if (!pusher->holes || !in_rounds(pusher))
		return;
	if (holes_over(pusher->holes))
		told |= rounds_search_over(pusher->rounds);
	if (told && pusher->shared->streams > 1)
		pusher->rounds->wake(pusher->rounds->user);
}

static uint8_t *slot_buffer(struct pusher *pusher, unsigned slot)
{
	if (!pusher->slots[slot]) {
		void *buffer = mmap(NULL, pusher->slot_bytes, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (buffer == MAP_FAILED)
			return NULL;
		pusher->slots[slot] = buffer;
		counter_add(&pusher->memory_bytes, pusher->slot_bytes);
	}
	return pusher->slots[slot];
}

/* The bytes of up to `count` pages, directly or as a copy; NULL: the session is lost. */
static const uint8_t *pages_at(struct pusher *pusher, const struct guest_region *region,
			       uint64_t first, uint64_t count, bool direct, unsigned slot)
{
	if (direct)
		return region->near_view + first * region->page_bytes;
	uint8_t *copy = slot_buffer(pusher, slot);
	int result = copy ? guestmem_read(region, first, count, copy) : -ENOMEM;
	if (result < 0) {
		session_lose(&pusher->shared->session, "memory", "read guest memory: %s",
			     strerror(-result));
		pusher->dead = true;
		return NULL;
	}
	if (tamper_active())
		for (uint64_t i = 0; i < count; i++)
			if (tamper_page(region, first + i, copy + i * region->page_bytes) ==
			    TAMPER_TWICE)
				pusher->at = first; /* the whole run goes out again */
	return copy;
}

static void send_zeros(struct pusher *pusher, size_t region, uint64_t first, uint64_t count)
{
	send_head(pusher, FRAME_ZERO, 0, region, first, count);
	counter_add(&pusher->zero_pages, count);
}

/* The bytes stay as they are, or where they are, until the slot is free again. */
static void send_data(struct pusher *pusher, size_t region, uint64_t first, uint64_t count,
		      const uint8_t *bytes, unsigned slot)
{
	uint64_t page_bytes = pusher->shared->memory.regions[region].page_bytes;
	struct frame frame = {.type = FRAME_DATA,
			      .region = (uint16_t)region,
			      .epoch = atomic_load(&pusher->shared->session.epoch),
			      .page_count = (uint32_t)count,
			      .first_page = first,
			      .payload_bytes = (uint32_t)(count * page_bytes)};
	uint8_t head[FRAME_BYTES];

	frame_encode(&frame, head);
	if (channel_send(pusher->channel, head, FRAME_BYTES, bytes, frame.payload_bytes,
			 slot + 1) == 0)
		pusher->busy |= 1u << slot;
	counter_add(&pusher->data_pages, count);
	counter_add(&pusher->payload_bytes, frame.payload_bytes);
}

/* Sends the next run of the first grant; false: no room right now. */
static bool push_run(struct pusher *pusher)
{
	unsigned head = pusher->grant_head;
	const struct guest_region *region =
		&pusher->shared->memory.regions[pusher->grants[head].region];
	uint64_t first = pusher->at;
	uint64_t end = pusher->grants[head].first + pusher->grants[head].count;
	/* A page that is lost would end its run, and be read again, whole, for the next. */
	uint64_t most = region->hugetlb || inject_armed(INJECT_DATA_LOSE) ? 1 : PUSHER_RUN_PAGES;
	uint64_t count = end - first < most ? end - first : most;
	uint32_t free_slots = ~pusher->busy & ((1u << PUSHER_IN_FLIGHT) - 1);
	bool direct = pusher->grants[head].told && !atomic_load(&pusher->shared->discards) &&
		      !tamper_active();

	if (!direct) {
		uint64_t fit = pusher->slot_bytes / region->page_bytes;
		count = count < fit ? count : fit;
		free_slots &= (1u << pusher->copies) - 1;
	}
	if (!free_slots || channel_room(pusher->channel) < 4)
		return false;
	unsigned slot = (unsigned)__builtin_ctz(free_slots);
	pusher->at = UINT64_MAX;
	const uint8_t *bytes = pages_at(pusher, region, first, count, direct, slot);
	if (!bytes)
		return false;
	bool again = pusher->at == first;

	bool zero = zero_check(bytes, region->page_bytes);
	uint64_t run = 1;
	while (run < count &&
	       zero_check(bytes + run * region->page_bytes, region->page_bytes) == zero)
		run++;
	pusher->at = again ? first : first + run;
	if (zero)
		send_zeros(pusher, pusher->grants[head].region, first, run);
	else if (!pusher->grants[head].describe)
		send_data(pusher, pusher->grants[head].region, first, run, bytes, slot);
	if (pusher->at < end)
		return true;
	send_head(pusher, FRAME_GRANT_END, 0, pusher->grants[head].region,
		  pusher->grants[head].first, pusher->grants[head].count);
	trace_run(pusher->lane, pusher->grants[head].region, pusher->grants[head].first,
		  pusher->grants[head].count, TRACE_RUN_GRANTED);
	pusher->grant_head = (head + 1) % pusher->grants_max;
	if (--pusher->grant_count)
		pusher->at = pusher->grants[pusher->grant_head].first;
	return true;
}

/* Sends the next run of a round, or its end; false: nothing to send, or no room right now. */
static bool push_round(struct pusher *pusher)
{
	struct round_walk *walk = &pusher->walk;
	struct source_shared *shared = pusher->shared;
	uint32_t free_slots = ~pusher->busy & ((1u << PUSHER_IN_FLIGHT) - 1);

	if (channel_room(pusher->channel) < 4 || !free_slots)
		return false;
	enum round_step step = rounds_next(pusher->rounds, walk, pusher->index, PUSHER_RUN_PAGES);
	if (step == ROUND_END) {
		send_head(pusher, FRAME_ROUND, 0, 0, walk->round - 1, 0);
		rounds_ended(walk);
	}
	if (step != ROUND_RUN)
		return false;

	const struct guest_region *region = &shared->memory.regions[walk->region];
	/* What the guest gave back may not be touched through a mapping: that would fill it. */
	bool direct = !region->hugetlb && !atomic_load(&shared->discards) && !tamper_active();
	uint64_t fit = direct ? PUSHER_RUN_PAGES : pusher->slot_bytes / region->page_bytes;
	uint64_t count = walk->count < fit ? walk->count : fit;
	if (!direct)
		free_slots &= (1u << pusher->copies) - 1;
	if (!free_slots)
		return false;
	unsigned slot = (unsigned)__builtin_ctz(free_slots);
	const uint8_t *bytes = pages_at(pusher, region, walk->first, count, direct, slot);
	if (!bytes)
		return false;
	bool zero = zero_check(bytes, region->page_bytes);
	uint64_t run = 1;
	while (run < count &&
	       zero_check(bytes + run * region->page_bytes, region->page_bytes) == zero)
		run++;
	if (zero)
		send_zeros(pusher, walk->region, walk->first, run);
	else
		send_data(pusher, walk->region, walk->first, run, bytes, slot);
	rounds_sent(walk, run);
	return true;
}

static void count_wire(struct pusher *pusher)
{
	struct channel_totals totals = channel_totals(pusher->channel);
	counter_set(&pusher->wire_bytes, totals.sent_bytes + totals.received_bytes);
}

static int64_t pusher_pump(void *user)
{
	struct pusher *pusher = user;

	count_wire(pusher);
	if (pusher->dead)
		return -1;
	int64_t pace = atomic_exchange(&pusher->pace, -1);
	if (pace >= 0 && channel_pace(pusher->channel, (uint64_t)pace) < 0)
		trace_event(pusher->lane, "bandwidth", "the limit could not be changed");
	tell_holes(pusher);
	while (in_rounds(pusher) && !pusher->dead)
		if (!push_round(pusher))
			break;
	while (pusher->grant_count && !pusher->dead)
		if (!push_run(pusher))
			break;
	return -1;
}

static void pusher_end(void *user)
{
	struct pusher *pusher = user;

	channel_drop(pusher->channel); /* what there is to say the control link says */
	pusher->channel = NULL;
	for (unsigned i = 0; i < PUSHER_IN_FLIGHT; i++)
		if (pusher->slots[i])
			munmap(pusher->slots[i], pusher->slot_bytes);
	memset(pusher->slots, 0, sizeof(pusher->slots));
	free(pusher->grants);
	pusher->grants = NULL;
}

/* Copies as large as a frame, two at least so that one can be made while another is sent; smaller
 * ones where many streams share. */
static void share_out_copies(struct pusher *pusher)
{
	uint64_t budget = budget_copy_bytes(pusher->shared->streams);
	uint64_t largest = guestmem_largest_page(&pusher->shared->memory);

	pusher->slot_bytes = budget / 2 / 4096 * 4096;
	if (pusher->slot_bytes > PUSHER_RUN_PAGES * 4096)
		pusher->slot_bytes = PUSHER_RUN_PAGES * 4096;
	if (pusher->slot_bytes < largest)
		pusher->slot_bytes = largest;
	pusher->copies = (unsigned)(budget / pusher->slot_bytes);
	if (pusher->copies > PUSHER_IN_FLIGHT)
		pusher->copies = PUSHER_IN_FLIGHT;
	if (pusher->copies < 1)
		pusher->copies = 1; /* huge, and one is enough */
}

static int pusher_begin(void *user, struct ring *ring)
{
	struct pusher *pusher = user;

	share_out_copies(pusher);
	pusher->grants_max = budget_grants(pusher->shared->streams);
	pusher->grants = calloc(pusher->grants_max, sizeof(*pusher->grants));
	counter_set(&pusher->memory_bytes,
		    pusher->grants_max * sizeof(*pusher->grants) + PUSHER_BUFFER_BYTES);
	int result = pusher->grants ? 0 : -ENOMEM;
	if (result == 0)
		result = channel_bind(pusher->channel, ring, &pusher_events, pusher,
				      PUSHER_BUFFER_BYTES);
	if (result == 0)
		result = preamble_send(pusher->channel, &pusher->shared->session, ATTACH_STREAM,
				       pusher->index);
	if (result < 0)
		pusher_end(pusher);
	return result;
}

static const struct worker_ops pusher_ops = {
	.begin = pusher_begin, .pump = pusher_pump, .end = pusher_end};

int pusher_start(struct pusher *pusher, struct source_shared *shared, unsigned index,
		 struct channel *channel, struct holes *holes, struct rounds *rounds)
{
	char name[16];

	memset(pusher, 0, sizeof(*pusher));
	pusher->shared = shared;
	pusher->index = index;
	pusher->channel = channel;
	pusher->holes = holes;
	pusher->rounds = rounds;
	atomic_store(&pusher->pace, -1);
	snprintf(name, sizeof(name), "jaunt-push-%u", index);
	pusher->lane = trace_lane(shared->trace, name);
	int result = worker_start(&pusher->worker, name, WORKER_BULK, &pusher_ops, pusher);
	if (result < 0) /* perhaps begin() never ran */
		pusher_end(pusher);
	return result;
}

void pusher_pace(struct pusher *pusher, uint64_t bytes_per_s)
{
	atomic_store(&pusher->pace, bytes_per_s > INT64_MAX ? INT64_MAX : (int64_t)bytes_per_s);
	worker_wake(&pusher->worker);
}

void pusher_stop(struct pusher *pusher)
{
	worker_stop(&pusher->worker);
}
