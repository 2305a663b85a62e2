/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least guest that can touch pages: vCPUs without devices, each running one loop over memory
 * and writing down how long its touches took. It shares nothing with the built-in VM on purpose: a
 * floor that used the code it judges would move with it.
 *
 * Memory: 0 to GUEST_RAM is private to this module (page tables, code, logs); the registered memory
 * of the caller begins at GUEST_RAM. Any error ends the program.
 */
#ifndef BENCH_FLOORS_GUEST_H
#define BENCH_FLOORS_GUEST_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_RAM      (UINT64_C(4) << 30) /* guest-physical address of the caller's memory */
#define GUEST_VCPUS    64
#define GUEST_LOG_ROOM 262144 /* touches that each vCPU can write down */

struct guest_touch {
	uint64_t page, cycles;
};

/* What a vCPU is told and tells, in guest memory. The layout is known to the assembly. */
struct guest_task {
	uint64_t state;             /* of the random numbers, not 0 */
	uint64_t base;              /* guest-physical address of the first page */
	uint64_t pages;             /* touched uniformly at random */
	uint64_t threshold;         /* cycles below which a touch is not written down */
	uint64_t log, log_end;      /* guest-physical; log advances */
	uint64_t dwell;             /* cycles of work after each touch */
	uint64_t mark;              /* a page begins with its number ^ this */
	uint64_t stop;              /* written by the host */
	uint64_t operations, wrong; /* touches done; pages that began with something else */
	uint64_t first;             /* number of the page at base */
};

struct guest {
	int kvm, vm;
	unsigned vcpu_count;
	uint8_t *low; /* private memory, guest-physical 0 */
	double cycles_per_us;
	sem_t *ended; /* posted when a vCPU ends; NULL: nobody wants to know */
	struct guest_vcpu {
		struct guest *guest;
		int fd;
		struct kvm_run *run;
		pthread_t thread;
		struct guest_task *task;
	} vcpus[GUEST_VCPUS];
};

/* `ram` may be NULL: only the private memory then. */
void guest_open(struct guest *guest, unsigned vcpu_count, void *ram, uint64_t ram_bytes);

/* Prepares every vCPU's loop over a share of its own of `pages` pages from the start of RAM. */
void guest_prepare(struct guest *guest, uint64_t pages, double threshold_us, double dwell_us,
		   uint64_t mark, uint64_t seed);
/* Starts one thread a vCPU on these CPUs (NULL: any). A vCPU ends when it is stopped or its log is
 * full. */
void guest_start(struct guest *guest, const char *cpus);
/* Lets every vCPU end its loop, and waits for that. */
void guest_stop(struct guest *guest);

/* The touches that a vCPU wrote down. */
const struct guest_touch *guest_log(const struct guest *guest, unsigned vcpu, size_t *count);

#endif
