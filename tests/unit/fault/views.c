/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/fault/views.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WAIT_MS 10000

void views_open_fd(struct views *views, int fd, uint64_t bytes)
{
	struct jaunt_error error = {0};

	if (uffd_open(&views->uffd, &error))
		cr_skip_test("%s", error.text);
	views->fd = fd;
	views->bytes = bytes;
	views->vm = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	views->engine = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert(views->vm != MAP_FAILED && views->engine != MAP_FAILED, "mmap: %s",
		  strerror(errno));
	cr_assert_eq(uffd_register(&views->uffd, (uintptr_t)views->vm, bytes, &error), 0, "%s",
		     error.text);
}

void views_open(struct views *views, unsigned pages)
{
	int fd = memfd_create("views", MFD_CLOEXEC);
	cr_assert(fd >= 0 && !ftruncate(fd, (off_t)(pages * PAGE)), "memfd: %s", strerror(errno));
	views_open_fd(views, fd, pages * PAGE);
}

void views_open_huge(struct views *views, unsigned pages)
{
	int fd = memfd_create("views", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	if (fd < 0 || ftruncate(fd, (off_t)(pages * HUGE_PAGE)))
		cr_skip_test("no hugetlb files: %s", strerror(errno));
	/* Reserving happens in mmap: where too few can be had it says so, and nothing later will.
	 */
	void *probe = mmap(NULL, pages * HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (probe == MAP_FAILED)
		cr_skip_test("%u huge pages of 2 MiB cannot be reserved", pages);
	munmap(probe, pages * HUGE_PAGE);
	views_open_fd(views, fd, pages * HUGE_PAGE);
}

void views_close(struct views *views)
{
	uffd_close(&views->uffd);
	munmap(views->vm, views->bytes);
	munmap(views->engine, views->bytes);
	close(views->fd);
}

void views_punch(struct views *views, uint64_t offset, uint64_t bytes)
{
	cr_assert_eq(fallocate(views->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			       (off_t)bytes),
		     0);
}

uint64_t views_address(const struct views *views, uint64_t offset)
{
	return (uintptr_t)views->vm + offset;
}

struct fault_event views_next_fault(struct views *views)
{
	struct fault_event event;
	struct pollfd readable = {.fd = views->uffd.fd, .events = POLLIN};
	unsigned other = 0;

	cr_assert_eq(poll(&readable, 1, WAIT_MS), 1, "no fault arrived");
	cr_assert_eq(events_read(&views->uffd, &event, 1, &other), 1);
	cr_assert_eq(other, 0);
	return event;
}

bool views_quiet(struct views *views)
{
	struct fault_event event;
	unsigned other = 0;
	return events_read(&views->uffd, &event, 1, &other) == 0 && !other;
}

static void *touch(void *argument)
{
	struct toucher *toucher = argument;
	volatile uint8_t *address = toucher->address;
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	toucher->switches_before = usage.ru_nvcsw;
	__atomic_store_n(&toucher->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
	if (toucher->write)
		*address = toucher->value;
	else
		toucher->value = *address;
	__atomic_store_n(&toucher->done, true, __ATOMIC_RELEASE);
	/* Stays runnable, so that sleeping can only mean the fault. */
	while (!__atomic_load_n(&toucher->end, __ATOMIC_ACQUIRE))
		;
	return NULL;
}

void toucher_start(struct toucher *toucher, uint8_t *address, bool write, uint8_t value)
{
	*toucher = (struct toucher){.address = address, .write = write, .value = value};
	cr_assert_eq(pthread_create(&toucher->thread, NULL, touch, toucher), 0);
}

static bool sleeps(struct toucher *toucher)
{
	pid_t tid = __atomic_load_n(&toucher->tid, __ATOMIC_ACQUIRE);
	char path[64], line[256], state = '?';
	long switches = 0;

	if (!tid)
		return false;
	snprintf(path, sizeof(path), "/proc/self/task/%d/status", tid);
	FILE *file = fopen(path, "re");
	cr_assert_not_null(file);
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "State: %c", &state);
		sscanf(line, "voluntary_ctxt_switches: %ld", &switches);
	}
	fclose(file);
	/* The state alone is set before the kernel's last look at the page table. */
	return (state == 'S' || state == 'D') && switches > toucher->switches_before;
}

void toucher_await_sleep(struct toucher *toucher)
{
	while (!sleeps(toucher))
		sched_yield();
}

bool toucher_asleep(struct toucher *toucher)
{
	return sleeps(toucher) && !__atomic_load_n(&toucher->done, __ATOMIC_ACQUIRE);
}

uint8_t toucher_join(struct toucher *toucher)
{
	while (!__atomic_load_n(&toucher->done, __ATOMIC_ACQUIRE))
		sched_yield();
	__atomic_store_n(&toucher->end, true, __ATOMIC_RELEASE);
	pthread_join(toucher->thread, NULL);
	return toucher->value;
}
