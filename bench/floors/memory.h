/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of floor programs: a file with two views and a userfaultfd on one of them, memory to send,
 * and warming up. Any error ends the program.
 */
#ifndef BENCH_FLOORS_MEMORY_H
#define BENCH_FLOORS_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_MARK UINT64_C(0x6a61756e74000000) /* a sent page begins with its number ^ this */

struct memory {
	int fd;
	uint64_t bytes, page_bytes;
	uint8_t *view;  /* registered for MISSING and MINOR */
	uint8_t *alias; /* the second mapping of the same file, not registered */
	int uffd;
};

/* `nonblocking`: of the userfaultfd. page_bytes: 4096, or 2 MiB for hugetlb. */
void memory_open(struct memory *memory, uint64_t bytes, uint64_t page_bytes, bool nonblocking);
void memory_close(struct memory *memory);

void memory_copy(const struct memory *memory, uint64_t offset, const void *from, uint64_t bytes);
void memory_continue(const struct memory *memory, uint64_t offset, uint64_t bytes);

/* Shared memory filled with bytes that do not compress; each page begins with its mark. */
uint8_t *memory_source(uint64_t bytes);

/* Allocates, writes and frees as much memory, so that what is allocated next has been in use: a
 * page that a virtual machine never used costs its hypervisor's page fault on top. For 2 MiB pages
 * it goes through the pool of huge pages. */
void memory_warm(uint64_t bytes, uint64_t page_bytes);

/* Huge pages of 2 MiB that are free now. */
uint64_t memory_huge_pages_free(void);

#endif
