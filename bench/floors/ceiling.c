/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ceiling of bulk transfer: what one thread can receive through a loopback TCP socket if it
 * installs nothing.
 *
 * Theory of operation
 *
 * A second process holds memory larger than the caches and sends it, so that its side is as cold as
 * a guest's memory is. This process receives all of it into one staging buffer small enough to stay
 * in the L2 cache, over and over. Nothing that installs pages with one thread and one stream can be
 * faster; how close it comes is the figure of interest.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/clock.h"
#include "bench/floors/link.h"
#include "bench/floors/memory.h"
#include "bench/floors/program.h"
#include "bench/floors/report.h"

#define RUNS_MAX 1000

static const char help[] =
	"Usage: jaunt-floor-ceiling [OPTION...]\n"
	"Receives over loopback TCP into a hot buffer, installing nothing; one JSON object.\n\n"
	"  --bytes N            send N bytes each run (default 2G)\n"
	"  --staging N          size of the receiver's buffer (default 256k)\n"
	"  --chunk N            bytes the sender passes to one system call (default 1M)\n"
	"  --runs N             repeat N times (default 3)\n"
	"  --listen PORT        where the receiver listens (default: any)\n"
	"  --through PORT       where the sender connects, to a proxy for that port, say\n"
	"  --source-cpus LIST   run the sender on these CPUs\n"
	"  --target-cpus LIST   run the receiver on these CPUs\n";

struct options {
	uint64_t bytes, staging, chunk, runs, listen, through;
	const char *source_cpus, *target_cpus;
};

/* Sends everything once for each byte it is sent, until the peer closes. */
static void source(uint16_t port, const struct options *options)
{
	program_pin(options->source_cpus);
	uint8_t *memory = memory_source(options->bytes);
	int link = link_connect(port);
	char go;
	while (link_receive(link, &go, 1)) {
		for (uint64_t offset = 0; offset < options->bytes; offset += options->chunk) {
			uint64_t left = options->bytes - offset;
			link_send(link, memory + offset,
				  left < options->chunk ? left : options->chunk);
		}
	}
	exit(0);
}

static double receive_all(int link, uint8_t *staging, const struct options *options)
{
	uint64_t start = clock_ns();
	link_send(link, "g", 1);
	for (uint64_t left = options->bytes; left;) {
		uint64_t part = left < options->staging ? left : options->staging;
		if (!link_receive(link, staging, part))
			program_usage("the sender went away");
		left -= part;
	}
	return (double)options->bytes / (double)(clock_ns() - start);
}

static struct options parse(int count, char **arguments)
{
	struct options options = {.bytes = GIB(2), .staging = KIB(256), .chunk = MIB(1), .runs = 3};
	static const struct option names[] = {{"bytes", required_argument, NULL, 'b'},
					      {"staging", required_argument, NULL, 's'},
					      {"chunk", required_argument, NULL, 'c'},
					      {"runs", required_argument, NULL, 'r'},
					      {"listen", required_argument, NULL, 'l'},
					      {"through", required_argument, NULL, 't'},
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
		case 's':
			options.staging = program_bytes(optarg);
			break;
		case 'c':
			options.chunk = program_bytes(optarg);
			break;
		case 'r':
			options.runs = program_count(optarg, 1);
			break;
		case 'l':
			options.listen = program_count(optarg, 1);
			break;
		case 't':
			options.through = program_count(optarg, 1);
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
	if (!options.bytes || options.bytes % 4096 || !options.staging || !options.chunk ||
	    options.runs > RUNS_MAX || optind < count)
		program_usage("sizes must be whole pages, runs at most %d", RUNS_MAX);
	if (options.listen > UINT16_MAX || options.through > UINT16_MAX)
		program_usage("a port is at most %d", UINT16_MAX);
	return options;
}

int main(int count, char **arguments)
{
	struct options options = parse(count, arguments);
	uint16_t port = (uint16_t)options.listen;
	int listener = port ? link_listen_at(port) : link_listen(&port);
	if (options.through)
		port = (uint16_t)options.through;
	if (program_fork() == 0)
		source(port, &options);
	program_pin(options.target_cpus);
	int link = link_accept(listener);
	uint8_t *staging = mmap(NULL, options.staging, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (staging == MAP_FAILED)
		program_fail("staging buffer");

	static double samples[RUNS_MAX];
	receive_all(link, staging, &options); /* opens the TCP window, warms both sides up */
	for (uint64_t run = 0; run < options.runs; run++)
		samples[run] = receive_all(link, staging, &options);

	json_t *report = report_begin("ceiling");
	json_object_set_new(report, "bytes", json_integer((json_int_t)options.bytes));
	json_object_set_new(report, "staging_bytes", json_integer((json_int_t)options.staging));
	json_object_set_new(report, "source_cpus",
			    json_string(options.source_cpus ? options.source_cpus : "any"));
	json_object_set_new(report, "target_cpus",
			    json_string(options.target_cpus ? options.target_cpus : "any"));
	json_object_set_new(report, "gb_per_s", json_real(report_median(samples, options.runs)));
	json_object_set_new(report, "samples_gb_per_s", report_values(samples, options.runs));
	report_print(report);
	return 0;
}
