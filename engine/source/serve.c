/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Requests are queued as they come and answered in order, each with DATA or ZERO. A page is read
 * with pread() into a small hot buffer: that neither allocates holes (a touch through a mapping
 * would) nor believes page tables (mincore says "absent" of a page that was swapped out), takes no
 * lock that the hole search holds, and leaves the bytes in the cache for the zero check and the
 * send.
 */
#include "engine/source/serve.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "engine/inject.h"
#include "engine/source/tamper.h"
#include "engine/source/zero.h"
#include "engine/trace.h"

static size_t refuse(struct serve *serve, size_t bytes, const char *text)
{
	session_lose(&serve->shared->session, "protocol", "%s: %s", channel_name(serve->channel),
		     text);
	serve->dead = true;
	channel_shutdown(serve->channel);
	return bytes;
}

static const char *take_fetch(struct serve *serve, const struct frame *frame)
{
	if (frame->type != FRAME_FETCH || !source_frame_ok(serve->shared, frame))
		return "the target asks for pages that the VM does not have";
	if (serve->pending_count == SERVE_PENDING)
		return "the target asks for more pages at once than the protocol allows";
	if (!session_in_epoch(&serve->shared->session, frame->epoch))
		return NULL;
	unsigned at = (serve->pending_head + serve->pending_count++) % SERVE_PENDING;
	serve->pending[at].region = frame->region;
	serve->pending[at].first = frame->first_page;
	serve->pending[at].count = frame->page_count;
	counter_add(&serve->fetches, 1);
	return NULL;
}

static size_t serve_received(void *user, const uint8_t *data, size_t bytes)
{
	struct serve *serve = user;
	size_t used = 0;

	while (!serve->dead && bytes - used >= FRAME_BYTES) {
		struct frame frame;
		if (!serve->attached) {
			const char *why;
			int taken = preamble_take_echo(data + used, bytes - used, &why);
			if (taken < 0)
				return refuse(serve, bytes, why);
			if (taken == 0)
				break;
			serve->attached = true;
			used += (size_t)taken;
			continue;
		}
		enum frame_fault fault = frame_decode(&frame, data + used);
		if (fault != FRAME_OK)
			return refuse(serve, bytes, frame_fault_text(fault));
		const char *wrong = take_fetch(serve, &frame);
		if (wrong)
			return refuse(serve, bytes, wrong);
		used += FRAME_BYTES;
	}
	return used;
}

static void serve_sent(void *user, uint64_t cookie)
{
	struct serve *serve = user;

	if (cookie)
		serve->busy &= ~(UINT64_C(1) << (cookie - 1));
}

static void serve_closed(void *user, int error)
{
	struct serve *serve = user;

	serve->dead = true;
	serve->busy = 0;
	session_lose_channel(&serve->shared->session, SESSION_NOW, serve->channel, error,
			     "an urgent channel");
}

static const struct channel_events serve_events = {
	.received = serve_received, .sent = serve_sent, .closed = serve_closed};

/* false: no room to send right now. */
static bool answer_page(struct serve *serve, uint16_t region_index, uint64_t page)
{
	const struct guest_region *region = &serve->shared->memory.regions[region_index];
	uint64_t free_slots = ~serve->busy & bits_mask(0, serve->slot_count);
	struct frame frame = {.type = FRAME_DATA,
			      .region = region_index,
			      .epoch = atomic_load(&serve->shared->session.epoch),
			      .page_count = 1,
			      .first_page = page,
			      .payload_bytes = (uint32_t)region->page_bytes};
	uint8_t head[FRAME_BYTES];

	if (!free_slots || channel_room(serve->channel) < 2)
		return false;
	unsigned slot = (unsigned)__builtin_ctzll(free_slots);
	uint8_t *bytes = serve->slots + slot * serve->slot_bytes;
	int result = guestmem_read(region, page, 1, bytes);
	if (result < 0) {
		session_lose(&serve->shared->session, "memory", "read guest memory: %s",
			     strerror(-result));
		serve->dead = true;
		return false;
	}
	enum tamper tamper = tamper_active() ? tamper_page(region, page, bytes) : TAMPER_NONE;
	if (zero_check(bytes, region->page_bytes)) {
		frame.type = FRAME_ZERO;
		frame.payload_bytes = 0;
	}
	inject_delay(INJECT_REPLY_DELAY);
	if (inject_fires(INJECT_CHANNEL_CUT))
		channel_shutdown(serve->channel);
	if (inject_fires(INJECT_CHANNEL_DROP))
		return true;
	frame_encode(&frame, head);
	if (frame.type == FRAME_ZERO) {
		channel_send(serve->channel, head, sizeof(head), NULL, 0, 0);
		return true;
	}
	if (tamper == TAMPER_TWICE)
		channel_send(serve->channel, head, sizeof(head), bytes, region->page_bytes, 0);
	if (channel_send(serve->channel, head, sizeof(head), bytes, region->page_bytes, slot + 1) ==
	    0) {
		serve->busy |= UINT64_C(1) << slot;
		counter_add(&serve->payload_bytes, region->page_bytes);
	}
	return true;
}

static void count_wire(struct serve *serve)
{
	struct channel_totals totals = channel_totals(serve->channel);
	counter_set(&serve->wire_bytes, totals.sent_bytes + totals.received_bytes);
}

static int64_t serve_pump(void *user)
{
	struct serve *serve = user;

	count_wire(serve);
	while (serve->pending_count && !serve->dead) {
		unsigned at = serve->pending_head;
		if (!answer_page(serve, serve->pending[at].region, serve->pending[at].first))
			break;
		trace_run(serve->lane, serve->pending[at].region, serve->pending[at].first, 1,
			  TRACE_RUN_FETCHED);
		serve->pending[at].first++;
		if (--serve->pending[at].count)
			continue;
		serve->pending_head = (at + 1) % SERVE_PENDING;
		serve->pending_count--;
	}
	return -1;
}

static void serve_end(void *user)
{
	struct serve *serve = user;

	channel_drop(serve->channel); /* what there is to say the control link says */
	serve->channel = NULL;
	if (serve->slots)
		munmap(serve->slots, serve->slot_bytes * serve->slot_count);
	serve->slots = NULL;
}

static int serve_begin(void *user, struct ring *ring)
{
	struct serve *serve = user;

	serve->slot_bytes = guestmem_largest_page(&serve->shared->memory);
	serve->slot_count = serve->slot_bytes > 4096 ? 3 : SERVE_SLOTS;
	serve->slots = mmap(NULL, serve->slot_bytes * serve->slot_count, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int result = serve->slots == MAP_FAILED ? -ENOMEM : 0;
	if (result < 0)
		serve->slots = NULL;
	if (result == 0)
		result = channel_bind(serve->channel, ring, &serve_events, serve,
				      SERVE_BUFFER_BYTES);
	if (result == 0)
		result = preamble_send(serve->channel, &serve->shared->session, ATTACH_URGENT,
				       serve->index);
	if (result < 0)
		serve_end(serve);
	return result;
}

static const struct worker_ops serve_ops = {
	.begin = serve_begin, .pump = serve_pump, .end = serve_end};

int serve_start(struct serve *serve, struct source_shared *shared, unsigned index,
		struct channel *channel)
{
	char name[16];

	memset(serve, 0, sizeof(*serve));
	serve->shared = shared;
	serve->index = index;
	serve->channel = channel;
	snprintf(name, sizeof(name), "jaunt-serve-%u", index);
	serve->lane = trace_lane(shared->trace, name);
	int result = worker_start(&serve->worker, name, WORKER_URGENT, &serve_ops, serve);
	if (result < 0) /* perhaps begin() never ran */
		serve_end(serve);
	return result;
}

void serve_stop(struct serve *serve)
{
	worker_stop(&serve->worker);
}
