/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many threads tell into lanes of their own, lanes come while others are written, and others ask
 * for figures. Afterwards every record is in the file, whole, in the order of its lane, or was
 * counted as dropped. A plain program, so that the thread sanitizer can run it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/trace.h"

#define THREADS 4
#define ROUNDS  2
#define RECORDS 150000u /* more than a lane holds: drops happen */

static struct trace *trace;
static atomic_bool finished;

static void check(int ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "trace_lanes: %s\n", what);
		exit(1);
	}
}

static void *tell(void *argument)
{
	unsigned thread = (unsigned)(uintptr_t)argument;
	for (unsigned round = 0; round < ROUNDS; round++) {
		char name[32];
		unsigned number = thread * ROUNDS + round;
		snprintf(name, sizeof(name), "lane-%u", number);
		struct trace_lane *lane = trace_lane(trace, name);
		check(!!lane, "no lane");
		/* `count` follows from `first`: a record mixed from two would show. */
		for (uint64_t i = 0; i < RECORDS; i++) {
			if (i % 1000 == 999)
				trace_event(lane, name, "%lu %lu", i, i * 7 + number);
			else
				trace_run(lane, number, i, i * 7 + number, TRACE_RUN_PUSHED);
		}
	}
	return NULL;
}

static void *ask(void *argument)
{
	uint64_t largest = 0;
	(void)argument;
	while (!atomic_load(&finished)) {
		uint64_t bytes = trace_bytes(trace);
		check(bytes >= largest, "memory shrank");
		largest = bytes;
		check(!trace_failed(trace), "writing failed");
	}
	return NULL;
}

int main(void)
{
	char path[] = "/tmp/jaunt-trace-lanes-XXXXXX", line[4096];
	struct jaunt_error error = {0};
	pthread_t threads[THREADS], asker;
	unsigned long next[THREADS * ROUNDS] = {0}, read = 0, dropped = 0, written = 0;
	int fd = mkstemp(path);

	check(fd >= 0, "no temporary file");
	close(fd);
	check(!trace_open(&trace, path, &error), error.text);
	pthread_create(&asker, NULL, ask, NULL);
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, tell, (void *)i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	atomic_store(&finished, 1);
	pthread_join(asker, NULL);
	check(!trace_close(trace, &error), error.text);

	FILE *file = fopen(path, "re");
	check(!!file, "the file is gone");
	while (fgets(line, sizeof(line), file)) {
		unsigned lane;
		unsigned long first, count;
		const char *at = strstr(line, "\"lane\":\"lane-");
		if (!at) {
			if ((at = strstr(line, "\"records\":")))
				sscanf(at, "\"records\":%lu,\"dropped\":%lu", &written, &dropped);
			continue;
		}
		check(sscanf(at, "\"lane\":\"lane-%u\"", &lane) == 1, line);
		if ((at = strstr(line, "\"first\":")))
			check(sscanf(at, "\"first\":%lu,\"count\":%lu,", &first, &count) == 2,
			      line);
		else if ((at = strstr(line, "\"text\":")))
			check(sscanf(at, "\"text\":\"%lu %lu\"", &first, &count) == 2, line);
		else
			check(0, line);
		check(lane < THREADS * ROUNDS, line);
		check(count == first * 7 + lane, "a torn record");
		check(first >= next[lane], "out of order");
		next[lane] = first + 1;
		read++;
	}
	fclose(file);
	unlink(path);
	check(read == written, "records are missing in the file");
	check(written + dropped == (unsigned long)THREADS * ROUNDS * RECORDS,
	      "records are neither written nor counted as dropped");
	printf("trace_lanes: %lu written, %lu dropped\n", written, dropped);
	return 0;
}
