/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wake-ups under contention. A lost one shows as a hang, ended by the alarm; a wake-up that does
 * not order what was written before it shows as a report of the thread sanitizer.
 *
 *   many     several threads announce work to one ring as fast as they can
 *   token    two threads pass a plain variable back and forth, each waiting in its own ring
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "transport/ring.h"

#define PRODUCERS 3
#define ITEMS     50000u
#define PASSES    20000u

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* --- many
 * -----------------------------------------------------------------------------------------------
 */

static struct ring *consumer;
static _Atomic unsigned produced[PRODUCERS];

static void *produce(void *argument)
{
	_Atomic unsigned *mine = argument;

	for (unsigned i = 1; i <= ITEMS; i++) {
		/* Relaxed: the wake-up has to do the ordering. */
		atomic_store_explicit(mine, i, memory_order_relaxed);
		ring_wake(consumer);
		if (i % 64 == 0)
			sched_yield(); /* let the consumer fall asleep now and then */
	}
	return NULL;
}

static void many(void)
{
	pthread_t threads[PRODUCERS];
	unsigned long waits = 0;

	CHECK(ring_create(&consumer, 8) == 0);
	for (int i = 0; i < PRODUCERS; i++)
		CHECK(pthread_create(&threads[i], NULL, produce, &produced[i]) == 0);
	for (;;) {
		unsigned done = 0;
		for (int i = 0; i < PRODUCERS; i++)
			done += atomic_load_explicit(&produced[i], memory_order_relaxed) == ITEMS;
		if (done == PRODUCERS)
			break;
		CHECK(ring_wait(consumer, -1) > 0);
		waits++;
	}
	for (int i = 0; i < PRODUCERS; i++)
		pthread_join(threads[i], NULL);
	printf("many: %u items, %lu waits\n", PRODUCERS * ITEMS, waits);
	ring_destroy(consumer);
}

/* --- token --------------------------------------------------------------------------- */

static struct ring *rings[2];
static unsigned token; /* plain: whoever was woken owns it */
static pthread_barrier_t ready;

static void *pass(void *argument)
{
	int self = argument != NULL;

	CHECK(ring_create(&rings[self], 8) == 0);
	pthread_barrier_wait(&ready);
	for (unsigned i = 0; i < PASSES; i++) {
		if (!self) {
			token = 2 * i;
			ring_wake(rings[1]);
			CHECK(ring_wait(rings[0], -1) == 1);
			CHECK(token == 2 * i + 1);
		} else {
			CHECK(ring_wait(rings[1], -1) == 1);
			CHECK(token == 2 * i);
			token = 2 * i + 1;
			ring_wake(rings[0]);
		}
	}
	pthread_barrier_wait(&ready);
	ring_destroy(rings[self]);
	return NULL;
}

int main(void)
{
	pthread_t other;

	alarm(100);
	many();
	pthread_barrier_init(&ready, NULL, 2);
	CHECK(pthread_create(&other, NULL, pass, &rings[1]) == 0);
	pass(NULL);
	pthread_join(other, NULL);
	pthread_barrier_destroy(&ready);
	printf("token: %u passes\n", PASSES);
	return 0;
}
