/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One stream thread of a target with 4 blocks of memory, and its source, which the test plays.
 * Everything is asserted with Criterion; a host without userfaultfd skips the test.
 */
#ifndef TESTS_UNIT_ENGINE_FILLING_H
#define TESTS_UNIT_ENGINE_FILLING_H

#include "engine/target/fill.h"
#include "tests/unit/engine/world.h"

#define FILLING_BLOCK 512u
#define FILLING_PAGES (4 * FILLING_BLOCK)

struct filling {
	struct world world;
	struct fill *fill;
	int fd, check_fd; /* the source's ends */
};

/* A test has one. */
extern struct filling filling;

/* The memory, and nobody who fills it: what the test prepares, the thread then finds. */
void filling_open(uint64_t pages);
/* The thread and its channel, and with `verify` that of the digests. */
void filling_start(bool granting, bool verify);
void filling_close(void);

/* What the source hears. */
struct frame filling_next_grant(void);

/* What the source says. */
struct frame filling_data_frame(uint64_t first, uint64_t count);
void filling_send_pages(uint64_t first, uint64_t count, uint64_t version);
void filling_send_head(enum frame_type type, uint16_t flags, uint64_t first, uint64_t count);
void filling_end_grant(uint64_t first, uint64_t count);

/* What has become of the pages. */
void filling_expect_made(uint64_t first, uint64_t count, uint64_t version);
void filling_expect_untouched(uint64_t first, uint64_t count);

#endif
