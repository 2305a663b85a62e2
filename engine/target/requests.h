/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The demand requests in flight of one fault thread: a bounded table of pages. A request is not a
 * claim; it only keeps a second fault on the page from asking again. Used by its one thread only.
 */
#ifndef ENGINE_TARGET_REQUESTS_H
#define ENGINE_TARGET_REQUESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REQUESTS_MAX 1024u

struct request {
	uint64_t page;
	uint64_t read_ns; /* when its first fault was read */
	uint16_t region;
	uint8_t retries; /* after a wrong digest */
	bool unsent;     /* to be asked for again when the channel has room */
	bool used;
};

struct requests {
	struct request slots[REQUESTS_MAX * 2]; /* open addressing, at most half full */
	unsigned count;
};

enum request_result { REQUEST_NEW, REQUEST_JOINED, REQUEST_FULL };

enum request_result requests_enter(struct requests *requests, uint16_t region, uint64_t page,
				   uint64_t read_ns, struct request **out);
/* NULL: nobody asked for it. Valid until the next requests_remove(). */
struct request *requests_find(struct requests *requests, uint16_t region, uint64_t page);
void requests_remove(struct requests *requests, struct request *request);
static inline unsigned requests_room(const struct requests *requests)
{
	return REQUESTS_MAX - requests->count;
}

#endif
