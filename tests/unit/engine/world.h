/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of the engine share: guest memory as a target has it (memory files, two views, a
 * page map, registered userfaultfds), guests that touch it, and peers at the other end of a real
 * loopback connection that may send whatever a test likes.
 *
 * Free of Criterion, so that the plain programs of tests/stress use it, too: what must hold and
 * does not ends the program with a message. Nothing waits longer than WORLD_WAIT_MS.
 */
#ifndef TESTS_UNIT_ENGINE_WORLD_H
#define TESTS_UNIT_ENGINE_WORLD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/target/shared.h"
#include "fault/events.h"
#include "proto/frame.h"

#define WORLD_WAIT_MS 20000
#define PAGE          4096ul
#define HUGE_PAGE     (2ul << 20)

void world_fail(const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4), noreturn));
#define must(condition, ...)                                                                       \
	do {                                                                                       \
		if (!(condition))                                                                  \
			world_fail(__FILE__, __LINE__, __VA_ARGS__);                               \
	} while (0)

struct world_region {
	uint64_t pages;
	uint64_t page_bytes;
	uint64_t fd_offset; /* in bytes; the file is longer than the region by one page behind it */
	int fd;             /* the memory file, the world's from then on; 0: a memfd */
};

struct world {
	struct target_shared shared; /* memory, map, install; a session in epoch 1 */
	struct page_counters counters;
	struct jaunt_region regions[8];
	size_t region_count;
	struct ring *ring; /* owns the session: woken when it is lost */
	char lack[256];    /* why world_open() says no */
};

/* false: this host cannot (no userfaultfd, no huge pages); `lack` says why, and there is nothing to
 * close. */
bool world_open(struct world *world, const struct world_region *regions, size_t count,
		unsigned shards);
/* One region of 4 KiB pages, one shard. */
bool world_open_pages(struct world *world, uint64_t pages);
void world_close(struct world *world);

/* A page's own bytes: every word follows from the page, its version and the word's place. */
void world_make(void *bytes, uint64_t page_bytes, uint64_t page, uint64_t version);
bool world_made(const void *bytes, uint64_t page_bytes, uint64_t page, uint64_t version);
bool world_zero(const void *bytes, uint64_t page_bytes);

uint8_t *world_at(const struct world *world, size_t region, uint64_t page); /* the VM's view */
/* Whether the memory file has nothing at all there. */
bool world_hole(const struct world *world, size_t region, uint64_t page);
enum page_state world_state(const struct world *world, size_t region, uint64_t page);
/* Writes a page into the file as an older copy would lie there, and marks it so. */
void world_put_stale(struct world *world, size_t region, uint64_t page, uint64_t version);

/* The next fault of a shard; fails when none comes. */
struct fault_event world_next_fault(struct world *world, unsigned shard);
/* No fault is queued. */
bool world_quiet(struct world *world, unsigned shard);
/* Answers the next fault, which must be on a present page. */
void world_serve_present(struct world *world, size_t region, uint64_t page);

/* Waits until a channel of the session is lost; its reason, its text. */
const struct jaunt_error *world_await_loss(struct world *world);
bool world_lost(const struct world *world);

/* --- A guest: one touch on a thread of its own --------------------------------------------------
 */

struct guest {
	volatile uint64_t *address;
	uint64_t value; /* read, or to write */
	bool write;
	pthread_t thread;
	_Atomic pid_t tid;
	long switches_before;
	_Atomic bool done, end;
};

void guest_touch(struct guest *guest, void *address);
void guest_write(struct guest *guest, void *address, uint64_t value);
/* Returns when it is off its CPU, in the fault. */
void guest_await_asleep(struct guest *guest);
/* Asleep in the fault: nobody has woken it (it would be running, and stay so). */
bool guest_asleep(struct guest *guest);
/* Waits until the touch is over; what was read. */
uint64_t guest_join(struct guest *guest);

/* --- A peer: the other end of a loopback connection ----------------------------------------------
 */

/* A connected channel, unbound, and the plain socket at its other end. */
void peer_open(struct channel **channel, int *fd);
void peer_send(int fd, const void *bytes, size_t count);
void peer_send_frame(int fd, const struct frame *frame, const void *payload);
/* Exactly so many; false: the other side closed. Fails when they do not come. */
bool peer_read(int fd, void *bytes, size_t count);
/* The preamble that every page channel begins with. */
void peer_expect_preamble(int fd, enum attach_role role, unsigned index);
/* The next frame, which must be good and without payload; false: closed. */
bool peer_read_frame(int fd, struct frame *frame);
/* The other side hung up (whatever it had still sent). */
void peer_expect_close(int fd);

#endif
