/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096u
#define WORDS (BLOCK / 8)
#define MAGIC UINT64_C(0x4b434f4c42545541)

static int file = -1;
static uint64_t *buffer;
static uint32_t *generations; /* 0: never written by this program */
static uint64_t blocks;
static struct times times;
static struct errors errors;
static _Atomic uint64_t operations;
/* The worker holds it for an operation, a check of all blocks for one block. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void fill(uint64_t number, uint32_t generation)
{
	buffer[0] = MAGIC;
	for (unsigned i = 1; i < WORDS; i++)
		buffer[i] = number << 32 ^ (uint64_t)generation * 0x9e3779b1u ^ i;
}

static void verify(uint64_t number, uint32_t generation)
{
	ssize_t got = pread(file, buffer, BLOCK, (off_t)(number * BLOCK));

	if (got != BLOCK) {
		errors_add(&errors, "block %" PRIu64 ": read: %s", number,
			   got < 0 ? strerror(errno) : "too little");
		return;
	}
	for (unsigned i = 0; i < WORDS; i++) {
		uint64_t expected =
			i == 0 ? MAGIC : number << 32 ^ (uint64_t)generation * 0x9e3779b1u ^ i;

		if (buffer[i] != expected) {
			errors_add(&errors,
				   "block %" PRIu64 ", generation %" PRIu32
				   ", word %u: expected %#" PRIx64 ", found %#" PRIx64,
				   number, generation, i, expected, buffer[i]);
			return;
		}
	}
}

static void operate(uint64_t number)
{
	uint64_t before = time_ns();

	if (generations[number])
		verify(number, generations[number]);
	fill(number, generations[number] + 1);
	if (pwrite(file, buffer, BLOCK, (off_t)(number * BLOCK)) == BLOCK)
		generations[number]++;
	else
		errors_add(&errors, "block %" PRIu64 ": write: %s", number, strerror(errno));
	times_add(&times, time_ns() - before);
	operations++;
}

static void *work(void *unused)
{
	unsigned chance = 1;

	for (;;) {
		uint64_t began = time_ns();

		pthread_mutex_lock(&lock);
		operate((uint64_t)rand_r(&chance) % blocks);
		pthread_mutex_unlock(&lock);
		if (settings.disk_rate)
			time_sleep_until(began + SECOND_NS / settings.disk_rate);
	}
	return NULL;
}

int disk_start(const char *path)
{
	pthread_t thread;

	blocks = settings.disk_bytes / BLOCK;
	generations = calloc(blocks ? blocks : 1, sizeof(*generations));
	file = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (file < 0 || !blocks || !generations || posix_memalign((void **)&buffer, BLOCK, BLOCK))
		return -1;
	return pthread_create(&thread, NULL, work, NULL);
}

void disk_check(void)
{
	for (uint64_t i = 0; i < blocks; i++) {
		pthread_mutex_lock(&lock);
		if (generations[i])
			verify(i, generations[i]);
		pthread_mutex_unlock(&lock);
	}
}

uint64_t disk_errors(void)
{
	return errors.count;
}

void disk_print(FILE *out)
{
	if (file < 0) {
		fprintf(out, "null");
		return;
	}
	fprintf(out, "{\"blocks\": %" PRIu64 ", \"operations\": %" PRIu64 ", ", blocks, operations);
	errors_print(&errors, out);
	fprintf(out, ", \"operation\": {");
	times_print(&times, out);
	fprintf(out, "}}");
}
