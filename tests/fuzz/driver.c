/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver RECORDING CHANNEL [ROUNDS [SEED]]: a harness as an ordinary test. Runs every seed, then
 * ROUNDS inputs spoiled at random. The same SEED gives the same inputs; a failing run names it.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_MAX      8192
#define ROUNDS_DEFAULT 300000

static uint64_t state;

static uint64_t random_next(void)
{
	/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators". */
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * UINT64_C(2685821657736338717);
}

static size_t random_below(size_t bound)
{
	return bound ? (size_t)(random_next() >> 16) % bound : 0;
}

static size_t spoil(uint8_t *data, size_t bytes, const struct corpus *corpus)
{
	static const uint8_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0xfe, 0x10, 0x40};
	size_t at = random_below(bytes), count;
	const struct corpus_seed *other;

	switch (random_below(7)) {
	case 0: /* flip a bit */
		if (bytes)
			data[at] ^= (uint8_t)(1 << random_below(8));
		return bytes;
	case 1: /* set a byte */
		if (bytes)
			data[at] = (uint8_t)random_next();
		return bytes;
	case 2: /* a run of an edge value: lengths and counts become huge, or nothing */
		count = random_below(bytes - at < 9 ? bytes - at + 1 : 9);
		memset(data + at, edges[random_below(sizeof(edges))], count);
		return bytes;
	case 3: /* cut off the end */
		return at;
	case 4: /* take out a piece */
		count = random_below(bytes - at + 1);
		memmove(data + at, data + at + count, bytes - at - count);
		return bytes - count;
	case 5: /* say a piece twice */
		count = random_below(bytes - at + 1);
		if (bytes + count > INPUT_MAX)
			return bytes;
		memmove(data + at + count, data + at, bytes - at);
		return bytes + count;
	default: /* go on like another seed */
		other = &corpus->seeds[random_below(corpus->count)];
		count = other->bytes < INPUT_MAX - at ? other->bytes : INPUT_MAX - at;
		memcpy(data + at, other->data, count);
		return at + count;
	}
}

/* In a block of exactly its size, so that the address sanitizer sees every read behind the end. */
static void run(const uint8_t *data, size_t bytes)
{
	uint8_t *copy = malloc(bytes ? bytes : 1);
	if (!copy)
		abort();
	memcpy(copy, data, bytes);
	LLVMFuzzerTestOneInput(copy, bytes);
	free(copy);
}

int main(int argc, char **argv)
{
	static struct corpus corpus;
	static uint8_t input[INPUT_MAX];

	if (argc < 3) {
		fprintf(stderr, "usage: driver RECORDING CHANNEL [ROUNDS [SEED]]\n");
		return 2;
	}
	unsigned long rounds = argc > 3 ? strtoul(argv[3], NULL, 0) : ROUNDS_DEFAULT;
	state = argc > 4 ? strtoull(argv[4], NULL, 0) : UINT64_C(0x9e3779b97f4a7c15);
	if (!state)
		state = 1;
	int rc = corpus_read(&corpus, argv[1], argv[2]);
	if (rc) {
		fprintf(stderr, "driver: %s: %s\n", argv[1], strerror(-rc));
		return 1;
	}
	fprintf(stderr, "%zu seeds, then %lu spoiled inputs, random seed 0x%llx\n", corpus.count,
		rounds, (unsigned long long)state);
	for (size_t i = 0; i < corpus.count; i++)
		run(corpus.seeds[i].data, corpus.seeds[i].bytes);
	for (unsigned long round = 0; round < rounds; round++) {
		const struct corpus_seed *seed = &corpus.seeds[random_below(corpus.count)];
		size_t bytes = seed->bytes < INPUT_MAX ? seed->bytes : INPUT_MAX;
		memcpy(input, seed->data, bytes);
		for (size_t times = 1 + random_below(4); times; times--)
			bytes = spoil(input, bytes, &corpus);
		run(input, bytes);
	}
	return 0;
}
