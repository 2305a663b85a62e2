/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A lone fault costs the thread three system calls: read() of the event (a short read says that
 * there are no more), io_uring_enter (sends FETCH, waits for the answer), COPY. Behind the latency
 * come another read(), since whoever was woken may have faulted again, and the idle wait for the
 * next event.
 *
 * The thread never waits for one page: it enters the fault in the request table and goes on. When
 * the table or the channel's queue is full, it stops reading events; the kernel keeps them.
 *
 * What to do about a fault follows from the page's state alone (pagemap.h). On a filling page there
 * is nothing to do: the filler's WAKE comes after `present`, so after our look. On a present page
 * the guest itself is the cause, and the answer is local: see install_present().
 */
#include "engine/target/demand.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "base/clock.h"
#include "engine/target/place.h"
#include "engine/trace.h"
#include "fault/events.h"

static void give_hint(struct demand *demand, size_t region, uint64_t page)
{
	struct hints *hints = &demand->shared->hints[demand->shard];
	uint32_t head = atomic_load_explicit(&hints->head, memory_order_relaxed);

	atomic_store_explicit(&hints->at[head % HINTS], (uint64_t)region << 48 | page,
			      memory_order_relaxed);
	atomic_store_explicit(&hints->head, head + 1, memory_order_release);
}

static void send_fetch(struct demand *demand, struct request *request)
{
	size_t region = request->region;
	uint64_t page = request->page;
	struct frame frame = {.type = FRAME_FETCH,
			      .region = (uint16_t)region,
			      .epoch = atomic_load(&demand->shared->session.epoch),
			      .page_count = 1,
			      .first_page = page};
	uint8_t head[FRAME_BYTES];

	if (demand->dead || !demand->channel)
		return; /* the request stays: whoever reconnects asks again */
	/* What did not match its digest is asked for the other way. */
	int result = request->retries ? -ENOENT
				      : readpage_start(&demand->readpage, &demand->shared->reads,
						       region, page);
	if (result == -ENOENT) {
		frame_encode(&frame, head);
		result = channel_send(demand->channel, head, sizeof(head), NULL, 0, 0);
	}
	if (result == -EAGAIN && !request->unsent) {
		request->unsent = true;
		demand->unsent++;
	} else if (result == 0 && request->unsent) {
		request->unsent = false;
		demand->unsent--;
	}
	if (result < 0 && result != -EPIPE && result != -EAGAIN)
		session_lose_of(&demand->shared->session, demand->attachment, "link-lost",
				"ask for a page: %s", strerror(-result));
}

static void handle_absent(struct demand *demand, size_t region, uint64_t page, uint64_t now)
{
	struct request *request;

	if (demand->shared->session.verify) {
		place_check(demand->shared, &demand->checker, region, page, 1, &demand->counters);
		if (pagemap_state(&demand->shared->map, region, page) == PAGE_PRESENT)
			return; /* whoever made it present wakes */
	}
	if (requests_enter(&demand->requests, (uint16_t)region, page, now, &request) !=
	    REQUEST_NEW) {
		trace_fault(demand->lane, (unsigned)region, page, now, now, TRACE_JOINED);
		return;
	}
	send_fetch(demand, request);
	give_hint(demand, region, page);
}

static void handle_fault(struct demand *demand, const struct fault_event *event, uint64_t now)
{
	struct target_shared *shared = demand->shared;
	size_t region;
	uint64_t page;

	if (!guestmem_locate(&shared->memory, event->address, &region, &page)) {
		session_lose(&shared->session, "fault",
			     "a page fault at an address outside of guest memory");
		return;
	}
	switch (pagemap_state(&shared->map, region, page)) {
	case PAGE_ABSENT:
		handle_absent(demand, region, page, now);
		break;
	case PAGE_FILLING:
		trace_fault(demand->lane, (unsigned)region, page, now, now, TRACE_FILLING);
		break;
	case PAGE_PRESENT:
		if (install_present(&shared->install, region, page, event->minor,
				    &demand->counters) < 0)
			session_wake(&shared->session);
		trace_fault(demand->lane, (unsigned)region, page, now, now,
			    event->minor ? TRACE_MAPPED : TRACE_DISCARDED);
		break;
	}
}

static void read_faults(struct demand *demand)
{
	struct fault_event events[EVENTS_BATCH];

	/* Before FREEZE the page that the source has is not the one that the guest will have had:
	 * faults stay parked. Whoever begins the epoch wakes this thread. */
	if (!atomic_load(&demand->shared->session.epoch))
		return;
	while (demand->readable) {
		unsigned room = requests_room(&demand->requests);
		if (!demand->dead && demand->channel && channel_room(demand->channel) < room)
			room = (unsigned)channel_room(demand->channel);
		if (room > EVENTS_BATCH)
			room = EVENTS_BATCH;
		if (room == 0)
			return; /* an answer or a send that completes makes room */
		unsigned other = 0;
		int count = events_read(&demand->shared->install.uffds[demand->shard], events,
					(int)room, &other);
		if (count < 0 && count != -EAGAIN) {
			session_lose(&demand->shared->session, "userfaultfd",
				     "read page faults: %s", strerror(-count));
			demand->readable = false;
			return;
		}
		uint64_t now = count > 0 ? clock_ns() : 0;
		for (int i = 0; i < count; i++)
			handle_fault(demand, &events[i], now);
		if (count < (int)room && other == 0)
			demand->readable = false;
	}
}

static void forget(struct demand *demand, struct request *request)
{
	demand->unsent -= request->unsent;
	requests_remove(&demand->requests, request);
}

static void finish(struct demand *demand, struct request *request, uint64_t installed)
{
	struct target_shared *shared = demand->shared;
	uint64_t now = clock_ns();

	if (installed) {
		histogram_record(&demand->latency, now - request->read_ns);
		if (shared->demanded[request->region])
			atomic_fetch_or_explicit(
				&shared->demanded[request->region][request->page / 64],
				UINT64_C(1) << (request->page % 64), memory_order_relaxed);
	}
	trace_fault(demand->lane, request->region, request->page, request->read_ns, now,
		    TRACE_FETCHED);
	trace_run(demand->lane, request->region, request->page, 1,
		  installed ? TRACE_RUN_DEMANDED : TRACE_RUN_DUPLICATE);
	forget(demand, request);
}

/* Whether the bytes of a page may be installed. If not, it was asked for again, or is lost. */
static bool check_page(struct demand *demand, struct request *request, const uint8_t *bytes)
{
	struct target_shared *shared = demand->shared;
	uint64_t wrong = 0;

	if (!shared->session.verify)
		return true;
	int result;
	if (bytes) {
		result = checker_pages(&demand->checker, request->region, request->page, 1, bytes,
				       &wrong, &demand->counters);
	} else {
		result = checker_zeros(&demand->checker, request->region, request->page, 1,
				       &demand->counters);
		wrong = result == 0;
	}
	if (result < 0)
		return false; /* the session is lost; the request stays for whoever reconnects */
	if (!wrong)
		return true;
	if (checker_suspect(shared, request->region, request->page, request->retries)) {
		request->retries = 1;
		send_fetch(demand, request);
	} else {
		forget(demand, request);
	}
	return false;
}

static void take_page(struct demand *demand, size_t region, uint64_t page, const uint8_t *bytes,
		      bool hole)
{
	struct target_shared *shared = demand->shared;
	struct request *request = requests_find(&demand->requests, (uint16_t)region, page);
	uint64_t installed = 0;
	int result;

	if (!request) { /* not asked for, or answered twice */
		counter_add(&demand->counters.duplicate, 1);
		return;
	}
	if (!check_page(demand, request, bytes))
		return;
	if (bytes) {
		result = install_own_page(&shared->install, region, page, bytes, &installed,
					  &demand->counters);
		counter_add(&demand->counters.demanded, installed);
	} else {
		result = install_zeros(&shared->install, region, page, 1, true, &installed,
				       &demand->counters);
		counter_add(hole ? &demand->counters.hole : &demand->counters.zero, installed);
	}
	finish(demand, request, installed);
	/* Whoever has the page now may already want the next one: looked for before sleeping. */
	demand->readable = true;
	if (result < 0)
		session_wake(&shared->session);
}

static void take_frame(struct demand *demand, const struct frame *frame, const uint8_t *payload)
{
	struct target_shared *shared = demand->shared;
	uint64_t page_bytes = shared->memory.regions[frame->region].page_bytes;

	if (!session_in_epoch(&shared->session, frame->epoch))
		return;
	counter_add(&demand->counters.payload_bytes, frame->payload_bytes);
	for (uint32_t i = 0; i < frame->page_count; i++)
		take_page(demand, frame->region, frame->first_page + i,
			  frame->type == FRAME_DATA ? payload + i * page_bytes : NULL,
			  frame->flags & FRAME_FLAG_HOLE);
}

static size_t refuse(struct demand *demand, size_t bytes, const char *text)
{
	session_lose_of(&demand->shared->session, demand->attachment, "protocol", "%s: %s",
			channel_name(demand->channel), text);
	demand->dead = true;
	channel_shutdown(demand->channel);
	return bytes;
}

static size_t demand_received(void *user, const uint8_t *data, size_t bytes)
{
	struct demand *demand = user;
	const struct guestmem *memory = &demand->shared->memory;
	size_t used = 0;

	while (bytes - used >= FRAME_BYTES && !demand->dead) {
		struct frame frame;
		enum frame_fault fault = frame_decode(&frame, data + used);
		if (fault != FRAME_OK)
			return refuse(demand, bytes, frame_fault_text(fault));
		if ((frame.type != FRAME_DATA && frame.type != FRAME_ZERO) ||
		    frame.region >= memory->region_count || frame.page_count > REQUESTS_MAX ||
		    !frame_in_region(&frame, memory->regions[frame.region].pages,
				     memory->regions[frame.region].page_bytes))
			return refuse(demand, bytes, "a frame that has no place here");
		size_t whole = FRAME_BYTES + frame.payload_bytes;
		if (bytes - used < whole) {
			channel_want(demand->channel, whole - (bytes - used));
			break;
		}
		take_frame(demand, &frame, data + used + FRAME_BYTES);
		used += whole;
	}
	return used;
}

static void demand_closed(void *user, int error)
{
	struct demand *demand = user;

	demand->dead = true;
	session_lose_channel(&demand->shared->session, demand->attachment, demand->channel, error,
			     "an urgent channel");
}

static void demand_read_done(void *user, uint64_t cookie, int error)
{
	struct demand *demand = user;
	size_t region;
	uint64_t page;
	const uint8_t *bytes = readpage_take(&demand->readpage, cookie, &region, &page);

	if (!error) { /* else the channel is about to be closed, and the request stays */
		uint64_t page_bytes = demand->shared->memory.regions[region].page_bytes;
		counter_add(&demand->counters.payload_bytes, page_bytes);
		counter_add(&demand->counters.read, 1);
		counter_add(&demand->counters.read_bytes, page_bytes);
		demand->readpage.pages++;
		take_page(demand, region, page, bytes, false);
	}
	readpage_free(&demand->readpage, cookie);
}

static const struct channel_events demand_events = {
	.received = demand_received, .closed = demand_closed, .read_done = demand_read_done};

static void demand_ready(void *user, int mask_or_error)
{
	struct demand *demand = user;

	(void)mask_or_error; /* an error shows when the events are read */
	demand->readable = true;
}

static void tell_reads(struct demand *demand)
{
	struct channel_totals totals;

	if (!demand->lane || !demand->readpage.channel)
		return;
	totals = channel_totals(demand->channel);
	trace_event(demand->lane, "reads",
		    "%" PRIu64 " pages, %" PRIu64 " work requests, %" PRIu64
		    " completions; %" PRIu64 " other requests",
		    demand->readpage.pages, totals.reads, totals.read_completions,
		    totals.other_requests);
}

/* None of their I/O is under way any more when it returns, so nothing of theirs can come. */
static void close_channels(struct demand *demand)
{
	tell_reads(demand);
	if (demand->checker.shared)
		checker_close(&demand->checker);
	channel_drop(demand->check_channel); /* what there is to say the control link says */
	channel_drop(demand->channel);
	demand->channel = demand->check_channel = NULL;
	readpage_close(&demand->readpage);
	counter_set(&demand->memory_bytes, 0);
}

static int open_channels(struct demand *demand)
{
	struct target_shared *shared = demand->shared;
	size_t room = target_buffer_bytes(shared, DEMAND_BUFFER_BYTES);
	int result = 0;

	if (demand->check_channel) {
		result = checker_open(&demand->checker, shared, demand->check_channel,
				      demand->shard, demand->attachment, &demand->handover.pending);
		demand->check_channel = NULL;
	}
	if (result == 0 && demand->channel)
		result = channel_bind(demand->channel, demand->ring, &demand_events, demand, room);
	if (result == 0 && demand->channel)
		result = preamble_send(demand->channel, &shared->session, ATTACH_URGENT,
				       demand->shard);
	if (result == 0 && shared->reads.memory &&
	    readpage_open(&demand->readpage, demand->channel,
			  guestmem_largest_page(&shared->memory)) < 0)
		trace_event(demand->lane, "reads", "no landing: pages are fetched by message");
	counter_set(&demand->memory_bytes, demand->readpage.landing.size);
	return result;
}

static void demand_end(void *user)
{
	struct demand *demand = user;

	ring_watch_remove(&demand->watch);
	close_channels(demand);
}

static int demand_begin(void *user, struct ring *ring)
{
	struct demand *demand = user;

	demand->ring = ring;
	demand->watch = (struct ring_watch){.ready = demand_ready,
					    .user = demand,
					    .fd = demand->shared->install.uffds[demand->shard].fd};
	int result = open_channels(demand);
	if (result == 0)
		result = ring_watch_add(ring, &demand->watch);
	demand->readable = true; /* faults may have come before the watch */
	if (result < 0)
		demand_end(demand);
	return result;
}

/* Every request that is in the table was asked for on channels that are gone. */
static void ask_again(struct demand *demand)
{
	demand->unsent = 0;
	for (unsigned i = 0; i < REQUESTS_MAX * 2; i++) {
		struct request *request = &demand->requests.slots[i];
		request->unsent = request->used;
		demand->unsent += request->used;
	}
}

static void take_handover(struct demand *demand)
{
	struct channel *channel, *check_channel;
	uint32_t attachment;

	if (!handover_take(&demand->handover, &channel, &check_channel, &attachment))
		return;
	close_channels(demand);
	demand->channel = channel;
	demand->check_channel = check_channel;
	demand->attachment = attachment;
	demand->dead = false;
	demand->readable = true;
	int result = open_channels(demand);
	if (result < 0) {
		close_channels(demand);
		demand->dead = true;
		session_lose_of(&demand->shared->session, attachment, "start",
				"serve a channel: %s", strerror(-result));
	}
	ask_again(demand);
}

/* Asks for what found no room before. */
static void send_unsent(struct demand *demand)
{
	for (unsigned i = 0; i < REQUESTS_MAX * 2 && demand->unsent; i++) {
		struct request *request = &demand->requests.slots[i];
		if (!demand->channel || !channel_room(demand->channel) ||
		    (demand->readpage.channel && !readpage_room(&demand->readpage)))
			return;
		if (request->used && request->unsent)
			send_fetch(demand, request);
	}
}

static int64_t demand_pump(void *user)
{
	struct demand *demand = user;

	take_handover(demand);
	if (demand->unsent)
		send_unsent(demand);
	read_faults(demand);
	return -1;
}

static const struct worker_ops demand_ops = {
	.begin = demand_begin, .pump = demand_pump, .end = demand_end};

int demand_start(struct demand *demand, struct target_shared *shared, unsigned shard,
		 struct channel *channel, struct channel *check_channel)
{
	char name[16];

	memset(demand, 0, sizeof(*demand));
	demand->shared = shared;
	demand->shard = shard;
	demand->channel = channel;
	demand->check_channel = check_channel;
	demand->attachment = atomic_load(&shared->session.attachment);
	handover_init(&demand->handover);
	snprintf(name, sizeof(name), "jaunt-fault-%u", shard);
	demand->lane = trace_lane(shared->trace, name);
	int result = worker_start(&demand->worker, name, WORKER_URGENT, &demand_ops, demand);
	if (result < 0) { /* begin() may not even have been reached */
		channel_drop(demand->channel);
		channel_drop(demand->check_channel);
		demand->channel = demand->check_channel = NULL;
	}
	return result;
}

void demand_reattach(struct demand *demand, struct channel *channel, struct channel *check_channel,
		     uint32_t attachment)
{
	handover_give(&demand->handover, channel, check_channel, attachment);
	worker_wake(&demand->worker);
}

void demand_stop(struct demand *demand)
{
	worker_stop(&demand->worker);
	handover_forget(&demand->handover);
}
