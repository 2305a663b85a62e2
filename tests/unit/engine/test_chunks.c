/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/chunks.h"

#include <criterion/criterion.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "tests/unit/engine/world.h"

TestSuite(chunks, .timeout = 60);

#define BLOCK (CHUNK_BYTES / PAGE)

static struct world world;

/* --- Cutting ------------------------------------------------------------------------------ */

static unsigned char there[BLOCK];

static bool cut(uint64_t count, struct chunk *chunk)
{
	return chunk_cut(there, count, true, chunk);
}

static void put(uint64_t first, uint64_t count)
{
	memset(there + first, 1, count);
}

Test(chunks, nothing_is_cut_out_of_holes)
{
	struct chunk chunk;
	cr_assert(!cut(BLOCK, &chunk));
	cr_assert(!cut(0, &chunk));
}

Test(chunks, a_chunk_reaches_from_the_first_page_with_data_to_the_last)
{
	struct chunk chunk;

	put(10, 20);
	put(35, 5);
	cr_assert(cut(BLOCK, &chunk));
	cr_assert_eq(chunk.first, 10);
	cr_assert_eq(chunk.count, 30);
	cr_assert_eq(chunk.data, 25);
}

Test(chunks, a_whole_block_is_one_chunk)
{
	struct chunk chunk;

	put(0, BLOCK);
	cr_assert(cut(BLOCK, &chunk));
	cr_assert_eq(chunk.first, 0);
	cr_assert_eq(chunk.count, BLOCK);
	cr_assert_eq(chunk.data, BLOCK);
	cr_assert(cut(7, &chunk), "the short block at a region's end");
	cr_assert_eq(chunk.count, 7);
}

Test(chunks, what_would_allocate_more_than_there_is_is_left_out)
{
	struct chunk chunk;

	put(0, 1);
	put(3, 1);
	cr_assert(cut(BLOCK, &chunk), "as much again");
	cr_assert_eq(chunk.count, 4);
	put(BLOCK - 1, 1);
	cr_assert(!cut(BLOCK, &chunk));
}

Test(chunks, without_holes_a_chunk_ends_at_the_first_one)
{
	struct chunk chunk;

	put(2, 3);
	put(6, 100);
	cr_assert(chunk_cut(there, BLOCK, false, &chunk));
	cr_assert_eq(chunk.first, 2);
	cr_assert_eq(chunk.count, 3);
	cr_assert_eq(chunk.data, 3);
}

/* --- Files -------------------------------------------------------------------------------- */

static const struct guest_region *open_region(uint64_t pages, uint64_t page_bytes, uint64_t offset)
{
	struct world_region region = {pages, page_bytes, offset};
	if (!world_open(&world, &region, 1, 1))
		cr_skip_test("%s", world.lack);
	return &world.shared.memory.regions[0];
}

/* Through the engine's view, as at a source that the VM has not touched much itself. */
static void write_pages(const struct guest_region *region, uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count; page++)
		world_make(region->view + page * region->page_bytes, region->page_bytes, page, 1);
}

static uint64_t blocks_of(const struct guest_region *region)
{
	struct stat status;
	cr_assert_eq(fstat(region->fd, &status), 0);
	return (uint64_t)status.st_blocks;
}

Test(chunks, the_data_of_a_file_is_found_and_no_hole_is_filled)
{
	const struct guest_region *region = open_region(3 * BLOCK + 9, PAGE, 2 * PAGE);
	struct chunk chunk;

	write_pages(region, 5, 10);
	write_pages(region, 17, 4);
	write_pages(region, 3 * BLOCK + 1, 8);
	uint64_t before = blocks_of(region);
	cr_assert_eq(chunk_blocks(region), 4);
	cr_assert(chunk_find(region, 0, &chunk));
	cr_assert_eq(chunk.first, 5);
	cr_assert_eq(chunk.count, 16);
	cr_assert_eq(chunk.data, 14);
	cr_assert(!chunk_find(region, 1, &chunk));
	cr_assert(!chunk_find(region, 2, &chunk));
	cr_assert(chunk_find(region, 3, &chunk));
	cr_assert_eq(chunk.first, 3 * BLOCK + 1);
	cr_assert_eq(chunk.count, 8);
	cr_assert_eq(blocks_of(region), before);
	cr_assert_eq(chunks_data_bytes(&world.shared.memory), 22 * PAGE);
	world_close(&world);
}

Test(chunks, a_huge_page_that_is_not_there_is_never_allocated)
{
	const struct guest_region *region = open_region(12, HUGE_PAGE, 0);
	struct chunk chunk;

	cr_assert_eq(chunk_blocks(region), 2);
	cr_assert(!chunk_find(region, 0, &chunk));
	write_pages(region, 1, 2);
	write_pages(region, 4, 1);
	uint64_t before = blocks_of(region);
	cr_assert(!chunk_find(region, 0, &chunk), "the VM's view does not map them");
	cr_assert_eq(blocks_of(region), before);
	world_close(&world);
}

Test(chunks, a_page_larger_than_a_block_is_left_out)
{
	struct guest_region region = {.pages = 1, .page_bytes = 4 * CHUNK_BYTES, .hugetlb = true};
	struct chunk chunk;
	void *memory = mmap(NULL, region.page_bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	cr_assert_neq(memory, MAP_FAILED);
	memset(memory, 1, PAGE);
	region.near_view = region.view = memory;
	cr_assert_eq(chunk_blocks(&region), 1);
	cr_assert(!chunk_find(&region, 0, &chunk));
	munmap(memory, region.page_bytes);
}
