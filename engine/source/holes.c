/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A memfd knows its holes: SEEK_DATA finds the end of one in a single call, whatever its size. The
 * way back, SEEK_HOLE, walks the pages of a dense stretch one by one, in one call, and on a kernel
 * without preemption nothing else runs on that CPU meanwhile: 12 to 17 ms per GiB, in which the
 * threads that the guest waits for stand still. So dense stretches are crossed with mincore(), a
 * window at a time. What mincore() calls resident is data; what it calls absent may also have been
 * swapped out, so SEEK_DATA has the last word on that.
 *
 * hugetlbfs says "all data" to SEEK_DATA, and page tables lie about pages that are in the file but
 * not mapped. There, a scratch mapping is registered with userfaultfd and each page is asked for
 * with CONTINUE: it maps a page that exists, and says EFAULT of a hole.
 */
#include "engine/source/holes.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "fault/uffd.h"

/* Pages that one mincore() is asked about: few behind a hole, where the next one is mostly near. */
#define WINDOW_MIN 8u
#define WINDOW_MAX 1024u

/* false: told to stop. */
static bool put(struct holes *holes, size_t region, uint64_t first, uint64_t count, uint64_t told)
{
	pthread_mutex_lock(&holes->mutex);
	while (holes->count == HOLES_QUEUE && !holes->stop)
		pthread_cond_wait(&holes->changed, &holes->mutex);
	bool go_on = !holes->stop;
	if (go_on)
		holes->queue[(holes->head + holes->count++) % HOLES_QUEUE] =
			(struct hole_run){region, first, count, told};
	bool was_empty = holes->count == 1;
	pthread_mutex_unlock(&holes->mutex);
	if (go_on && was_empty)
		holes->found(holes->user);
	return go_on;
}

bool holes_take(struct holes *holes, struct hole_run *run)
{
	pthread_mutex_lock(&holes->mutex);
	bool any = holes->count > 0;
	if (any) {
		*run = holes->queue[holes->head];
		holes->head = (holes->head + 1) % HOLES_QUEUE;
		holes->count--;
		pthread_cond_signal(&holes->changed);
	}
	pthread_mutex_unlock(&holes->mutex);
	return any;
}

/* How many of the `count` pages from `page` on are resident, up to the first that is not. */
static uint64_t count_resident(const struct guest_region *region, uint64_t page, uint64_t count)
{
	unsigned char resident[WINDOW_MAX];
	uint64_t run = 0;

	if (mincore(region->near_view + page * region->page_bytes, count * region->page_bytes,
		    resident) < 0)
		return 0;
	while (run < count && resident[run] & 1)
		run++;
	return run;
}

/* Crosses what is resident from `page` on, telling how far it is; the first page that is not, or
 * UINT64_MAX: told to stop. */
static uint64_t cross_resident(struct holes *holes, size_t index, uint64_t page)
{
	const struct guest_region *region = &holes->memory->regions[index];

	for (uint64_t window = WINDOW_MIN; page < region->pages;) {
		uint64_t count = region->pages - page < window ? region->pages - page : window;
		uint64_t run = count_resident(region, page, count);
		page += run;
		if (run < count)
			break;
		if (window < WINDOW_MAX)
			window *= 2;
		else if (!put(holes, index, 0, 0, page))
			return UINT64_MAX;
	}
	return put(holes, index, 0, 0, page) ? page : UINT64_MAX;
}

static void search_file(struct holes *holes, size_t index)
{
	const struct guest_region *region = &holes->memory->regions[index];

	for (uint64_t page = 0; page < region->pages;) {
		uint64_t data = guestmem_next_data(region, page);
		if (data == UINT64_MAX)
			return; /* then nothing is told, and all is sent */
		if (data > page && !put(holes, index, page, data - page, data))
			return;
		if (data == region->pages)
			return;
		/* The page at `data` is there, resident or not. */
		page = cross_resident(holes, index, data + 1);
		if (page == UINT64_MAX)
			return;
	}
}

/* One window of a hugetlb file. */
static bool search_window(struct holes *holes, size_t index, const struct uffd *uffd,
			  uint64_t first, uint64_t count)
{
	const struct guest_region *region = &holes->memory->regions[index];
	uint64_t bytes = count * region->page_bytes;
	uint8_t *scratch =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region->fd,
		     (off_t)(region->fd_offset + first * region->page_bytes));
	bool go_on = false;

	if (scratch == MAP_FAILED)
		return false;
	if (uffd_register(uffd, (uintptr_t)scratch, bytes, NULL) == 0) {
		go_on = true;
		for (uint64_t i = 0; i < count && go_on; i++) {
			int64_t done =
				uffd_continue(uffd, (uintptr_t)scratch + i * region->page_bytes,
					      region->page_bytes, UFFD_WAKE);
			bool hole = done == -EFAULT;
			go_on = put(holes, index, first + i, hole ? 1 : 0, first + i + 1);
		}
	}
	munmap(scratch, bytes);
	return go_on;
}

static void search_hugetlb(struct holes *holes, size_t index)
{
	const struct guest_region *region = &holes->memory->regions[index];
	uint64_t window = GIB(1) / region->page_bytes;
	struct uffd uffd;

	if (uffd_open(&uffd, NULL) < 0)
		return; /* nothing is told, and all is sent */
	for (uint64_t page = 0; page < region->pages; page += window) {
		uint64_t count = region->pages - page < window ? region->pages - page : window;
		if (!search_window(holes, index, &uffd, page, count))
			break;
	}
	uffd_close(&uffd);
}

static void *holes_main(void *argument)
{
	struct holes *holes = argument;

	pthread_setname_np(pthread_self(), "jaunt-holes");
	for (size_t i = 0; i < holes->memory->region_count; i++) {
		if (holes->memory->regions[i].hugetlb)
			search_hugetlb(holes, i);
		else
			search_file(holes, i);
	}
	pthread_mutex_lock(&holes->mutex);
	holes->over = !holes->stop;
	pthread_mutex_unlock(&holes->mutex);
	holes->found(holes->user);
	return NULL;
}

void holes_init(struct holes *holes, const struct guestmem *memory, void (*found)(void *user),
		void *user)
{
	memset(holes, 0, sizeof(*holes));
	holes->memory = memory;
	holes->found = found;
	holes->user = user;
	pthread_mutex_init(&holes->mutex, NULL);
	pthread_cond_init(&holes->changed, NULL);
}

int holes_start(struct holes *holes)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int result = -pthread_create(&holes->thread, NULL, holes_main, holes);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	holes->running = result == 0;
	return result;
}

void holes_stop(struct holes *holes)
{
	if (!holes->running)
		return;
	pthread_mutex_lock(&holes->mutex);
	holes->stop = true;
	pthread_cond_signal(&holes->changed);
	pthread_mutex_unlock(&holes->mutex);
	pthread_join(holes->thread, NULL);
	holes->running = false;
}

bool holes_over(struct holes *holes)
{
	pthread_mutex_lock(&holes->mutex);
	bool over = holes->over && !holes->count;
	pthread_mutex_unlock(&holes->mutex);
	return over;
}

void holes_reset(struct holes *holes)
{
	pthread_mutex_lock(&holes->mutex);
	holes->head = holes->count = 0;
	holes->stop = holes->over = false;
	pthread_mutex_unlock(&holes->mutex);
}
