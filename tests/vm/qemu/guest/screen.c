/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The framebuffer of a VGA device is memory of QEMU's own, not of the guest's RAM: it travels with
 * the device state. Its pages are written and verified here through the device's first resource.
 */
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICES "/sys/bus/pci/devices"
#define VGA     0x030000
#define LINE    4096u
#define WORDS   (LINE / 4)

static volatile uint32_t *frame;
static uint32_t *generations;
static uint64_t lines;
static struct errors errors;
static _Atomic uint64_t operations;

static void *work(void *unused)
{
	unsigned chance = 7;

	for (;;) {
		uint64_t began = time_ns();
		uint64_t number = (uint64_t)rand_r(&chance) % lines;
		volatile uint32_t *line = frame + number * WORDS;
		uint32_t generation = generations[number];

		for (unsigned i = 0; generation && i < WORDS; i++) {
			uint32_t expected = (uint32_t)number * 0x9e3779b1u + generation + i;

			if (line[i] != expected) {
				errors_add(&errors,
					   "line %" PRIu64 ", generation %" PRIu32
					   ", word %u: expected %#" PRIx32 ", found %#" PRIx32,
					   number, generation, i, expected, line[i]);
				break;
			}
		}
		generations[number] = ++generation;
		for (unsigned i = 0; i < WORDS; i++)
			line[i] = (uint32_t)number * 0x9e3779b1u + generation + i;
		operations++;
		time_sleep_until(began + SECOND_NS / settings.screen_rate);
	}
	return NULL;
}

static int find(char *path, size_t size)
{
	DIR *devices = opendir(DEVICES);
	struct dirent *entry;
	int found = -1;

	while (devices && found && (entry = readdir(devices))) {
		unsigned class = 0;
		snprintf(path, size, DEVICES "/%s/class", entry->d_name);
		FILE *file = fopen(path, "re");

		if (!file)
			continue;
		if (fscanf(file, "%x", &class) == 1 && class == VGA) {
			snprintf(path, size, DEVICES "/%s/resource0", entry->d_name);
			found = 0;
		}
		fclose(file);
	}
	if (devices)
		closedir(devices);
	return found;
}

int screen_start(void)
{
	char path[320];
	struct stat status;
	pthread_t thread;
	int file = find(path, sizeof(path)) ? -1 : open(path, O_RDWR | O_CLOEXEC);

	if (file < 0 || fstat(file, &status))
		return -1;
	frame = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	lines = (uint64_t)status.st_size / LINE;
	generations = calloc(lines ? lines : 1, sizeof(*generations));
	if (frame == MAP_FAILED || !lines || !generations)
		return -1;
	return pthread_create(&thread, NULL, work, NULL);
}

uint64_t screen_errors(void)
{
	return errors.count;
}

void screen_print(FILE *out)
{
	if (!lines) {
		fprintf(out, "null");
		return;
	}
	fprintf(out, "{\"lines\": %" PRIu64 ", \"operations\": %" PRIu64 ", ", lines, operations);
	errors_print(&errors, out);
	fprintf(out, "}");
}
