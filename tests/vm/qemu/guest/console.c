/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>

static _Atomic uint64_t beats;

static void *work(void *unused)
{
	struct sched_param first = {.sched_priority = 10};
	uint64_t next = time_ns();

	pthread_setschedparam(pthread_self(), SCHED_FIFO, &first);
	for (;;) {
		printf("beat %" PRIu64 "  %" PRIu64 " pages visited  longest wait %.2f ms  "
		       "%" PRIu64 " errors\n",
		       beats, memory_operations(), (double)memory_worst_ns() / 1e6,
		       memory_errors() + disk_errors() + screen_errors());
		fflush(stdout);
		beats++;
		next += SECOND_NS / 10;
		if (next < time_ns())
			next = time_ns();
		time_sleep_until(next);
	}
	return NULL;
}

void console_start(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, work, NULL);
}

uint64_t console_beats(void)
{
	return beats;
}
