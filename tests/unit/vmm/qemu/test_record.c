/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/qemu/agent/discards.h"
#include "vmm/qemu/record.h"

#define PAGES  100000u
#define MAPPED (64u * AGENT_PAGE)

static struct record record;
static char told[4096];
static struct agent_watch watch;

static void tell(void *context, uint64_t first, uint64_t count)
{
	size_t at = strlen(told);
	snprintf(told + at, sizeof(told) - at, "%lu+%lu ", (unsigned long)first,
		 (unsigned long)count);
}

static const char *collected(void)
{
	told[0] = '\0';
	record_collect(&record, tell, NULL);
	return told;
}

/* A region somewhere in an address space that nobody looks at. */
static void set_up(void)
{
	cr_assert_eq(record_open(&record, PAGES), 0);
	watch.count = 1;
	watch.regions[0] = (struct agent_region){
		.address = 0x100000, .bytes = (uint64_t)PAGES * AGENT_PAGE, .first_bit = 0};
}

static void tear_down(void)
{
	discards_unwatch();
	record_close(&record);
}

TestSuite(record, .init = set_up, .fini = tear_down, .timeout = 30);

static void note(uint64_t page, uint64_t pages)
{
	uint64_t at = watch.regions[0].address + page * AGENT_PAGE;
	discards_note_view((void *)(uintptr_t)at, pages * AGENT_PAGE);
}

Test(record, tells_a_discard_once_and_a_second_one_again)
{
	cr_assert_eq(discards_watch(&watch, record.fd), 0);
	note(5, 3);
	cr_assert_str_eq(collected(), "5+3 ");
	cr_assert_str_eq(collected(), "");
	note(5, 1);
	cr_assert_str_eq(collected(), "5+1 ");
}

Test(record, joins_runs_over_the_ends_of_words_and_of_summaries)
{
	cr_assert_eq(discards_watch(&watch, record.fd), 0);
	note(60, 200);
	note(AGENT_SUMMARY_BITS - 2, 4);
	note(PAGES - 1, 1);
	note(1, 1);
	note(3, 1);
	cr_assert_str_eq(collected(), "1+1 3+1 60+200 32766+4 99999+1 ");
}

Test(record, holds_a_discard_of_everything)
{
	cr_assert_eq(discards_watch(&watch, record.fd), 0);
	discards_note_view(NULL, UINT64_MAX);
	cr_assert_str_eq(collected(), "0+100000 ");
}

Test(record, counts_parts_of_pages_as_pages_and_nothing_outside)
{
	cr_assert_eq(discards_watch(&watch, record.fd), 0);
	discards_note_view((void *)(watch.regions[0].address + AGENT_PAGE - 1), 2);
	discards_note_view((void *)(watch.regions[0].address - AGENT_PAGE), AGENT_PAGE);
	discards_note_view((void *)(watch.regions[0].address + watch.regions[0].bytes), 1 << 20);
	discards_note_view((void *)watch.regions[0].address, 0);
	cr_assert_str_eq(collected(), "0+2 ");
}

Test(record, notes_nothing_when_nobody_watches)
{
	note(5, 3);
	cr_assert_eq(discards_watch(&watch, record.fd), 0);
	discards_unwatch();
	note(5, 3);
	cr_assert_str_eq(collected(), "");
}

Test(record, knows_a_file_by_its_identity_and_its_region_by_the_offset)
{
	int ram = memfd_create("ram", MFD_CLOEXEC), other = memfd_create("other", MFD_CLOEXEC);
	struct stat file;

	cr_assert_eq(ftruncate(ram, 3 * MAPPED), 0);
	cr_assert_eq(fstat(ram, &file), 0);
	/* The second half of the file first in the record. */
	watch.count = 2;
	watch.regions[0] =
		(struct agent_region){1u << 30, MAPPED, file.st_dev, file.st_ino, MAPPED, 0};
	watch.regions[1] = (struct agent_region){2u << 30, MAPPED, file.st_dev, file.st_ino, 0, 64};
	cr_assert_eq(discards_watch(&watch, record.fd), 0);
	discards_note_file(ram, AGENT_PAGE, AGENT_PAGE);
	discards_note_file(ram, MAPPED + 2 * AGENT_PAGE, AGENT_PAGE);
	discards_note_file(ram, 2 * MAPPED, MAPPED); /* in the file, and no RAM */
	discards_note_file(other, 0, MAPPED);
	discards_note_file(-1, 0, MAPPED);
	discards_note_file(ram, -1, 5);
	cr_assert_str_eq(collected(), "2+1 65+1 ");
	discards_note_file(ram, 0, INT64_MAX);
	cr_assert_str_eq(collected(), "0+128 ");
	close(ram);
	close(other);
}

Test(record, is_refused_when_it_could_shrink_or_does_not_fit)
{
	int bare = memfd_create("bare", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_eq(ftruncate(bare, 1 << 20), 0);
	cr_assert_eq(discards_watch(&watch, bare), -EPERM);
	cr_assert_eq(fcntl(bare, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	cr_assert_eq(discards_watch(&watch, bare), -EINVAL);
	struct agent_record lies = {AGENT_MAGIC, AGENT_PROTOCOL, UINT64_C(1) << 33};
	cr_assert_eq(pwrite(bare, &lies, sizeof(lies), 0), (ssize_t)sizeof(lies));
	cr_assert_eq(discards_watch(&watch, bare), -EINVAL);
	lies.bits = UINT64_MAX;
	cr_assert_eq(pwrite(bare, &lies, sizeof(lies), 0), (ssize_t)sizeof(lies));
	cr_assert_eq(discards_watch(&watch, bare), -EINVAL);
	close(bare);
	watch.regions[0].bytes += AGENT_PAGE;
	cr_assert_eq(discards_watch(&watch, record.fd), -EINVAL);
	watch.regions[0].bytes -= AGENT_PAGE;
	watch.regions[0].first_bit = UINT64_MAX;
	cr_assert_eq(discards_watch(&watch, record.fd), -EINVAL);
	watch.regions[0].first_bit = 0;
	watch.regions[0].address = UINT64_MAX - 4095;
	cr_assert_eq(discards_watch(&watch, record.fd), -EINVAL);
	watch.count = 0;
	cr_assert_eq(discards_watch(&watch, record.fd), -EINVAL);
}
