/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of this folder share: memory with two views, one of them registered, and threads
 * that touch it and can be asked whether they are still asleep in the fault.
 */
#ifndef TESTS_UNIT_FAULT_VIEWS_H
#define TESTS_UNIT_FAULT_VIEWS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fault/events.h"
#include "fault/uffd.h"

#define PAGE      4096ul
#define HUGE_PAGE (2ul << 20)

struct views {
	int fd;
	uint64_t bytes;
	uint8_t *vm;     /* registered */
	uint8_t *engine; /* the file itself */
	struct uffd uffd;
};

/* Opens, maps twice and registers; skips the test where userfaultfd is not allowed. */
void views_open(struct views *views, unsigned pages);
/* The same in huge pages; skips the test where none can be reserved. */
void views_open_huge(struct views *views, unsigned pages);
/* For memory files that the test made itself; takes over `fd`. */
void views_open_fd(struct views *views, int fd, uint64_t bytes);
void views_close(struct views *views);
void views_punch(struct views *views, uint64_t offset, uint64_t bytes);
uint64_t views_address(const struct views *views, uint64_t offset);

/* Waits for one fault and returns it. */
struct fault_event views_next_fault(struct views *views);
bool views_quiet(struct views *views);

struct toucher {
	uint8_t *address;
	bool write;
	uint8_t value; /* read, or to write */
	pthread_t thread;
	pid_t tid;
	long switches_before;
	bool done, end;
};

void toucher_start(struct toucher *toucher, uint8_t *address, bool write, uint8_t value);
/* Returns when the toucher is off its CPU, in the fault. */
void toucher_await_sleep(struct toucher *toucher);
/* Not woken: had the kernel woken it, it would be running, and stay so. */
bool toucher_asleep(struct toucher *toucher);
/* Waits for the touch to be over; returns what was read. */
uint8_t toucher_join(struct toucher *toucher);

#endif
