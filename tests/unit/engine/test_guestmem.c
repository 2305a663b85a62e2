/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/guestmem.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "fault/uffd.h"
#include "tests/unit/engine/world.h"

TestSuite(guestmem, .timeout = 60);

static struct guestmem memory;
static struct jaunt_region regions[2];
static struct jaunt_description description = {.name = "vm", .regions = regions};

static void make_file(size_t index, uint64_t pages, uint64_t fd_offset)
{
	int fd = memfd_create("guestmem", MFD_CLOEXEC);

	cr_assert(fd >= 0 && ftruncate(fd, (off_t)(fd_offset + pages * PAGE)) == 0);
	regions[index] =
		(struct jaunt_region){.name = index ? "second" : "first",
				      .guest_address = index * GIB(1),
				      .bytes = pages * PAGE,
				      .page_bytes = PAGE,
				      .fd = fd,
				      .fd_offset = fd_offset,
				      .view = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
						   MAP_SHARED, fd, (off_t)fd_offset)};
	cr_assert_neq(regions[index].view, MAP_FAILED);
	description.region_count = index + 1;
}

static uint64_t blocks(size_t index)
{
	struct stat status;
	cr_assert_eq(fstat(regions[index].fd, &status), 0);
	return (uint64_t)status.st_blocks;
}

static void open_memory(void)
{
	struct jaunt_error error = {0};
	cr_assert_eq(guestmem_open(&memory, &description, false, &error), 0, "%s", error.text);
}

Test(guestmem, a_region_of_impossible_shape_is_refused_by_its_name)
{
	struct jaunt_error error;

	make_file(0, 16, PAGE);
	const struct jaunt_region good = regions[0];
	for (unsigned i = 0; i < 11; i++) {
		regions[0] = good;
		error = (struct jaunt_error){0};
		switch (i) {
		case 0:
			regions[0].page_bytes = 2048;
			break;
		case 1:
			regions[0].page_bytes = 12288;
			break;
		case 2:
			regions[0].bytes = 0;
			break;
		case 3:
			regions[0].bytes -= 1;
			break;
		case 4:
			regions[0].fd_offset = 100;
			break;
		case 5:
			regions[0].guest_address = 7;
			break;
		case 6:
			regions[0].guest_address = UINT64_MAX / PAGE * PAGE;
			break;
		case 7:
			regions[0].fd = -1;
			break;
		case 8:
			regions[0].bytes += PAGE; /* beyond the end of the file */
			break;
		case 9:
			regions[0].view = NULL;
			break;
		case 10:
			regions[0].page_bytes = 0;
			break;
		}
		cr_assert_lt(guestmem_open(&memory, &description, false, &error), 0, "case %u", i);
		cr_assert_str_eq(error.reason, "bad-region", "case %u: %s", i, error.reason);
		cr_assert(strstr(error.text, "\"first\""), "case %u: %s", i, error.text);
	}
	regions[0] = good;
	open_memory();
	guestmem_close(&memory);
}

Test(guestmem, a_bad_region_behind_a_good_one_is_refused_and_nothing_stays_mapped)
{
	struct jaunt_error error = {0};

	make_file(0, 16, 0);
	make_file(1, 16, 0);
	regions[1].bytes *= 2;
	cr_assert_lt(guestmem_open(&memory, &description, false, &error), 0);
	cr_assert(strstr(error.text, "\"second\""));
	cr_assert_eq(memory.region_count, 0);
}

Test(guestmem, a_vm_has_at_least_one_region_and_at_most_so_many)
{
	struct jaunt_error error = {0};

	description.region_count = 0;
	cr_assert_eq(guestmem_open(&memory, &description, false, &error), -EINVAL);
	description.region_count = JAUNT_MAX_REGIONS + 1;
	cr_assert_eq(guestmem_open(&memory, &description, false, &error), -EINVAL);
}

Test(guestmem, both_views_show_the_same_bytes)
{
	make_file(0, 16, 4 * PAGE);
	make_file(1, 8, 0);
	open_memory();
	cr_assert_eq(memory.pages, 24);
	cr_assert_eq(memory.bytes, 24 * PAGE);
	world_make((uint8_t *)regions[0].view + 3 * PAGE, PAGE, 3, 1);
	cr_assert(world_made(memory.regions[0].view + 3 * PAGE, PAGE, 3, 1));
	guestmem_close(&memory);
}

Test(guestmem, holes_read_as_zeros_and_are_not_filled_by_reading)
{
	uint8_t *bytes = malloc(64 * PAGE);

	make_file(0, 64, 2 * PAGE);
	open_memory();
	world_make((uint8_t *)regions[0].view + 20 * PAGE, PAGE, 20, 1);
	uint64_t before = blocks(0);
	memset(bytes, 0xee, 64 * PAGE);
	cr_assert_eq(guestmem_read(&memory.regions[0], 0, 64, bytes), 0);
	cr_assert_eq(blocks(0), before);
	for (uint64_t page = 0; page < 64; page++)
		cr_assert(page == 20 ? world_made(bytes + page * PAGE, PAGE, page, 1)
				     : world_zero(bytes + page * PAGE, PAGE));
	guestmem_close(&memory);
	free(bytes);
}

Test(guestmem, a_file_that_somebody_made_shorter_is_an_error_and_not_zeros)
{
	uint8_t bytes[4 * PAGE];

	make_file(0, 16, 0);
	open_memory();
	cr_assert_eq(ftruncate(regions[0].fd, 10 * PAGE), 0);
	cr_assert_eq(guestmem_read(&memory.regions[0], 8, 4, bytes), -EIO);
	guestmem_close(&memory);
}

Test(guestmem, a_punched_page_is_gone_and_its_neighbours_stay)
{
	make_file(0, 16, 3 * PAGE);
	open_memory();
	for (uint64_t page = 0; page < 16; page++)
		world_make((uint8_t *)regions[0].view + page * PAGE, PAGE, page, 1);
	cr_assert_eq(guestmem_punch(&memory.regions[0], 5, 2), 0);
	for (uint64_t page = 0; page < 16; page++) {
		const uint8_t *at = (uint8_t *)regions[0].view + page * PAGE;
		cr_assert(page == 5 || page == 6 ? world_zero(at, PAGE)
						 : world_made(at, PAGE, page, 1));
	}
	guestmem_close(&memory);
}

Test(guestmem, after_it_was_emptied_no_earlier_touch_shows_anything_that_comes_later)
{
	struct jaunt_error error = {0};
	struct uffd uffd;
	struct guest guest;
	struct world world = {0};

	make_file(0, 16, 0);
	open_memory();
	if (uffd_open(&uffd, &error) < 0)
		cr_skip_test("%s", error.text);
	/* Touched before it is registered, so it is mapped. */
	world_make(regions[0].view, PAGE, 0, 1);
	cr_assert_eq(uffd_register(&uffd, (uintptr_t)regions[0].view, 16 * PAGE, &error), 0);
	cr_assert_eq(guestmem_empty(&memory, &error), 0);
	cr_assert_eq(blocks(0), 0);
	world_make(memory.regions[0].view, PAGE, 0, 2);
	guest_touch(&guest, regions[0].view);
	world.shared.install.uffds[0] = uffd;
	cr_assert(world_next_fault(&world, 0).minor, "no event: the page was still mapped");
	cr_assert_gt(uffd_continue(&uffd, (uintptr_t)regions[0].view, PAGE, UFFD_WAKE), 0);
	guest_join(&guest);
	uffd_close(&uffd);
	guestmem_close(&memory);
}

Test(guestmem, an_address_is_located_up_to_the_last_byte_of_a_region_and_not_beyond)
{
	size_t region;
	uint64_t page;

	make_file(0, 16, 0);
	make_file(1, 3, 0);
	open_memory();
	for (size_t i = 0; i < 2; i++) {
		uint64_t start = (uintptr_t)regions[i].view;
		cr_assert(guestmem_locate(&memory, start, &region, &page));
		cr_assert(region == i && page == 0);
		cr_assert(guestmem_locate(&memory, start + regions[i].bytes - 1, &region, &page));
		cr_assert(region == i && page == regions[i].bytes / PAGE - 1);
		cr_assert(guestmem_locate(&memory, start + 2 * PAGE - 1, &region, &page));
		cr_assert(region == i && page == 1);
	}
	cr_assert_not(guestmem_locate(&memory, 0, &region, &page));
	cr_assert_not(guestmem_locate(&memory, (uintptr_t)&page, &region, &page));
	guestmem_close(&memory);
}

Test(guestmem, a_child_has_neither_view)
{
	int status;

	make_file(0, 16, 0);
	open_memory();
	uint8_t *views[] = {regions[0].view, memory.regions[0].view};
	pid_t child = fork();
	if (child == 0) {
		unsigned char vector[16];
		for (unsigned i = 0; i < 2; i++)
			if (mincore(views[i], 16 * PAGE, vector) == 0 || errno != ENOMEM)
				_exit(1);
		_exit(0);
	}
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	guestmem_close(&memory);
}
