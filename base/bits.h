/* SPDX-License-Identifier: Apache-2.0 */
/* Bit runs within one 64-bit word, and small arithmetic on sizes. */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include <stdint.h>

#define KIB(n) ((uint64_t)(n) << 10)
#define MIB(n) ((uint64_t)(n) << 20)
#define GIB(n) ((uint64_t)(n) << 30)

/* `count` ones starting at bit `first`; first + count <= 64, count >= 1. */
static inline uint64_t bits_mask(unsigned first, unsigned count)
{
	return (~UINT64_C(0) >> (64 - count)) << first;
}

/* A maximal run of ones. */
struct bits_run {
	unsigned first, count;
};

/* The lowest run of ones in *word, which it clears there; count 0 when there is none. */
static inline struct bits_run bits_take_run(uint64_t *word)
{
	struct bits_run run = {0, 0};
	if (!*word)
		return run;
	run.first = (unsigned)__builtin_ctzll(*word);
	uint64_t rest = ~(*word >> run.first);
	run.count = rest ? (unsigned)__builtin_ctzll(rest) : 64;
	if (run.count > 64 - run.first)
		run.count = 64 - run.first;
	*word &= ~bits_mask(run.first, run.count);
	return run;
}

static inline uint64_t round_up(uint64_t value, uint64_t multiple)
{
	return (value + multiple - 1) / multiple * multiple;
}

#endif
