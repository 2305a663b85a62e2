/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors/memory.h"
#include "bench/floors/program.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *map_file(const struct memory *memory)
{
	void *view = mmap(NULL, memory->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
	if (view == MAP_FAILED)
		program_fail("map %lu bytes", memory->bytes);
	return view;
}

void memory_open(struct memory *memory, uint64_t bytes, uint64_t page_bytes, bool nonblocking)
{
	bool huge = page_bytes > 4096;
	*memory = (struct memory){.bytes = bytes, .page_bytes = page_bytes};
	memory->fd = memfd_create("floor", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	if (memory->fd < 0 || ftruncate(memory->fd, (off_t)bytes))
		program_fail("memory file of %lu bytes", bytes);
	memory->view = map_file(memory);
	memory->alias = map_file(memory);
	memory->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0));
	if (memory->uffd < 0)
		program_fail("userfaultfd (needs root, or vm.unprivileged_userfaultfd=1)");
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = huge ? UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS
				 : UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM};
	struct uffdio_register range = {.range = {(uintptr_t)memory->view, bytes},
					.mode = UFFDIO_REGISTER_MODE_MISSING |
						UFFDIO_REGISTER_MODE_MINOR};
	if (ioctl(memory->uffd, UFFDIO_API, &api) || ioctl(memory->uffd, UFFDIO_REGISTER, &range))
		program_fail("register memory with userfaultfd");
}

void memory_close(struct memory *memory)
{
	close(memory->uffd);
	munmap(memory->view, memory->bytes);
	munmap(memory->alias, memory->bytes);
	close(memory->fd);
}

void memory_copy(const struct memory *memory, uint64_t offset, const void *from, uint64_t bytes)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)memory->view + offset, .src = (uintptr_t)from, .len = bytes};
	while (ioctl(memory->uffd, UFFDIO_COPY, &copy)) {
		/* The kernel stops early when the mappings change: go on behind what is done. */
		if (errno != EAGAIN)
			program_fail("UFFDIO_COPY at %lu", offset);
		if (copy.copy > 0) {
			copy.dst += (uint64_t)copy.copy;
			copy.src += (uint64_t)copy.copy;
			copy.len -= (uint64_t)copy.copy;
		}
	}
}

void memory_continue(const struct memory *memory, uint64_t offset, uint64_t bytes)
{
	struct uffdio_continue more = {.range = {(uintptr_t)memory->view + offset, bytes}};
	while (ioctl(memory->uffd, UFFDIO_CONTINUE, &more)) {
		if (errno != EAGAIN)
			program_fail("UFFDIO_CONTINUE at %lu", offset);
		if (more.mapped > 0) {
			more.range.start += (uint64_t)more.mapped;
			more.range.len -= (uint64_t)more.mapped;
		}
	}
}

uint8_t *memory_source(uint64_t bytes)
{
	uint8_t *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		program_fail("map %lu bytes to send", bytes);
	uint64_t state = 0x9e3779b97f4a7c15;
	for (uint64_t *word = (uint64_t *)memory; word < (uint64_t *)(memory + bytes); word++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		*word = state;
	}
	for (uint64_t page = 0; page < bytes / 4096; page++)
		*(uint64_t *)(memory + page * 4096) = page ^ MEMORY_MARK;
	return memory;
}

void memory_warm(uint64_t bytes, uint64_t page_bytes)
{
	int huge = page_bytes > 4096 ? MAP_HUGETLB | (21 << MAP_HUGE_SHIFT) : 0;
	uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | huge, -1, 0);
	if (memory == MAP_FAILED)
		program_fail("warm up %lu bytes", bytes);
	for (uint64_t offset = 0; offset < bytes; offset += 4096)
		memory[offset] = 1;
	munmap(memory, bytes);
}

uint64_t memory_huge_pages_free(void)
{
	unsigned long pages = 0;
	FILE *file = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
	if (file) {
		if (fscanf(file, "%lu", &pages) != 1)
			pages = 0;
		fclose(file);
	}
	return pages;
}
