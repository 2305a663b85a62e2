/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's only program of its own: workloads that check themselves, a heartbeat on the console,
 * and answers to commands. Linked statically, so that an initramfs needs nothing else for it. Each
 * workload is a file; its threads run from start to the end of the machine.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* --- Time: the guest's own. It stands still while the machine is stopped. ------------------------
 */

#define SECOND_NS UINT64_C(1000000000)

uint64_t time_ns(void);
void time_sleep_until(uint64_t moment_ns);

/* --- How long something took: each power of two in eight parts. Any number of threads may add. ---
 */

#define TIMES_SLOTS 512
struct times {
	_Atomic uint64_t slots[TIMES_SLOTS];
	_Atomic uint64_t count, most_ns;
};

void times_add(struct times *times, uint64_t ns);
void times_clear(struct times *times);
/* The least time that so many thousandths of all are at or below. */
uint64_t times_at(struct times *times, unsigned per_mille);
/* As members of a JSON object: "count", "p50_us", "p99_us", "p999_us", "max_us". */
void times_print(struct times *times, FILE *out);

/* --- Errors: the first is kept, the others are counted. ------------------------------------------
 */

struct errors {
	_Atomic uint64_t count;
	_Atomic bool taken;
	_Atomic bool told; /* `first` is complete: release after it is written */
	char first[256];
};

void errors_add(struct errors *errors, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* "errors": N, "first": text or null. */
void errors_print(struct errors *errors, FILE *out);

/* --- Workloads. Each prints one JSON object as its report. ---------------------------------------
 */

/* Numbers of the kernel's command line and of commands; 0 where nothing was said. */
struct settings {
	uint64_t memory_bytes; /* of the memory workload */
	unsigned threads;      /* of it */
	uint64_t rate;         /* pages a second that each of them visits; 0: as many as it can */
	unsigned write_share;  /* of the visits that write, in per cent */
	bool spin;             /* between visits, in place of sleeping */
	uint64_t pulse_us;     /* a byte to the debug port so often; 0: none */
	uint64_t disk_bytes;   /* of the disk workload */
	uint64_t disk_rate;    /* blocks a second */
	uint64_t screen_rate;  /* lines of the framebuffer a second */
};
/* Threads read it all the time; commands change what may change meanwhile. */
extern struct settings settings;

/* Writes pages with their number and generation; verifies each before it is written again. */
int memory_start(void);
/* Verifies every page at once, while the workers go on. */
void memory_check(void);
void memory_clear_times(void);
/* The longest that a worker waited for one access since this was asked last. */
uint64_t memory_worst_ns(void);
uint64_t memory_operations(void);
uint64_t memory_errors(void);
void memory_print(FILE *out);
/* More memory, written and verified, given back by the next call; false if it is not to be had. */
bool memory_allocate(uint64_t bytes);

/* Blocks of a disk, past any cache: written, read back and verified by generation. */
int disk_start(const char *path);
void disk_check(void);
uint64_t disk_errors(void);
void disk_print(FILE *out);

/* Echoes of the gateway. */
int net_start(const char *interface);
void net_print(FILE *out);

/* Lines of a VGA framebuffer. */
int screen_start(void);
uint64_t screen_errors(void);
void screen_print(FILE *out);

/* A line each 100 ms. */
void console_start(void);
uint64_t console_beats(void);

#endif
