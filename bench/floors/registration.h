/* SPDX-License-Identifier: Apache-2.0 */
/* How long memory takes to register, by the size of the pieces. Any error ends the program. */
#ifndef BENCH_FLOORS_REGISTRATION_H
#define BENCH_FLOORS_REGISTRATION_H

#include <jansson.h>
#include <stdint.h>

/* Registers so many bytes in pieces of 1, 4, 16 and 64 MiB, memory with data and holes, at an
 * address of this host's RDMA device; a second process READs the first page as soon as it may.
 * Returns an array with an object for each. */
json_t *registration_measure(const char *host, uint64_t bytes);

#endif
