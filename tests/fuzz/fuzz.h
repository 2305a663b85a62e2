/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a fuzz harness is made of. Each harness is one file that defines LLVMFuzzerTestOneInput().
 * It is built twice: with libFuzzer (option `fuzz`, clang), which looks for new paths, and with
 * driver.c (any compiler), which runs the seeds and random spoilings of them as an ordinary test.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Returns 0. Aborts when the code under test breaks one of its promises. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Never compiled out, unlike assert(). */
#define FUZZ_CHECK(promise)                                                                        \
	do {                                                                                       \
		if (!(promise)) {                                                                  \
			fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__,         \
				#promise);                                                         \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* --- Seeds (corpus.c) --------------------------------------------------------------------- */

#define CORPUS_SEEDS_MAX 256

struct corpus {
	size_t count;
	struct corpus_seed {
		uint8_t *data;
		size_t bytes;
	} seeds[CORPUS_SEEDS_MAX];
};

/* Makes the seeds of a harness ("frame" or "control") out of a recorded handshake. What it
 * allocates lives as long as the process. -errno. */
int corpus_read(struct corpus *corpus, const char *path, const char *channel);

#endif
