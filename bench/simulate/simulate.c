/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks the engine's policy about migrations that never happen: recorded ones, simulated ones, and a
 * sweep of simulated ones that shows whether `auto` keeps its promises. Links the policy that the
 * engine has; nothing is written twice.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "bench/floors/program.h"
#include "bench/simulate/replay.h"
#include "bench/simulate/sweep.h"
#include "engine/source/estimate.h"

static const char help[] =
	"Usage: jaunt-simulate [OPTION...]\n"
	"Simulates a migration in every mode and prints what each would cost.\n\n"
	"  --ram SIZE             guest memory (default 4G)\n"
	"  --data SIZE            of it, what is no hole (default: all)\n"
	"  --working-set SIZE     what the guest writes again and again (default: half of the "
	"data)\n"
	"  --dirty-rate SIZE      bytes of pages that it writes a second (default 100M)\n"
	"  --hot N                per cent of the writes that go to a tenth of the working set "
	"(default: all alike)\n"
	"  --touches N            pages that it touches for each that it writes (default 2)\n"
	"  --bandwidth SIZE       of the link, bytes a second (default 1250000000)\n"
	"  --limit-bandwidth SIZE of the streams, bytes a second (default: none)\n"
	"  --round-trip-us N      (default 100)\n"
	"  --vcpus N              (default 2)\n"
	"  --cpus N               that they run on (default: each its own)\n"
	"  --paced                it has time to spare, and keeps that rate where it can\n"
	"  --every N              one page in so many is looked at first (default 16; 0: all)\n"
	"  --downtime-limit-ms N  (default 300, 0: none)\n"
	"  --total-limit-ms N     (default: none)\n"
	"  --max-rounds N         (default 30)\n"
	"  --no-post-copy         never run there with pages missing\n"
	"  --noise N              per cent that rates vary by (default 0)\n"
	"  --explain MODE         every decision of that mode\n"
	"  --json                 one JSON object instead of a table\n\n"
	"  --trace FILE           instead: decisions recorded by `jaunt migrate --trace`, asked "
	"again\n"
	"  --sweep                instead: all modes in many cells; fails if auto breaks a "
	"promise\n";

struct options {
	struct sweep_cell cell;
	const char *trace;
	bool sweep, json, explain;
	double hot; /* share of the writes */
	enum policy_mode explained;
};

static void init(struct options *options)
{
	struct world *world = &options->cell.world;

	memset(options, 0, sizeof(*options));
	policy_limits_init(&options->cell.limits);
	policy_costs_init(&world->costs);
	options->cell.limits.max_rounds = 30;
	world->ram_bytes = GIB(4);
	world->page_bytes = 4096;
	world->vcpus = 2;
	world->every = 16;
	world->set_count = 1;
	world->sets[0].rate = 100e6;
	world->bandwidth = 1.25e9;
	world->round_trip_ns = 100e3;
	world->seed = 1;
}

enum {
	RAM = 1,
	DATA,
	SET,
	RATE,
	TOUCHES,
	BANDWIDTH,
	CAP,
	RTT,
	VCPUS,
	CPUS,
	PACED,
	EVERY,
	DOWNTIME,
	TOTAL,
	ROUNDS,
	NO_POSTCOPY,
	NOISE,
	HOT,
	EXPLAIN,
	JSON,
	TRACE,
	SWEEP,
	HELP
};

static const struct option long_options[] = {
	{"ram", required_argument, NULL, RAM},
	{"data", required_argument, NULL, DATA},
	{"working-set", required_argument, NULL, SET},
	{"dirty-rate", required_argument, NULL, RATE},
	{"hot", required_argument, NULL, HOT},
	{"touches", required_argument, NULL, TOUCHES},
	{"bandwidth", required_argument, NULL, BANDWIDTH},
	{"limit-bandwidth", required_argument, NULL, CAP},
	{"round-trip-us", required_argument, NULL, RTT},
	{"vcpus", required_argument, NULL, VCPUS},
	{"cpus", required_argument, NULL, CPUS},
	{"paced", no_argument, NULL, PACED},
	{"every", required_argument, NULL, EVERY},
	{"downtime-limit-ms", required_argument, NULL, DOWNTIME},
	{"total-limit-ms", required_argument, NULL, TOTAL},
	{"max-rounds", required_argument, NULL, ROUNDS},
	{"no-post-copy", no_argument, NULL, NO_POSTCOPY},
	{"noise", required_argument, NULL, NOISE},
	{"explain", required_argument, NULL, EXPLAIN},
	{"json", no_argument, NULL, JSON},
	{"trace", required_argument, NULL, TRACE},
	{"sweep", no_argument, NULL, SWEEP},
	{"help", no_argument, NULL, HELP},
	{NULL, 0, NULL, 0},
};

static void take(struct options *options, int key)
{
	struct world *world = &options->cell.world;
	struct policy_limits *limits = &options->cell.limits;

	switch (key) {
	case RAM:
		world->ram_bytes = program_bytes(optarg);
		break;
	case DATA:
		world->data_bytes = program_bytes(optarg);
		break;
	case SET:
		world->sets[0].bytes = (double)program_bytes(optarg);
		break;
	case RATE:
		world->sets[0].rate = (double)program_bytes(optarg);
		break;
	case HOT:
		options->hot = (double)program_count(optarg, 0) / 100;
		break;
	case TOUCHES:
		world->costs.touches = (double)program_count(optarg, 1);
		break;
	case BANDWIDTH:
		world->bandwidth = (double)program_bytes(optarg);
		break;
	case CAP:
		limits->bandwidth = (double)program_bytes(optarg);
		break;
	case RTT:
		world->round_trip_ns = (double)program_count(optarg, 0) * 1e3;
		break;
	case VCPUS:
		world->vcpus = (unsigned)program_count(optarg, 1);
		break;
	case CPUS:
		world->cpus = (unsigned)program_count(optarg, 1);
		break;
	case PACED:
		world->paced = true;
		break;
	case EVERY:
		world->every = (unsigned)program_count(optarg, 0);
		break;
	case DOWNTIME:
		limits->downtime_ns = program_count(optarg, 0) * 1000000;
		break;
	case TOTAL:
		limits->total_ns = program_count(optarg, 0) * 1000000;
		break;
	case ROUNDS:
		limits->max_rounds = (unsigned)program_count(optarg, 0);
		break;
	case NO_POSTCOPY:
		limits->no_postcopy = true;
		break;
	case NOISE:
		world->noise = (double)program_count(optarg, 0) / 100;
		break;
	case EXPLAIN:
		options->explain = true;
		if (!policy_mode_parse(optarg, &options->explained))
			program_usage("there is no mode \"%s\"", optarg);
		break;
	case JSON:
		options->json = true;
		break;
	case TRACE:
		options->trace = optarg;
		break;
	case SWEEP:
		options->sweep = true;
		break;
	case HELP:
		fputs(help, stdout);
		exit(0);
	default:
		program_usage("try --help");
	}
}

static void parse(struct options *options, int argc, char **argv)
{
	struct world *world = &options->cell.world;
	int key;

	init(options);
	while ((key = getopt_long(argc, argv, "", long_options, NULL)) != -1)
		take(options, key);
	if (optind < argc)
		program_usage("what is \"%s\"? try --help", argv[optind]);
	if (!world->data_bytes)
		world->data_bytes = world->ram_bytes;
	if (world->sets[0].bytes <= 0)
		world->sets[0].bytes = (double)world->data_bytes / 2;
	if (world->data_bytes < 4096 || world->data_bytes > world->ram_bytes ||
	    world->sets[0].bytes > (double)world->data_bytes)
		program_usage("the working set must fit into the data, and the data into the RAM");
	if (world->bandwidth <= 0)
		program_usage("a bandwidth of 0 moves nothing");
	if (options->hot < 0 || options->hot > 1)
		program_usage("--hot is a share of the writes, 0 to 100 per cent");
	if (options->sweep && options->hot > 0)
		program_usage("the cells of --sweep have guests of their own: no --hot");
	if (options->hot > 0)
		world_split(world, 0.1, options->hot);
	world->device_ns = estimate_device_ns(world->vcpus);
}

static int replay(const char *path)
{
	struct replay_count count;
	int result = replay_file(path, stdout, &count);

	if (result < 0) {
		errno = -result;
		program_fail("read %s", path);
	}
	printf("%u decisions, %u different, %u lines broken\n", count.decisions, count.different,
	       count.broken);
	return count.different || count.broken || !count.decisions;
}

static int sweep(double noise)
{
	struct sweep_count count;

	sweep_all(noise, stdout, &count);
	printf("%u cells; limits kept by some fixed mode in %u, there missed by auto in %u; auto "
	       "more than 10 %% dearer than the best in %u; forbidden done in %u; worst ratio "
	       "%.2f\n",
	       count.cells, count.reachable, count.missed, count.dearer, count.forbidden,
	       count.worst_ratio);
	return count.missed || count.forbidden || count.dearer * 10 > count.reachable;
}

static void explain(void *context, const struct policy_input *input,
		    const struct policy_decision *decision)
{
	(void)context;
	printf("%10.1f ms  round %2u%c  left %7.1f MB  dirty %7.1f MB  %6.0f MB/s (%.2f) of %7.1f "
	       "MB  link %6.0f MB/s  %-8s  %s\n",
	       (double)input->elapsed_ns / 1e6, input->round, input->round_ended ? '.' : ' ',
	       (double)input->left_bytes / 1e6, (double)input->dirty_bytes / 1e6,
	       input->dirty_rate / 1e6, input->dirty_confidence, input->working_set / 1e6,
	       input->bandwidth / 1e6, policy_action_name(decision->action), decision->reason);
}

static void print_json(const struct sweep_row *row)
{
	printf("{\"schema\":\"jaunt.simulation/1\",\"modes\":{");
	for (unsigned i = 0; i < POLICY_MODES; i++) {
		const struct world_result *mode = &row->modes[i];
		printf("%s\"%s\":{\"end\":\"%s\",\"in_limits\":%s,\"rounds\":%u,\"downtime_ms\":"
		       "%.3f,\"stall_ms\":%.3f,\"total_ms\":%.3f,\"cost_ms\":%.3f,\"sent_bytes\":"
		       "%.0f}",
		       i ? "," : "", policy_mode_name((enum policy_mode)i),
		       policy_action_name(mode->end), row->possible[i] ? "true" : "false",
		       mode->rounds, mode->downtime_ns / 1e6, mode->stall_ns / 1e6,
		       mode->total_ns / 1e6, mode->cost_ns / 1e6, mode->sent_bytes);
	}
	printf("}}\n");
}

static void print_table(const struct sweep_row *row)
{
	printf("%-14s %-8s %6s %12s %12s %12s %12s %10s\n", "mode", "end", "rounds", "downtime ms",
	       "stall ms", "total ms", "cost ms", "sent MB");
	for (unsigned i = 0; i < POLICY_MODES; i++) {
		const struct world_result *mode = &row->modes[i];
		printf("%-14s %-8s %6u %12.1f %12.1f %12.1f %12.1f %10.0f%s\n",
		       policy_mode_name((enum policy_mode)i), policy_action_name(mode->end),
		       mode->rounds, mode->downtime_ns / 1e6, mode->stall_ns / 1e6,
		       mode->total_ns / 1e6, mode->cost_ns / 1e6, mode->sent_bytes / 1e6,
		       row->possible[i] ? "" : "  breaks a limit");
	}
}

int main(int argc, char **argv)
{
	struct options options;
	struct sweep_row row;

	parse(&options, argc, argv);
	if (options.trace)
		return replay(options.trace);
	if (options.sweep)
		return sweep(options.cell.world.noise);
	if (options.explain) {
		struct world_result result;
		world_run(&options.cell.world, options.explained, &options.cell.limits, explain,
			  NULL, &result);
		return 0;
	}
	sweep_row(&options.cell, &row);
	if (options.json)
		print_json(&row);
	else
		print_table(&row);
	return 0;
}
