/* SPDX-License-Identifier: Apache-2.0 */
/* What the source tells of its memory that may be READ. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/target/target.h"

int target_open_reads(struct target *target)
{
	if (!target->linked || !channel_can_read(target->link.channel))
		return 0;
	return reads_open(&target->shared.reads, &target->shared.memory);
}

bool target_take_exposed(struct target *target, const Jaunt__Control *message)
{
	if (message->message_case != JAUNT__CONTROL__MESSAGE_EXPOSED ||
	    !target->shared.reads.memory)
		return false;
	const Jaunt__Exposed *exposed = message->exposed;
	size_t *regions = calloc(exposed->n_chunks + 1, sizeof(*regions));
	struct reads_chunk *chunks = calloc(exposed->n_chunks + 1, sizeof(*chunks));
	int result = 0;

	for (size_t i = 0; regions && chunks && i < exposed->n_chunks; i++) {
		const Jaunt__Chunk *chunk = exposed->chunks[i];
		regions[i] = chunk->region;
		chunks[i] = (struct reads_chunk){.first = chunk->first_page,
						 .count = chunk->page_count,
						 .address = chunk->address,
						 .key = chunk->key};
	}
	/* Without memory to note it, it is fetched by message. */
	if (regions && chunks)
		result = reads_tell(&target->shared.reads, regions, chunks, exposed->n_chunks);
	free(regions);
	free(chunks);
	if (result == -EPROTO)
		session_lose(&target->shared.session, "protocol",
			     "the source exposes memory that the VM does not have");
	return true;
}

int target_forget_exposed(struct target *target, const Jaunt__Freeze *freeze,
			  struct jaunt_error *error)
{
	for (size_t i = 0; i < freeze->n_unexposed; i++) {
		const Jaunt__Run *run = freeze->unexposed[i];
		if (reads_forget(&target->shared.reads, run->region, run->first_page,
				 run->page_count) < 0)
			return error_set(error, EPROTO, "protocol",
					 "the source takes back memory that it never exposed");
	}
	return 0;
}
