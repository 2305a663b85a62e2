/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A memfd is asked with SEEK_DATA and SEEK_HOLE (4.6 ms per GiB of dense memory; a hole of any size
 * costs one call). hugetlbfs says "all data" to those, and page tables lie about pages that are in
 * the file but not mapped. There, a scratch mapping is registered with userfaultfd and each page is
 * asked for with CONTINUE: it maps a page that exists, and says EFAULT of a hole.
 */
#include "engine/source/holes.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "fault/uffd.h"

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

static void search_file(struct holes *holes, size_t index)
{
	const struct guest_region *region = &holes->memory->regions[index];
	uint64_t size = region->pages * region->page_bytes;
	uint64_t at = 0;

	while (at < size) {
		off_t data = lseek(region->fd, (off_t)(region->fd_offset + at), SEEK_DATA);
		uint64_t hole_end = size;
		if (data >= 0 && (uint64_t)data < region->fd_offset + size)
			hole_end = (uint64_t)data - region->fd_offset;
		else if (data < 0 && errno != ENXIO)
			return; /* the file cannot say: then nothing is told, and all is sent */
		if (hole_end > at &&
		    !put(holes, index, at / region->page_bytes,
			 (hole_end - at) / region->page_bytes, hole_end / region->page_bytes))
			return;
		if (hole_end >= size)
			return;
		off_t hole = lseek(region->fd, (off_t)(region->fd_offset + hole_end), SEEK_HOLE);
		at = hole < 0 || (uint64_t)hole > region->fd_offset + size
			     ? size
			     : (uint64_t)hole - region->fd_offset;
		if (!put(holes, index, 0, 0, at / region->page_bytes))
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
