/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/record.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/qemu/agent/protocol.h"

static int fill(struct record *record, uint64_t bits)
{
	const struct agent_record header = {AGENT_MAGIC, AGENT_PROTOCOL, bits};
	uint64_t bytes = agent_record_bytes(bits);

	if (ftruncate(record->fd, (off_t)bytes) ||
	    pwrite(record->fd, &header, sizeof(header), 0) != sizeof(header) ||
	    fcntl(record->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		return -errno;
	record->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, record->fd, 0);
	if (record->memory == MAP_FAILED)
		return -errno;
	record->bits = bits;
	record->summary = (void *)(record->memory + agent_summary_offset());
	record->words = (void *)(record->memory + agent_bits_offset(bits));
	return 0;
}

int record_open(struct record *record, uint64_t bits)
{
	if (bits < 1 || bits > AGENT_BITS_MAX)
		return -EINVAL;
	record->fd = memfd_create("jaunt-discards", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (record->fd < 0)
		return -errno;
	int result = fill(record, bits);
	if (result)
		close(record->fd);
	return result;
}

void record_close(struct record *record)
{
	munmap(record->memory, agent_record_bytes(record->bits));
	close(record->fd);
}

/* A run that may grow, over the ends of words. */
struct run {
	uint64_t first, count;
};

static void add(struct run *run, uint64_t first, uint64_t count,
		void (*emit)(void *context, uint64_t first, uint64_t count), void *context)
{
	if (run->count && run->first + run->count == first) {
		run->count += count;
		return;
	}
	if (run->count)
		emit(context, run->first, run->count);
	*run = (struct run){first, count};
}

static uint64_t take(_Atomic uint64_t *word)
{
	/* Most are empty, and looking is cheaper than an exchange. */
	if (!atomic_load_explicit(word, memory_order_relaxed))
		return 0;
	return atomic_exchange_explicit(word, 0, memory_order_acquire);
}

void record_collect(struct record *record,
		    void (*emit)(void *context, uint64_t first, uint64_t count), void *context)
{
	uint64_t words = (record->bits + 63) / 64, per_summary = AGENT_SUMMARY_BITS / 64;
	uint64_t summaries = (agent_summary_bits(record->bits) + 63) / 64;
	struct run run = {0};

	for (uint64_t s = 0; s < summaries; s++)
		for (uint64_t set = take(&record->summary[s]); set; set &= set - 1) {
			uint64_t from = (s * 64 + (uint64_t)__builtin_ctzll(set)) * per_summary;
			uint64_t to = from + per_summary < words ? from + per_summary : words;
			for (uint64_t w = from; w < to; w++)
				for (uint64_t bits = take(&record->words[w]); bits;) {
					unsigned first = (unsigned)__builtin_ctzll(bits);
					uint64_t rest = ~(bits >> first);
					unsigned count =
						rest ? (unsigned)__builtin_ctzll(rest) : 64;
					add(&run, w * 64 + first, count, emit, context);
					bits = first + count >= 64
						       ? 0
						       : bits & (~UINT64_C(0) << (first + count));
				}
		}
	if (run.count)
		emit(context, run.first, run.count);
}
