/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm/qemu/regions.h"

#define BYTES (4u << 20)

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

/* --- Memory that somebody waits for ------------------------------------------------------------
 */

static const char *awaited(const char *flags_of_one, const char *flags_of_two,
			   const char *flags_of_another)
{
	const struct regions two = {
		.count = 2,
		.all = {{.id = "low", .device = makedev(0, 0x1b), .inode = 77},
			{.id = "high", .device = makedev(0, 0x1b), .inode = 78}}};
	static char id[64];
	char table[1024];

	snprintf(table, sizeof(table),
		 "10000000-10200000 rw-s 00000000 00:1b 77 /ram\nSize: 2048 kB\nVmFlags: %s\n"
		 "20000000-20200000 rw-s 00000000 00:1b 79 /um\nSize: 2048 kB\nVmFlags: %s\n"
		 "30000000-30200000 rw-p 00000000 00:00 0\nVmFlags: rd wr um \n"
		 "40000000-40200000 rw-s 00000000 00:1b 78 /ram um\nVmFlags: %s\n",
		 flags_of_one, flags_of_another, flags_of_two);
	FILE *smaps = fmemopen(table, strlen(table), "r");
	const struct regions_one *one = regions_awaited(&two, smaps);

	fclose(smaps);
	snprintf(id, sizeof(id), "%s", one ? one->id : "");
	return id;
}

Test(regions, knows_memory_that_is_registered_for_missing_pages)
{
	cr_assert_str_eq(awaited("rd wr sh mr mw me ms sd ", "rd wr sh ", "rd wr sh um "), "");
	cr_assert_str_eq(awaited("rd wr sh mr mw me ms um sd ", "rd wr sh ", "rd "), "low");
	cr_assert_str_eq(awaited("rd wr sh ", "rd wr sh ui", "rd wr sh "), "high");
	cr_assert_str_eq(awaited("rd wr sh uw ", "rd wr sh uw ", "rd wr sh uw "), "");
}

struct child {
	pid_t process;
	struct regions regions;
	int commands[2], done[2];
};

static int answer(int uffd, char command, void *memory)
{
	struct uffdio_register with = {.range = {(uintptr_t)memory, BYTES},
				       .mode = command == 'm' ? UFFDIO_REGISTER_MODE_MISSING
							      : UFFDIO_REGISTER_MODE_WP};

	return command == 'u' ? ioctl(uffd, UFFDIO_UNREGISTER, &with.range)
			      : ioctl(uffd, UFFDIO_REGISTER, &with);
}

/* The process with the memory: registers it as it is told. */
static void live(const struct child *child, int file)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	char command;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	void *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api))
		uffd = -1;
	while (read(child->commands[0], &command, 1) == 1) {
		char result = answer(uffd, command, memory) ? 'n' : 'y';
		if (write(child->done[1], &result, 1) != 1)
			break;
	}
	_exit(0);
}

static void begin(struct child *child)
{
	struct stat file;
	int fd = memfd_create("ram", MFD_CLOEXEC);

	cr_assert(ftruncate(fd, BYTES) == 0 && fstat(fd, &file) == 0);
	cr_assert(pipe(child->commands) == 0 && pipe(child->done) == 0);
	child->regions = (struct regions){.count = 1,
					  .all = {{.id = "ram",
						   .fd = fd,
						   .device = file.st_dev,
						   .inode = file.st_ino,
						   .bytes = BYTES}}};
	child->process = fork();
	cr_assert_geq(child->process, 0);
	if (!child->process)
		live(child, fd);
}

static void end(struct child *child)
{
	kill(child->process, SIGKILL);
	waitpid(child->process, NULL, 0);
	regions_close(&child->regions);
	for (int i = 0; i < 2; i++) {
		close(child->commands[i]);
		close(child->done[i]);
	}
}

static void tell(const struct child *child, char command)
{
	char result = 'n';

	cr_assert_eq(write(child->commands[1], &command, 1), 1);
	cr_assert_eq(read(child->done[0], &result, 1), 1);
	if (result != 'y')
		cr_skip_test("userfaultfd is not allowed here, or has no write-protection");
}

Test(regions, that_are_waited_for_in_another_process_are_not_whole)
{
	struct child child;
	struct jaunt_error error = {.code = 0};

	begin(&child);
	tell(&child, 'w'); /* answers when its mapping is there */
	cr_assert_eq(regions_are_whole(&child.regions, child.process, &error), 0, "%s", error.text);
	tell(&child, 'u');
	tell(&child, 'm');
	cr_assert_eq(regions_are_whole(&child.regions, child.process, &error), -EBUSY);
	cr_assert_str_eq(error.reason, "incomplete-memory");
	tell(&child, 'u');
	cr_assert_eq(regions_are_whole(&child.regions, child.process, &error), 0);
	end(&child);
}
