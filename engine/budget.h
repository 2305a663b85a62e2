/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the memory of one side is shared out among its streams: however many there are, what they
 * hold together stays the same, so that a side stays within 32 MiB and 0.02 % of the guest's
 * memory. Both sides compute the same figures from the number of streams in CONFIGURE.
 *
 * With huge pages a buffer holds a whole one, whatever its share: then a stream costs at each side
 * up to one page and a little more, and 2 MiB pages stay within the bound up to 8 streams.
 */
#ifndef ENGINE_BUDGET_H
#define ENGINE_BUDGET_H

#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"

#define BUDGET_BLOCKS       128u /* asked for and not answered, of all streams; but see the least */
#define BUDGET_BLOCKS_LEAST 2u   /* of each stream */
#define BUDGET_BLOCK_GRANTS 256u /* absent runs in one block: every other page of 512 */

static inline uint64_t budget_share(uint64_t all, unsigned streams)
{
	return all / (streams ? streams : 1);
}

/* Blocks that the target may have out on one stream. */
static inline unsigned budget_blocks(unsigned streams)
{
	unsigned blocks = (unsigned)budget_share(BUDGET_BLOCKS, streams);
	return blocks > BUDGET_BLOCKS_LEAST ? blocks : BUDGET_BLOCKS_LEAST;
}

/* Grants that the source must be able to hold for one stream. */
static inline unsigned budget_grants(unsigned streams)
{
	return budget_blocks(streams) * BUDGET_BLOCK_GRANTS;
}

/* What one stream of the target receives into; at least 128 KiB, the run that is installed at once,
 * and room for frames. */
static inline size_t budget_receive_bytes(unsigned streams)
{
	uint64_t share = budget_share(MIB(12), streams) / KIB(64) * KIB(64);
	return share > KIB(512) ? KIB(512) : share < KIB(192) ? KIB(192) : share;
}

/* What the READs of one stream land in: a run of 128 KiB at least, and enough of them under way to
 * keep a link busy. */
static inline size_t budget_landing_bytes(unsigned streams)
{
	uint64_t share = budget_share(MIB(8), streams) / KIB(128) * KIB(128);
	return share > MIB(1) ? MIB(1) : share < KIB(128) ? KIB(128) : share;
}

/* What one stream of the source may hold in copies of pages. */
static inline uint64_t budget_copy_bytes(unsigned streams)
{
	uint64_t share = budget_share(MIB(8), streams);
	return share > MIB(2) ? MIB(2) : share;
}

#endif
