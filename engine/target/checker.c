/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/checker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/bits.h"
#include "transport/ring.h"

static bool is_answer(const struct checker *checker, const struct frame *frame)
{
	const struct frame *asked = &checker->asked;

	if (frame->type != FRAME_DIGEST || !asked->page_count || frame->region != asked->region ||
	    frame->first_page != asked->first_page || frame->page_count != asked->page_count ||
	    frame->epoch != asked->epoch)
		return false;
	/* Digests of all pages, or one word about all of them; of zeros only the latter was asked.
	 */
	if (asked->flags & FRAME_FLAG_ALL_ZERO)
		return !frame->payload_bytes;
	return frame->flags & FRAME_FLAG_ALL_ZERO ||
	       frame->payload_bytes == asked->page_count * sizeof(uint64_t);
}

static size_t checker_received(void *user, const uint8_t *data, size_t bytes)
{
	struct checker *checker = user;
	size_t used = 0;

	while (bytes - used >= FRAME_BYTES && !checker->dead) {
		struct frame frame;
		enum frame_fault fault = frame_decode(&frame, data + used);
		if (fault != FRAME_OK || !is_answer(checker, &frame)) {
			session_lose_of(
				&checker->shared->session, checker->attachment, "protocol",
				"the peer's answer on the digest channel makes no sense (%s)",
				fault ? frame_fault_text(fault) : "it answers another question");
			checker->dead = true;
			channel_shutdown(checker->channel);
			return bytes;
		}
		if (bytes - used < FRAME_BYTES + frame.payload_bytes)
			break;
		memcpy(checker->digests, data + used + FRAME_BYTES, frame.payload_bytes);
		checker->all_zero = frame.flags & FRAME_FLAG_ALL_ZERO;
		checker->answered = true;
		checker->asked.page_count = 0;
		used += FRAME_BYTES + frame.payload_bytes;
	}
	return used;
}

static void checker_closed(void *user, int error)
{
	struct checker *checker = user;

	checker->dead = true;
	session_lose_channel(&checker->shared->session, checker->attachment, checker->channel,
			     error, "the digest channel");
}

static const struct channel_events checker_events = {.received = checker_received,
						     .closed = checker_closed};

static uint64_t digest_of_zeros(uint64_t bytes)
{
	void *zeros = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (zeros == MAP_FAILED)
		return 0;
	uint64_t digest = XXH3_64bits(zeros, bytes);
	munmap(zeros, bytes);
	return digest;
}

int checker_open(struct checker *checker, struct target_shared *shared, struct channel *channel,
		 unsigned index, uint32_t attachment, const _Atomic bool *interrupt)
{
	memset(checker, 0, sizeof(*checker));
	checker->shared = shared;
	checker->attachment = attachment;
	checker->interrupt = interrupt;
	checker->channel = channel;
	checker->digests = calloc(FRAME_DIGEST_PAGES, sizeof(uint64_t));
	checker->zero_digest[0] = digest_of_zeros(4096);
	for (size_t i = 0; i < shared->memory.region_count; i++)
		if (shared->memory.regions[i].hugetlb)
			checker->zero_digest[1] =
				digest_of_zeros(shared->memory.regions[i].page_bytes);
	int result = checker->digests ? ring_create(&checker->ring, 16) : -ENOMEM;
	if (result == 0)
		result = channel_bind(channel, checker->ring, &checker_events, checker,
				      CHECKER_BUFFER_BYTES);
	if (result == 0)
		result = preamble_send(channel, &shared->session, ATTACH_VERIFY, index);
	if (result == 0)
		result = ring_submit(checker->ring);
	if (result < 0)
		checker_close(checker);
	return result;
}

void checker_close(struct checker *checker)
{
	channel_drop(checker->channel);
	if (checker->ring)
		ring_destroy(checker->ring);
	free(checker->digests);
	memset(checker, 0, sizeof(*checker));
}

static int ask(struct checker *checker, size_t region, uint64_t first, uint64_t count,
	       uint16_t flags)
{
	struct frame frame = {.type = FRAME_DIGEST,
			      .flags = flags,
			      .region = (uint16_t)region,
			      .epoch = atomic_load(&checker->shared->session.epoch),
			      .page_count = (uint32_t)count,
			      .first_page = first};
	uint8_t head[FRAME_BYTES];

	frame_encode(&frame, head);
	checker->answered = false;
	checker->asked = frame;
	if (checker->dead)
		return -EPIPE;
	int result = channel_send(checker->channel, head, sizeof(head), NULL, 0, 0);
	if (result < 0)
		return result;
	while (!checker->answered && !checker->dead &&
	       !atomic_load(&checker->shared->install.stop) &&
	       !(checker->interrupt && atomic_load(checker->interrupt))) {
		result = ring_wait(checker->ring, 100000000);
		if (result < 0)
			return result;
	}
	return checker->answered ? 0 : -EPIPE;
}

/* --- Suspects -----------------------------------------------------------------------------------
 *
 * Copies of one page may be under way on several channels at once, all made of the same bytes, and
 * all wrong for one reason. They say no more than the first of them does. So a mismatch only
 * counts as the second if the copy was asked for when the page was a suspect already: whoever asks
 * remembers that (demand: that it asked again after a mismatch; fill: the suspects among a block
 * when its grants were made, and grants are answered in order).
 */

static uint64_t suspects_bytes(const struct target_shared *shared, size_t region)
{
	return shared->map.regions[region].words * sizeof(uint64_t);
}

static _Atomic uint64_t *suspects_of(struct target_shared *shared, size_t region)
{
	return atomic_load_explicit(&shared->suspects[region], memory_order_acquire);
}

static _Atomic uint64_t *map_suspects(struct target_shared *shared, size_t region)
{
	pthread_mutex_lock(&shared->suspects_mutex);
	if (!suspects_of(shared, region)) {
		uint64_t bytes = suspects_bytes(shared, region);
		void *bits = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (bits != MAP_FAILED) {
			atomic_store_explicit(&shared->suspects[region], bits,
					      memory_order_release);
			atomic_fetch_add(&shared->suspects_bytes, bytes);
		}
	}
	pthread_mutex_unlock(&shared->suspects_mutex);
	return suspects_of(shared, region);
}

bool checker_suspect(struct target_shared *shared, size_t region, uint64_t page, bool asked_again)
{
	uint64_t bit = UINT64_C(1) << (page % 64);
	_Atomic uint64_t *suspects = suspects_of(shared, region);

	if (!suspects && !(suspects = map_suspects(shared, region))) {
		session_lose(&shared->session, "memory",
			     "no memory to note pages that do not match their digests");
		return true;
	}
	if (!(atomic_fetch_or(&suspects[page / 64], bit) & bit) || !asked_again)
		return true;
	if (pagemap_claim(&shared->map, region, page / 64, bit)) {
		/* Claimed for good: nobody asks for it again, nobody fills it, nobody reads it. */
		atomic_fetch_add(&shared->condemned, 1);
		session_wake(&shared->session);
	}
	return false;
}

uint64_t checker_suspects(struct target_shared *shared, size_t region, uint64_t word)
{
	_Atomic uint64_t *suspects = suspects_of(shared, region);

	return suspects && word < shared->map.regions[region].words ? atomic_load(&suspects[word])
								    : 0;
}

/* Pages that match are nobody's suspects any more. */
static void acquit(struct target_shared *shared, size_t region, uint64_t first, uint64_t count)
{
	_Atomic uint64_t *suspects = suspects_of(shared, region);

	while (suspects && count) {
		unsigned from = (unsigned)(first % 64);
		uint64_t step = 64 - from < count ? 64 - from : count;
		uint64_t mask = bits_mask(from, (unsigned)step);
		/* Reads first: a GiB of untouched bits stays untouched. */
		if (atomic_load(&suspects[first / 64]) & mask)
			atomic_fetch_and(&suspects[first / 64], ~mask);
		first += step;
		count -= step;
	}
}

void checker_forget_suspects(struct target_shared *shared)
{
	for (size_t i = 0; i < shared->map.region_count; i++) {
		_Atomic uint64_t *suspects = suspects_of(shared, i);
		if (suspects)
			munmap((void *)suspects, suspects_bytes(shared, i));
		atomic_store(&shared->suspects[i], NULL);
	}
	atomic_store(&shared->suspects_bytes, 0);
}

/* --- Comparing ----------------------------------------------------------------------------------
 */

int checker_pages(struct checker *checker, size_t region, uint64_t first, unsigned count,
		  const uint8_t *bytes, uint64_t *wrong, struct page_counters *counters)
{
	const struct guest_region *at = &checker->shared->memory.regions[region];
	int result = ask(checker, region, first, count, 0);

	if (result < 0)
		return result;
	*wrong = 0;
	for (unsigned i = 0; i < count; i++) {
		uint64_t here = XXH3_64bits(bytes + i * at->page_bytes, at->page_bytes);
		uint64_t there =
			checker->all_zero ? checker->zero_digest[at->hugetlb] : checker->digests[i];
		if (here != there)
			*wrong |= UINT64_C(1) << i;
	}
	uint64_t right = bits_mask(0, count) & ~*wrong;
	for (struct bits_run run = bits_take_run(&right); run.count; run = bits_take_run(&right))
		acquit(checker->shared, region, first + run.first, run.count);
	counter_add(&counters->verified, count);
	counter_add(&counters->mismatched, (uint64_t)__builtin_popcountll(*wrong));
	return 0;
}

int checker_zeros(struct checker *checker, size_t region, uint64_t first, uint64_t count,
		  struct page_counters *counters)
{
	int result = ask(checker, region, first, count, FRAME_FLAG_ALL_ZERO);

	if (result < 0)
		return result;
	if (checker->all_zero)
		acquit(checker->shared, region, first, count);
	if (checker->all_zero || count == 1)
		counter_add(&counters->verified, count);
	if (!checker->all_zero && count == 1)
		counter_add(&counters->mismatched, 1);
	return checker->all_zero;
}
