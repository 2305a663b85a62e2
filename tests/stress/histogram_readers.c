/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread records while others read percentiles and merge. Counts never shrink, percentiles stay
 * in order and within what was recorded, and at the end nothing was lost.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/histogram.h"

#define RECORDS 2000000u
#define READERS 2
#define LOWEST  1000u
#define HIGHEST 9999999u

static struct histogram histogram;
static atomic_bool finished;

static void check(int ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "histogram_readers: %s\n", what);
		exit(1);
	}
}

static void *record(void *argument)
{
	uint64_t state = 1;
	(void)argument;
	histogram_record(&histogram, LOWEST);
	histogram_record(&histogram, HIGHEST);
	for (unsigned i = 2; i < RECORDS; i++) {
		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		histogram_record(&histogram, LOWEST + (state >> 33) % (HIGHEST - LOWEST));
	}
	atomic_store(&finished, 1);
	return NULL;
}

static void *read_it(void *argument)
{
	struct histogram *own = calloc(1, sizeof(*own));
	struct jaunt_percentiles got;
	uint64_t count = 0;
	(void)argument;
	check(!!own, "out of memory");
	do {
		histogram_percentiles(&histogram, &got);
		check(got.count >= count, "the count shrank");
		count = got.count;
		if (count) {
			check(got.p50 <= got.p90 && got.p90 <= got.p99 && got.p99 <= got.p999 &&
				      got.p999 <= got.max,
			      "percentiles out of order");
			check(got.p50 >= LOWEST * 0.99 / 1e3 && got.max <= HIGHEST / 1e3,
			      "a value that nobody recorded");
		}
		uint64_t before = histogram_count(own);
		histogram_merge(own, &histogram);
		check(histogram_count(own) >= before + count, "a merge lost counts");
	} while (!atomic_load(&finished));
	free(own);
	return NULL;
}

int main(void)
{
	pthread_t writer, readers[READERS];

	for (int i = 0; i < READERS; i++)
		pthread_create(&readers[i], NULL, read_it, NULL);
	pthread_create(&writer, NULL, record, NULL);
	pthread_join(writer, NULL);
	for (int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	check(histogram_count(&histogram) == RECORDS, "records were lost");
	printf("histogram_readers: %u records\n", RECORDS);
	return 0;
}
