/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that a demand fault and a stream of one-sided READs can cost.
 *
 * Theory of operation
 *
 * A second process holds the pages, registers them and then sleeps. Here, one thread touches pages
 * of registered memory at random and times its first touch of each; another reads the userfaultfd,
 * READs the page into a hot buffer, waits for the completion by event and copies it in: no page
 * map, no protocol, no bookkeeping, one fault at a time. Then the same connection READs memory in
 * runs into a buffer that stays in the cache, so many at once: first it installs nothing, then each
 * run is copied into fresh registered memory.
 *
 * The toucher is a thread and not a vCPU: machines with soft RoCE are mostly nested ones without
 * KVM, and so it is compared with guests whose vCPUs are threads.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "bench/floors/memory.h"
#include "bench/floors/program.h"
#include "bench/floors/registration.h"
#include "bench/floors/report.h"
#include "bench/floors/verbs.h"

#define PAGE          4096u
#define INSTALL_BYTES (32u * PAGE) /* with one ioctl */

static const char help[] =
	"Usage: jaunt-floor-rdma --address HOST [OPTION...]\n"
	"Measures demand faults and bulk over one-sided READs, done the barest way; one JSON "
	"object.\n\n"
	"  --address HOST   an IPv4 address of this host's RDMA device; both processes use it\n"
	"  --working-set N  bytes that are touched, and fetched by faults (default 64M)\n"
	"  --dwell-us N     work between two touches (default 0)\n"
	"  --bulk N         bytes that are read in runs afterwards (default 256M), twice:\n"
	"                   without and with installing them\n"
	"  --run N          bytes of a run (default 64k)\n"
	"  --depth N        runs under way at once (default 8)\n"
	"  --seed N         of the random order (default 1)\n"
	"  --register N     nothing of that: registers so many bytes in pieces of 1, 4, 16 and\n"
	"                   64 MiB, with data and without, and READs a page of the first\n";

struct options {
	const char *host;
	uint64_t working_set, bulk, run, depth, seed, registered;
	double dwell_us;
};

struct target {
	const struct options *options;
	struct verbs verbs;
	struct memory memory;
	double *touches_us; /* of the first touch of each page */
	uint64_t wrong;
	double fault_seconds, bulk_seconds, installed_seconds;
	double source_cpu_us; /* while faults were served */
};

/* --- The process that holds the pages --------------------------------------------------------- */

/* Registered once and read round and round where the bulk is more than that. */
static uint64_t source_bytes(const struct options *options)
{
	return options->working_set > options->run ? options->working_set : options->run;
}

static void source(const struct options *options, int tell)
{
	struct verbs_listener listener;
	uint16_t port;
	uint8_t *memory = memory_source(source_bytes(options));
	verbs_listen(&listener, options->host, &port);
	program_tell(tell, &port, sizeof(port));
	verbs_accept(&listener, memory, source_bytes(options));
	verbs_await_end(&listener);
	_exit(0);
}

/* --- The process that reads ------------------------------------------------------------------- */

static void *handle_faults(void *argument)
{
	struct target *target = argument;
	uint8_t *staging = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (staging == MAP_FAILED)
		program_fail("map a page");
	struct ibv_mr *landing = verbs_register(&target->verbs, staging, PAGE);
	uint64_t left = target->options->working_set / PAGE;
	while (left--) {
		struct uffd_msg message;
		if (read(target->memory.uffd, &message, sizeof(message)) != sizeof(message))
			program_fail("read the userfaultfd");
		uint64_t offset = (message.arg.pagefault.address & -(uint64_t)PAGE) -
				  (uintptr_t)target->memory.view;
		verbs_read(&target->verbs, landing, staging, offset, PAGE);
		verbs_wait(&target->verbs);
		memory_copy(&target->memory, offset, staging, PAGE);
	}
	ibv_dereg_mr(landing);
	return NULL;
}

static void work(double us)
{
	uint64_t until = clock_ns() + (uint64_t)(us * 1e3);
	while (clock_ns() < until)
		;
}

/* xorshift64*, brought into [0, below) by a multiplication. */
static uint64_t draw(uint64_t *state, uint64_t below)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (uint64_t)((unsigned __int128)(*state * 0x2545f4914f6cdd1d) * below >> 64);
}

static void touch_all(struct target *target)
{
	const struct options *options = target->options;
	uint64_t pages = options->working_set / PAGE, touched = 0, state = options->seed;
	uint8_t *seen = calloc(pages, 1);
	if (!seen)
		program_fail("remember %lu pages", pages);
	while (touched < pages) {
		uint64_t page = draw(&state, pages);
		const volatile uint64_t *word =
			(const volatile uint64_t *)(target->memory.view + page * PAGE);
		uint64_t before = clock_ns();
		uint64_t found = *word;
		uint64_t after = clock_ns();
		target->wrong += found != (page ^ MEMORY_MARK);
		if (!seen[page]++)
			target->touches_us[touched++] = (double)(after - before) / 1e3;
		if (options->dwell_us > 0)
			work(options->dwell_us);
	}
	free(seen);
}

static void measure_faults(struct target *target)
{
	pthread_t handler;
	if (pthread_create(&handler, NULL, handle_faults, target))
		program_fail("start a thread");
	uint64_t start = clock_ns();
	touch_all(target);
	target->fault_seconds = (double)(clock_ns() - start) / 1e9;
	pthread_join(handler, NULL);
}

/* `into` NULL: stays where it was READ to. */
static void take_run(const struct options *options, struct memory *into, uint64_t run,
		     const uint8_t *bytes)
{
	for (uint64_t at = 0; into && at < options->run; at += INSTALL_BYTES) {
		uint64_t left = options->run - at;
		memory_copy(into, run * options->run + at, bytes + at,
			    left < INSTALL_BYTES ? left : INSTALL_BYTES);
	}
}

static double measure_bulk(struct target *target, struct memory *into)
{
	const struct options *options = target->options;
	uint64_t room = options->run * options->depth, from = source_bytes(options);
	uint8_t *staging = mmap(NULL, room, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (staging == MAP_FAILED)
		program_fail("map %lu bytes", room);
	struct ibv_mr *landing = verbs_register(&target->verbs, staging, room);
	uint64_t runs = options->bulk / options->run, begun = 0, done = 0;
	uint64_t start = clock_ns();
	while (done < runs) {
		for (; begun < runs && begun - done < options->depth; begun++)
			verbs_read(&target->verbs, landing,
				   staging + begun % options->depth * options->run,
				   begun % (from / options->run) * options->run,
				   (uint32_t)options->run);
		for (unsigned count = verbs_wait(&target->verbs); count; count--, done++)
			take_run(options, into, done,
				 staging + done % options->depth * options->run);
	}
	double seconds = (double)(clock_ns() - start) / 1e9;
	ibv_dereg_mr(landing);
	munmap(staging, room);
	return seconds;
}

static void measure_both_bulks(struct target *target)
{
	struct memory memory;
	target->bulk_seconds = measure_bulk(target, NULL);
	memory_warm(target->options->bulk, PAGE);
	memory_open(&memory, target->options->bulk, PAGE, false);
	target->installed_seconds = measure_bulk(target, &memory);
	memory_close(&memory);
}

/* CPU time that a process has used so far, all its threads. */
static double cpu_us(pid_t process)
{
	clockid_t clock;
	struct timespec used;
	int error = clock_getcpuclockid(process, &clock);
	if (error || clock_gettime(clock, &used)) {
		errno = error ? error : errno;
		program_fail("CPU time of the source");
	}
	return (double)used.tv_sec * 1e6 + (double)used.tv_nsec / 1e3;
}

/* --- The program ------------------------------------------------------------------------------ */

static struct options parse(int count, char **arguments)
{
	struct options options = {
		.working_set = MIB(64), .bulk = MIB(256), .run = KIB(64), .depth = 8, .seed = 1};
	static const struct option names[] = {{"address", required_argument, NULL, 'a'},
					      {"working-set", required_argument, NULL, 'w'},
					      {"dwell-us", required_argument, NULL, 'd'},
					      {"bulk", required_argument, NULL, 'b'},
					      {"run", required_argument, NULL, 'r'},
					      {"depth", required_argument, NULL, 'D'},
					      {"seed", required_argument, NULL, 'e'},
					      {"register", required_argument, NULL, 'g'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	int option;
	while ((option = getopt_long(count, arguments, "", names, NULL)) != -1) {
		switch (option) {
		case 'a':
			options.host = optarg;
			break;
		case 'w':
			options.working_set = program_bytes(optarg);
			break;
		case 'd':
			options.dwell_us = strtod(optarg, NULL);
			break;
		case 'b':
			options.bulk = program_bytes(optarg);
			break;
		case 'r':
			options.run = program_bytes(optarg);
			break;
		case 'D':
			options.depth = program_count(optarg, 1);
			break;
		case 'e':
			options.seed = program_count(optarg, 1);
			break;
		case 'g':
			options.registered = program_bytes(optarg);
			break;
		case 'h':
			fputs(help, stdout);
			exit(0);
		default:
			program_usage("unknown option");
		}
	}
	if (!options.host || optind < count)
		program_usage("--address is needed, and nothing behind the options");
	if (!options.working_set || options.working_set % PAGE || !options.run ||
	    options.run % PAGE || options.run > GIB(1) || options.bulk < options.run ||
	    options.depth > 1024)
		program_usage("sizes must be whole pages, the bulk at least one run, the depth at "
			      "most 1024");
	if (options.registered % MIB(64))
		program_usage("what is registered must be a multiple of 64 MiB");
	return options;
}

static void report(struct target *target)
{
	const struct options *options = target->options;
	uint64_t pages = options->working_set / PAGE;
	uint64_t bulk = options->bulk / options->run * options->run;
	json_t *object = report_begin("rdma");
	json_object_set_new(object, "working_set_bytes",
			    json_integer((json_int_t)options->working_set));
	json_object_set_new(object, "faults", json_integer((json_int_t)pages));
	json_object_set_new(object, "faults_per_s",
			    json_real((double)pages / target->fault_seconds));
	json_object_set_new(object, "touch_latency_us",
			    report_percentiles(target->touches_us, pages));
	json_object_set_new(object, "source_cpu_us_per_fault",
			    json_real(target->source_cpu_us / (double)pages));
	json_object_set_new(object, "run_bytes", json_integer((json_int_t)options->run));
	json_object_set_new(object, "depth", json_integer((json_int_t)options->depth));
	json_object_set_new(object, "bulk_gb_per_s",
			    json_real((double)bulk / target->bulk_seconds / 1e9));
	json_object_set_new(object, "bulk_installed_gb_per_s",
			    json_real((double)bulk / target->installed_seconds / 1e9));
	report_print(object);
}

static void report_registration(const struct options *options)
{
	json_t *object = report_begin("registration");
	json_object_set_new(object, "registered_bytes",
			    json_integer((json_int_t)options->registered));
	json_object_set_new(object, "pieces",
			    registration_measure(options->host, options->registered));
	report_print(object);
}

int main(int count, char **arguments)
{
	struct options options = parse(count, arguments);
	if (options.registered) {
		report_registration(&options);
		return 0;
	}
	static struct target target;
	uint16_t port;
	int told[2];
	if (pipe(told))
		program_fail("make a pipe");
	pid_t child = program_fork();
	if (child == 0)
		source(&options, told[1]);
	close(told[1]);
	program_hear(told[0], &port, sizeof(port));

	target.options = &options;
	uint64_t pages = options.working_set / PAGE;
	target.touches_us = calloc(pages, sizeof(*target.touches_us));
	if (!target.touches_us)
		program_fail("note %lu times", pages);
	verbs_connect(&target.verbs, options.host, port, (unsigned)options.depth);
	memory_warm(options.working_set, PAGE);
	memory_open(&target.memory, options.working_set, PAGE, false);
	double before_us = cpu_us(child);
	measure_faults(&target);
	target.source_cpu_us = cpu_us(child) - before_us;
	if (target.wrong)
		program_usage("%lu touches found a wrong page", target.wrong);
	measure_both_bulks(&target);
	verbs_disconnect(&target.verbs);
	report(&target);
	int status;
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status))
		program_usage("the source failed");
	return 0;
}
