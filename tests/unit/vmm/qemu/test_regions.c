/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "vmm/qemu/regions.h"

static uint64_t address;

static uint64_t mapped(const char *table)
{
	FILE *maps = fmemopen((void *)table, strlen(table), "r");
	uint64_t bytes = regions_mapped(maps, makedev(0, 0x1b), 77, &address);

	fclose(maps);
	return bytes;
}

TestSuite(regions, .timeout = 30);

Test(regions, finds_a_file_by_its_identity_whatever_its_name)
{
	cr_assert_eq(mapped("7f0000000000-7f0004000000 rw-s 00000000 00:1b 76 /dev/shm/ram\n"
			    "7f1000000000-7f1004000000 rw-s 00000000 00:1b 77 /a b (deleted)\n"
			    "7f2000000000-7f2004000000 rw-s 00000000 00:1c 77 /dev/shm/ram\n"),
		     64u << 20);
	cr_assert_eq(address, 0x7f1000000000);
}

Test(regions, joins_neighbouring_pieces_and_nothing_else)
{
	cr_assert_eq(mapped("10000000-10200000 rw-s 00000000 00:1b 77 /ram\n"
			    "10200000-10400000 rw-s 00200000 00:1b 77 /ram\n"
			    "10400000-10600000 rw-p 00000000 00:00 0\n"
			    "10600000-10800000 rw-s 00400000 00:1b 77 /ram\n"
			    "20400000-20600000 rw-s 00000000 00:1b 77 /ram\n"),
		     4u << 20);
	cr_assert_eq(address, 0x10000000);
}

Test(regions, does_not_take_private_or_read_only_or_partial_mappings)
{
	cr_assert_eq(mapped("10000000-10200000 rw-p 00000000 00:1b 77 /ram\n"
			    "20000000-20200000 r--s 00000000 00:1b 77 /ram\n"
			    "30000000-30200000 rw-s 00200000 00:1b 77 /ram\n"),
		     0);
}

Test(regions, passes_over_lines_that_are_none)
{
	cr_assert_eq(mapped("\nnothing\n10000000-\n"
			    "10000000-10200000 rw-s 00000000 00:1b 77\n"),
		     2u << 20);
	cr_assert_eq(mapped("x"), 0);
}
