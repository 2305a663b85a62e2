/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/digester.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bits.h"
#include "engine/trace.h"

#define READ_BYTES   (UINT64_C(2) << 20)
#define BUFFER_BYTES KIB(4) /* for one question at a time */

static void digester_lose(struct digester_channel *at, const char *text)
{
	session_lose(&at->digester->shared->session, "protocol", "%s: %s",
		     channel_name(at->channel), text);
	at->dead = true;
	channel_shutdown(at->channel);
}

/* Whether every byte of the run is zero, reading only where the file has data. */
static int all_zero(struct digester *digester, const struct guest_region *region, uint64_t first,
		    uint64_t count)
{
	uint64_t at = region->fd_offset + first * region->page_bytes;
	uint64_t end = at + count * region->page_bytes;

	while (at < end) {
		if (!region->hugetlb) {
			off_t data = lseek(region->fd, (off_t)at, SEEK_DATA);
			if (data < 0 && errno == ENXIO)
				return 1;
			if (data < 0)
				return -errno;
			at = (uint64_t)data;
			if (at >= end)
				return 1;
		}
		uint64_t step = end - at < READ_BYTES ? end - at : READ_BYTES;
		ssize_t got = pread(region->fd, digester->page, step, (off_t)at);
		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		for (ssize_t i = 0; i < got; i++)
			if (digester->page[i])
				return 0;
		at += (uint64_t)got;
	}
	return 1;
}

static int digest_pages(struct digester_channel *at, const struct guest_region *region,
			const struct frame *frame)
{
	for (uint32_t i = 0; i < frame->page_count; i++) {
		int result = guestmem_read(region, frame->first_page + i, 1, at->digester->page);
		if (result < 0)
			return result;
		at->digests[i] = XXH3_64bits(at->digester->page, region->page_bytes);
	}
	return 0;
}

/* One thread answers all channels: no question may keep it for long. */
static bool is_short(const struct source_shared *shared, const struct frame *question)
{
	if (question->flags & FRAME_FLAG_ALL_ZERO)
		return question->page_count <=
		       FRAME_DIGEST_ZERO_BYTES /
			       shared->memory.regions[question->region].page_bytes;
	return question->page_count <= FRAME_DIGEST_PAGES;
}

static void answer(struct digester_channel *at, const struct frame *question)
{
	struct source_shared *shared = at->digester->shared;
	struct frame frame = *question;
	uint8_t head[FRAME_BYTES];

	if (question->type != FRAME_DIGEST || question->payload_bytes ||
	    !source_frame_ok(shared, question) || !is_short(shared, question)) {
		digester_lose(at, "the target asks for digests that cannot be");
		return;
	}
	const struct guest_region *region = &shared->memory.regions[question->region];
	int result;
	if (question->flags & FRAME_FLAG_ALL_ZERO) {
		result = all_zero(at->digester, region, question->first_page, question->page_count);
		frame.flags = result == 1 ? FRAME_FLAG_ALL_ZERO : 0;
	} else {
		result = digest_pages(at, region, question);
		frame.payload_bytes = question->page_count * (uint32_t)sizeof(uint64_t);
	}
	if (result < 0) {
		digester_lose(at, strerror(-result));
		return;
	}
	trace_run(at->digester->lane, question->region, question->first_page, question->page_count,
		  TRACE_RUN_DIGESTED);
	frame_encode(&frame, head);
	at->sending =
		channel_send(at->channel, head, sizeof(head),
			     frame.payload_bytes ? at->digests : NULL, frame.payload_bytes, 1) == 0;
}

static size_t digester_received(void *user, const uint8_t *data, size_t bytes)
{
	struct digester_channel *at = user;
	size_t used = 0;

	while (!at->dead && bytes - used >= FRAME_BYTES) {
		struct frame frame;
		if (!at->attached) {
			const char *why;
			int taken = preamble_take_echo(data + used, bytes - used, &why);
			if (taken < 0) {
				digester_lose(at, why);
				return bytes;
			}
			if (taken == 0)
				break;
			at->attached = true;
			used += (size_t)taken;
			continue;
		}
		/* The target asks when it has the answer before, and may be heard sooner than its
		 * device's word that the answer has come. */
		if (at->sending) {
			channel_pause(at->channel, true);
			break;
		}
		enum frame_fault fault = frame_decode(&frame, data + used);
		if (fault != FRAME_OK) {
			digester_lose(at, frame_fault_text(fault));
			return bytes;
		}
		used += FRAME_BYTES;
		answer(at, &frame);
	}
	return used;
}

static void digester_sent(void *user, uint64_t cookie)
{
	struct digester_channel *at = user;

	if (!cookie)
		return;
	at->sending = false;
	channel_pause(at->channel, false);
}

static void digester_closed(void *user, int error)
{
	struct digester_channel *at = user;

	at->dead = true;
	session_lose_channel(&at->digester->shared->session, SESSION_NOW, at->channel, error,
			     "a digest channel");
}

static const struct channel_events digester_events = {
	.received = digester_received, .sent = digester_sent, .closed = digester_closed};

static void digester_end(void *user)
{
	struct digester *digester = user;

	for (unsigned i = 0; i < digester->count; i++)
		channel_drop(digester->channels[i].channel);
	free(digester->channels);
	free(digester->page);
	digester->channels = NULL;
	digester->page = NULL;
	digester->count = 0;
}

static int digester_begin(void *user, struct ring *ring)
{
	struct digester *digester = user;
	int result = 0;

	for (unsigned i = 0; result == 0 && i < digester->count; i++) {
		struct digester_channel *at = &digester->channels[i];
		result = channel_bind(at->channel, ring, &digester_events, at, BUFFER_BYTES);
		if (result == 0)
			result = preamble_send(at->channel, &digester->shared->session,
					       ATTACH_VERIFY, i);
	}
	if (result < 0)
		digester_end(digester);
	return result;
}

static int64_t digester_pump(void *user)
{
	(void)user; /* everything is done as it arrives */
	return -1;
}

static const struct worker_ops digester_ops = {
	.begin = digester_begin, .pump = digester_pump, .end = digester_end};

static uint64_t page_bytes(const struct guestmem *memory)
{
	uint64_t largest = guestmem_largest_page(memory);
	return largest > READ_BYTES ? largest : READ_BYTES;
}

uint64_t digester_bytes(const struct guestmem *memory, unsigned channels)
{
	return page_bytes(memory) + channels * (sizeof(struct digester_channel) + BUFFER_BYTES);
}

int digester_start(struct digester *digester, struct source_shared *shared,
		   struct channel **channels, unsigned count)
{
	memset(digester, 0, sizeof(*digester));
	digester->shared = shared;
	digester->page_bytes = page_bytes(&shared->memory);
	digester->channels = calloc(count, sizeof(*digester->channels));
	digester->page = malloc(digester->page_bytes);
	if (!digester->channels || !digester->page) {
		digester_end(digester);
		return -ENOMEM;
	}
	digester->count = count;
	for (unsigned i = 0; i < count; i++) {
		digester->channels[i].digester = digester;
		digester->channels[i].channel = channels[i];
		channels[i] = NULL;
	}
	digester->lane = trace_lane(shared->trace, "jaunt-digest");
	int result = worker_start(&digester->worker, "jaunt-digest", WORKER_NORMAL, &digester_ops,
				  digester);
	if (result < 0) /* perhaps begin() never ran */
		digester_end(digester);
	return result;
}

void digester_stop(struct digester *digester)
{
	worker_stop(&digester->worker);
}
