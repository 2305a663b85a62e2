/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A channel with one-sided READs, for tests on hosts that have no such device: bytes go over the
 * channel that it wraps; memory is exposed by pinning it, as a device does (io_uring's registered
 * buffers), so that a READ of pages that were given back since brings the old ones. Both ends are
 * in this process. A READ is done when it is started, and told of from ring_wait().
 */
#ifndef TESTS_UNIT_ENGINE_READING_H
#define TESTS_UNIT_ENGINE_READING_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/transport.h"

/* Takes `inner` over. */
struct channel *reading_wrap(struct channel *inner);

/* READs that all channels have been asked for. */
unsigned reading_count(void);
/* Does not tell of READs that are done, until it is told not to hold them. */
void reading_hold(bool hold);
/* The next READ fails, and with it its channel. */
void reading_fail_next(void);
/* The next message of such a channel cannot be sent. */
void reading_refuse_next_send(void);
/* After so many more chunks none is exposed any more: -ENOMEM, "memory-lock". */
void reading_refuse_after(unsigned chunks);
/* What its device says of on-demand paging, which is without pins then. */
void reading_page_on_demand(enum on_demand how);
/* Chunks exposed and not withdrawn. */
unsigned reading_exposed(void);
/* READs without a channel. -errno: no such memory. */
int reading_now(uint64_t address, uint32_t key, void *to, size_t bytes);

#endif
