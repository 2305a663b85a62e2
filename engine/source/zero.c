/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/source/zero.h"

#include <stdint.h>
#include <string.h>

typedef uint64_t lanes __attribute__((vector_size(64)));

/* One copy for each width of vector that the CPU may have. The thread sanitizer cannot start with
 * such (it is not up yet when the choice is made). */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__) &&      \
	!defined(__clang__)
#define BY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BY_CPU
#endif

BY_CPU bool zero_check(const void *data, size_t bytes)
{
	const uint8_t *at = data, *end = at + bytes;
	uint64_t first;

	memcpy(&first, at, sizeof(first));
	if (first)
		return false;
	while (at < end) {
		lanes all = {0};
		/* 256 bytes between two looks: long enough to run at the speed of memory. */
		const uint8_t *stop = end - at > 256 ? at + 256 : end;
		for (; at < stop; at += sizeof(lanes)) {
			lanes some;
			memcpy(&some, at, sizeof(some));
			all |= some;
		}
		uint64_t words[8];
		memcpy(words, &all, sizeof(words));
		if (words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] |
		    words[7])
			return false;
	}
	return true;
}
