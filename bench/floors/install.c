/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ways of getting received bytes into guest memory, compared with each other.
 *
 * Theory of operation
 *
 * A second process sends memory that its caches do not hold. This process receives all of it and
 * installs it in a fresh memory file registered with userfaultfd, one way after the other, so that
 * whatever else the machine is doing falls on all ways alike; and all of that several times. Only
 * receiving, without installing, stands beside them as the ceiling of each round, and ratios are
 * taken within a round. After each pass a sample of pages is read through the registered view: a
 * way that installs the wrong thing, or nothing, does not count as fast.
 *
 *   copy       receive into a hot staging buffer, UFFDIO_COPY
 *   beside     the same with the UFFDIO_COPY on a second thread, several staging buffers in between
 *   pwrite     receive into a hot staging buffer, pwrite to the file, UFFDIO_CONTINUE
 *   straight   receive into the second mapping, UFFDIO_CONTINUE
 *   populated  the same, after MADV_POPULATE_WRITE on the run
 *
 * A page that the machine has never used costs its hypervisor a fault of its own, far more than any
 * way of installing. By default every pass is therefore preceded by writing and freeing as much
 * memory. With --cold nothing is warmed up and no pass gives its memory back before the end, so
 * that each gets other pages; on a machine that has run for long those have been used all the same.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "bench/floors/link.h"
#include "bench/floors/memory.h"
#include "bench/floors/program.h"
#include "bench/floors/report.h"

#define HUGE_BYTES     MIB(2)
#define ROUNDS_MAX     100
#define BUFFERS        8
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE, Linux 5.14 */

enum way { RECEIVE, COPY, BESIDE, PWRITE, STRAIGHT, POPULATED, WAYS };

static const char *const way_names[WAYS] = {"receive", "copy",     "beside",
					    "pwrite",  "straight", "populated"};

static const char help[] =
	"Usage: jaunt-floor-install [OPTION...]\n"
	"Compares ways of installing received pages, alternating them; one JSON object.\n\n"
	"  --bytes N            receive N bytes each pass (default 1G)\n"
	"  --page-size 4k|2m    size of the pages (default 4k; 2m needs free huge pages)\n"
	"  --run N              pages that one ioctl installs (default 32 of 4k, 1 of 2m)\n"
	"  --staging N          bytes received at a time (default 256k, at least one run)\n"
	"  --runs N             rounds over all ways (default 5)\n"
	"  --cold               do not warm memory up, and do not use any page twice\n"
	"  --source-cpus LIST   run the sender on these CPUs\n"
	"  --target-cpus LIST   run the receiver on these CPUs\n";

struct options {
	uint64_t bytes, page_bytes, run_pages, staging, rounds;
	bool cold;
	const char *source_cpus, *target_cpus;
};

struct pass {
	const struct options *options;
	enum way way;
	struct memory memory;
	uint8_t *staging; /* BUFFERS of options->staging; all ways but `beside` use the first alone
			   */
	int link;
	sem_t filled, emptied; /* buffers, for `beside` */
};

static void source(uint16_t port, const struct options *options)
{
	program_pin(options->source_cpus);
	uint8_t *memory = memory_source(options->bytes);
	int link = link_connect(port);
	char go;
	while (link_receive(link, &go, 1)) {
		for (uint64_t offset = 0; offset < options->bytes; offset += MIB(1)) {
			uint64_t left = options->bytes - offset;
			link_send(link, memory + offset, left < MIB(1) ? left : MIB(1));
		}
	}
	exit(0);
}

static bool way_applies(enum way way, const struct options *options)
{
	return way != PWRITE || options->page_bytes == 4096; /* hugetlbfs has no write */
}

/* Where the bytes of [offset, offset + bytes) are to be received. */
static uint8_t *place(const struct pass *pass, uint64_t offset, uint64_t bytes)
{
	uint8_t *alias = pass->memory.alias + offset;
	if (pass->way == POPULATED && madvise(alias, bytes, POPULATE_WRITE))
		program_fail("populate");
	return pass->way == STRAIGHT || pass->way == POPULATED ? alias : pass->staging;
}

static uint64_t step_at(const struct options *options, uint64_t offset)
{
	uint64_t left = options->bytes - offset;
	return left < options->staging ? left : options->staging;
}

static uint8_t *buffer_at(const struct pass *pass, uint64_t offset)
{
	return pass->staging + offset / pass->options->staging % BUFFERS * pass->options->staging;
}

static void install(const struct pass *pass, uint64_t offset, const uint8_t *from, uint64_t bytes)
{
	switch (pass->way) {
	case COPY:
	case BESIDE:
		memory_copy(&pass->memory, offset, from, bytes);
		return;
	case PWRITE:
		if (pwrite(pass->memory.fd, from, bytes, (off_t)offset) != (ssize_t)bytes)
			program_fail("pwrite");
		memory_continue(&pass->memory, offset, bytes);
		return;
	case STRAIGHT:
	case POPULATED:
		memory_continue(&pass->memory, offset, bytes);
		return;
	default:
		return;
	}
}

static void install_all(const struct pass *pass, uint64_t offset, const uint8_t *from,
			uint64_t bytes)
{
	uint64_t run_bytes = pass->options->run_pages * pass->options->page_bytes;

	for (uint64_t done = 0; done < bytes; done += run_bytes) {
		uint64_t left = bytes - done;
		install(pass, offset + done, from + done, left < run_bytes ? left : run_bytes);
	}
}

/* The second thread. */
static void *install_beside(void *argument)
{
	struct pass *pass = argument;
	const struct options *options = pass->options;

	for (uint64_t offset = 0; offset < options->bytes; offset += options->staging) {
		while (sem_wait(&pass->filled))
			;
		install_all(pass, offset, buffer_at(pass, offset), step_at(options, offset));
		sem_post(&pass->emptied);
	}
	return NULL;
}

static void receive_beside(struct pass *pass)
{
	const struct options *options = pass->options;
	pthread_t second;

	sem_init(&pass->filled, 0, 0);
	sem_init(&pass->emptied, 0, BUFFERS);
	if (pthread_create(&second, NULL, install_beside, pass))
		program_fail("a second thread");
	for (uint64_t offset = 0; offset < options->bytes; offset += options->staging) {
		while (sem_wait(&pass->emptied))
			;
		if (!link_receive(pass->link, buffer_at(pass, offset), step_at(options, offset)))
			program_usage("the sender went away");
		sem_post(&pass->filled);
	}
	pthread_join(second, NULL);
}

static void check(const struct pass *pass)
{
	if (pass->way == RECEIVE)
		return;
	for (uint64_t page = 0; page < pass->options->bytes / 4096; page += 97) {
		uint64_t mark = *(const uint64_t *)(pass->memory.view + page * 4096);
		if (mark != (page ^ MEMORY_MARK))
			program_usage("%s: page %lu was not installed", way_names[pass->way], page);
	}
}

/* Returns GB/s. */
static double run_pass(struct pass *pass)
{
	const struct options *options = pass->options;
	uint64_t start = clock_ns();
	link_send(pass->link, "g", 1);
	if (pass->way == BESIDE) {
		receive_beside(pass);
		return (double)options->bytes / (double)(clock_ns() - start);
	}
	for (uint64_t offset = 0; offset < options->bytes; offset += options->staging) {
		uint64_t bytes = step_at(options, offset);
		uint8_t *to = place(pass, offset, bytes);
		if (!link_receive(pass->link, to, bytes))
			program_usage("the sender went away");
		install_all(pass, offset, to, bytes);
	}
	return (double)options->bytes / (double)(clock_ns() - start);
}

static double fresh_pass(struct pass *pass)
{
	const struct options *options = pass->options;
	if (!options->cold)
		memory_warm(options->bytes, options->page_bytes);
	if (pass->way == RECEIVE)
		return run_pass(pass);
	memory_open(&pass->memory, options->bytes, options->page_bytes, true);
	double speed = run_pass(pass);
	check(pass);
	if (!options->cold)
		memory_close(&pass->memory);
	return speed;
}

static struct options parse(int count, char **arguments)
{
	struct options options = {.bytes = GIB(1), .page_bytes = 4096, .rounds = 5};
	static const struct option names[] = {{"bytes", required_argument, NULL, 'b'},
					      {"page-size", required_argument, NULL, 'p'},
					      {"run", required_argument, NULL, 'n'},
					      {"staging", required_argument, NULL, 's'},
					      {"runs", required_argument, NULL, 'r'},
					      {"cold", no_argument, NULL, 'c'},
					      {"source-cpus", required_argument, NULL, 'S'},
					      {"target-cpus", required_argument, NULL, 'T'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	int option;
	while ((option = getopt_long(count, arguments, "", names, NULL)) != -1) {
		switch (option) {
		case 'b':
			options.bytes = program_bytes(optarg);
			break;
		case 'p':
			options.page_bytes = program_bytes(optarg);
			break;
		case 'n':
			options.run_pages = program_count(optarg, 1);
			break;
		case 's':
			options.staging = program_bytes(optarg);
			break;
		case 'r':
			options.rounds = program_count(optarg, 1);
			break;
		case 'c':
			options.cold = true;
			break;
		case 'S':
			options.source_cpus = optarg;
			break;
		case 'T':
			options.target_cpus = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			exit(0);
		default:
			program_usage("unknown option");
		}
	}
	if (options.page_bytes != 4096 && options.page_bytes != HUGE_BYTES)
		program_usage("a page is 4k or 2m");
	if (!options.run_pages)
		options.run_pages = options.page_bytes == 4096 ? 32 : 1;
	uint64_t run_bytes = options.run_pages * options.page_bytes;
	if (!options.staging)
		options.staging = KIB(256);
	options.staging = round_up(options.staging, run_bytes);
	if (!options.bytes || options.bytes % options.page_bytes || options.rounds > ROUNDS_MAX ||
	    optind < count)
		program_usage("sizes must be whole pages, runs at most %d", ROUNDS_MAX);
	return options;
}

static void require_huge_pages(const struct options *options)
{
	/* A pass of --cold keeps its pages; a huge page is never had twice then. */
	uint64_t passes = options->cold ? options->rounds * (WAYS - 2) : 1;
	uint64_t needed = options->bytes / HUGE_BYTES * passes, found = memory_huge_pages_free();
	if (options->page_bytes == HUGE_BYTES && found < needed)
		program_usage("%lu huge pages are free, %lu needed: sysctl vm.nr_hugepages", found,
			      needed);
}

int main(int count, char **arguments)
{
	struct options options = parse(count, arguments);
	require_huge_pages(&options);
	uint16_t port;
	int listener = link_listen(&port);
	if (program_fork() == 0)
		source(port, &options);
	program_pin(options.target_cpus);
	struct pass pass = {.options = &options, .link = link_accept(listener)};
	pass.staging = mmap(NULL, options.staging * BUFFERS, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (pass.staging == MAP_FAILED)
		program_fail("staging buffer of %lu bytes", options.staging);

	static double speeds[WAYS][ROUNDS_MAX], ratios[WAYS][ROUNDS_MAX];
	run_pass(&pass); /* way RECEIVE: opens the TCP window */
	for (uint64_t round = 0; round < options.rounds; round++) {
		for (pass.way = RECEIVE; pass.way < WAYS; pass.way++) {
			if (!way_applies(pass.way, &options))
				continue;
			speeds[pass.way][round] = fresh_pass(&pass);
			ratios[pass.way][round] = speeds[pass.way][round] / speeds[RECEIVE][round];
		}
	}

	json_t *report = report_begin("install");
	json_object_set_new(report, "bytes", json_integer((json_int_t)options.bytes));
	json_object_set_new(report, "page_bytes", json_integer((json_int_t)options.page_bytes));
	json_object_set_new(report, "run_pages", json_integer((json_int_t)options.run_pages));
	json_object_set_new(report, "staging_bytes", json_integer((json_int_t)options.staging));
	json_object_set_new(report, "cold", json_boolean(options.cold));
	json_t *ways = json_object();
	for (enum way way = RECEIVE; way < WAYS; way++) {
		if (!way_applies(way, &options))
			continue;
		json_t *entry = json_pack(
			"{s:f, s:f, s:o}", "gb_per_s", report_median(speeds[way], options.rounds),
			"ratio_to_receive", report_median(ratios[way], options.rounds),
			"samples_gb_per_s", report_values(speeds[way], options.rounds));
		json_object_set_new(ways, way_names[way], entry);
	}
	json_object_set_new(report, "ways", ways);
	report_print(report);
	return 0;
}
