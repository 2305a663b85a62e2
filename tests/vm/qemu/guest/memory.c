/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each worker has a slice of the memory for itself and visits its pages at random. A page holds its
 * own number, its generation and words that follow from both; the generation that it must have is
 * kept beside. So a page that is lost, torn, older than it may be, or another's is found at the
 * next visit, or when all of them are checked. Times are taken with the time-stamp counter: the
 * clock of an emulated machine costs more than what is to be measured.
 */
#include "guest.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE       4096u
#define WORDS      (PAGE / 8)
#define MAGIC      UINT64_C(0x45474150544e554a) /* "JUNTPAGE" */
#define SPREAD     UINT64_C(0x9e3779b97f4a7c15)
#define WORKERS    16
#define DEBUG_PORT 0x402
#define DUE_MOST   100000
#define SLOT_NS    1000000 /* visits of a limited rate come in bursts, one each millisecond */

struct worker {
	pthread_t thread;
	uint64_t *memory;
	uint32_t *generations;
	uint64_t first, pages; /* of the whole memory */
	uint64_t chance;
	bool pulses; /* only one of them */
	uint64_t pulsed_tsc;
	_Atomic uint64_t operations;
	_Atomic uint64_t worst_ns;
	_Atomic unsigned checked; /* how many checks of all its pages it has done */
};

static struct worker workers[WORKERS];
static struct times accesses;
/* The same as whoever makes `rate` visits a second would have them: those that were due while one
 * waited count, too, each with what was left of the wait. */
static struct times due;
static struct errors errors;
static double ns_per_tick;
static _Atomic unsigned checks_asked;

static uint64_t ticks_ns(uint64_t ticks)
{
	return (uint64_t)((double)ticks * ns_per_tick);
}

static void calibrate(void)
{
	uint64_t from_ns = time_ns(), from = __rdtsc();

	usleep(100000);
	ns_per_tick = (double)(time_ns() - from_ns) / (double)(__rdtsc() - from);
}

static uint64_t chance_next(struct worker *worker)
{
	/* xorshift64* */
	uint64_t x = worker->chance;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	worker->chance = x;
	return x * UINT64_C(0x2545f4914f6cdd1d);
}

/* --- What a page holds
 * ----------------------------------------------------------------------------- */

static uint64_t seed_of(uint64_t number, uint32_t generation)
{
	return (number + 1) * SPREAD ^ ((uint64_t)generation << 32 | generation);
}

static void page_write(uint64_t *page, uint64_t number, uint32_t generation)
{
	uint64_t value = seed_of(number, generation);

	page[0] = MAGIC;
	page[1] = number;
	page[2] = generation;
	for (unsigned i = 3; i < WORDS; i++)
		page[i] = value += SPREAD;
}

static void page_wrong(const char *what, uint64_t number, uint32_t generation, unsigned word,
		       uint64_t expected, uint64_t found)
{
	errors_add(&errors,
		   "%s: page %" PRIu64 ", generation %" PRIu32 ", word %u: expected %#" PRIx64
		   ", found %#" PRIx64,
		   what, number, generation, word, expected, found);
}

/* False after the first wrong word. */
static bool page_verify(const char *what, const uint64_t *page, uint64_t number,
			uint32_t generation)
{
	const uint64_t head[3] = {MAGIC, number, generation};
	uint64_t value = seed_of(number, generation);

	for (unsigned i = 0; i < WORDS; i++) {
		uint64_t expected = i < 3 ? head[i] : (value += SPREAD);
		uint64_t found = __atomic_load_n(&page[i], __ATOMIC_RELAXED);

		if (found != expected) {
			page_wrong(what, number, generation, i, expected, found);
			return false;
		}
	}
	return true;
}

/* --- Workers
 * --------------------------------------------------------------------------------------- */

static void access_took(struct worker *worker, uint64_t ticks)
{
	uint64_t ns = ticks_ns(ticks);

	times_add(&accesses, ns);
	uint64_t left = ns, interval = settings.rate ? SECOND_NS / settings.rate : 0;
	for (unsigned i = 0; i < DUE_MOST && left > 0; i++) {
		times_add(&due, left);
		left = interval && left > interval ? left - interval : 0;
	}
	if (ns > worker->worst_ns)
		worker->worst_ns = ns;
}

static void visit(struct worker *worker)
{
	uint64_t choice = chance_next(worker);
	uint64_t index = (choice >> 16) % worker->pages;
	uint64_t number = worker->first + index;
	volatile uint64_t *page = worker->memory + index * WORDS;
	uint64_t before = __rdtsc();

	(void)page[0];
	access_took(worker, __rdtsc() - before);
	bool right = page_verify("memory", (uint64_t *)page, number, worker->generations[index]);

	if (!right || (choice & 0xffff) % 100 < settings.write_share) {
		uint32_t generation = ++worker->generations[index];

		before = __rdtsc();
		page[0] = 0;
		access_took(worker, __rdtsc() - before);
		page_write((uint64_t *)page, number, generation);
	}
	worker->operations++;
}

static void pulse(struct worker *worker)
{
	uint64_t now = __rdtsc();

	if (worker->pulses && ticks_ns(now - worker->pulsed_tsc) >= settings.pulse_us * 1000) {
		worker->pulsed_tsc = now;
		outb('.', DEBUG_PORT);
	}
}

static void check_if_asked(struct worker *worker)
{
	unsigned asked = checks_asked;

	if (worker->checked == asked)
		return;
	for (uint64_t i = 0; i < worker->pages; i++)
		page_verify("check of all memory", worker->memory + i * WORDS, worker->first + i,
			    worker->generations[i]);
	worker->checked = asked;
}

/* Until the next slot; pulses go on. */
static void pause_until(struct worker *worker, uint64_t tsc)
{
	uint64_t now = __rdtsc();

	if (!settings.spin) {
		if (now < tsc)
			time_sleep_until(time_ns() + ticks_ns(tsc - now));
		pulse(worker);
		return;
	}
	while (__rdtsc() < tsc)
		pulse(worker);
}

static void *work(void *context)
{
	struct worker *worker = context;
	uint64_t slot = (uint64_t)(SLOT_NS / ns_per_tick), next = __rdtsc();

	if (worker->pulses && ioperm(DEBUG_PORT, 1, 1))
		worker->pulses = false;
	for (;;) {
		uint64_t visits = settings.rate ? (settings.rate + 999) / 1000 : 64;

		for (uint64_t i = 0; i < visits; i++) {
			visit(worker);
			pulse(worker);
		}
		check_if_asked(worker);
		if (settings.rate) {
			next += slot;
			/* What was missed is not made up for. */
			if (__rdtsc() > next)
				next = __rdtsc();
			pause_until(worker, next);
		}
	}
	return NULL;
}

int memory_start(void)
{
	unsigned count = settings.threads ? settings.threads : 1;
	uint64_t pages = settings.memory_bytes / PAGE;
	uint64_t *memory;
	uint32_t *generations;

	calibrate();
	if (count > WORKERS || pages < count)
		return -1;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		      0);
	generations = calloc(pages, sizeof(*generations));
	if (memory == MAP_FAILED || !generations)
		return -1;
	for (uint64_t i = 0; i < pages; i++)
		page_write(memory + i * WORDS, i, generations[i] = 1);
	for (unsigned i = 0; i < count; i++) {
		struct worker *worker = &workers[i];

		worker->first = pages * i / count;
		worker->pages = pages * (i + 1) / count - worker->first;
		worker->memory = memory + worker->first * WORDS;
		worker->generations = generations + worker->first;
		worker->chance = SPREAD * (i + 1);
		worker->pulses = i == 0 && settings.pulse_us;
		if (pthread_create(&worker->thread, NULL, work, worker))
			return -1;
	}
	return 0;
}

/* --- For others
 * ------------------------------------------------------------------------------------ */

void memory_check(void)
{
	unsigned asked = ++checks_asked;

	for (unsigned i = 0; i < WORKERS; i++)
		while (workers[i].pages && workers[i].checked != asked)
			usleep(2000);
}

void memory_clear_times(void)
{
	times_clear(&accesses);
	times_clear(&due);
}

uint64_t memory_worst_ns(void)
{
	uint64_t worst = 0;

	for (unsigned i = 0; i < WORKERS; i++) {
		uint64_t one = atomic_exchange(&workers[i].worst_ns, 0);

		if (one > worst)
			worst = one;
	}
	return worst;
}

uint64_t memory_operations(void)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < WORKERS; i++)
		sum += workers[i].operations;
	return sum;
}

uint64_t memory_errors(void)
{
	return errors.count;
}

void memory_print(FILE *out)
{
	fprintf(out, "{\"pages\": %" PRIu64 ", \"operations\": %" PRIu64 ", \"checks\": %u, ",
		settings.memory_bytes / PAGE, memory_operations(), checks_asked);
	errors_print(&errors, out);
	fprintf(out, ", \"access\": {");
	times_print(&accesses, out);
	fprintf(out, "}, \"access_due\": {");
	times_print(&due, out);
	fprintf(out, "}}");
}

/* --- Memory that comes and goes
 * --------------------------------------------------------------------- */

bool memory_allocate(uint64_t bytes)
{
	static uint64_t *more;
	static uint64_t more_bytes;
	const uint64_t other = UINT64_C(1) << 40; /* numbers that no page of the workload has */

	if (more)
		munmap(more, more_bytes);
	more = NULL;
	if (!bytes)
		return true;
	more_bytes = bytes & ~(uint64_t)(PAGE - 1);
	more = mmap(NULL, more_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (more == MAP_FAILED) {
		more = NULL;
		return false;
	}
	for (uint64_t i = 0; i < more_bytes / PAGE; i++) {
		/* Fresh memory is zero, whatever the host had in its place. */
		for (unsigned j = 0; j < WORDS; j += 64)
			if (more[i * WORDS + j])
				page_wrong("fresh memory", i, 0, j, 0, more[i * WORDS + j]);
		page_write(more + i * WORDS, other + i, 1);
	}
	for (uint64_t i = 0; i < more_bytes / PAGE; i++)
		page_verify("allocated memory", more + i * WORDS, other + i, 1);
	return true;
}
