/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What dirty tracking costs: a guest of the built-in VM runs without tracking, with it, and without
 * it again, while rounds collect what it wrote and send nothing. One line of JSON: guest throughput
 * in each part, what starting, collecting and stopping took, and what a collect took while the VM
 * stood still.
 */
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "bench/floors/program.h"
#include "bench/floors/report.h"
#include "engine/source/tracker.h"
#include "vmm/microvm/microvm.h"

#define ROUNDS_MOST 4096

struct run {
	struct microvm *vm;
	struct guestmem memory;
	struct dirty dirty;
	struct tracker *tracker;
	double collect_us[ROUNDS_MOST], pages[ROUNDS_MOST];
	size_t rounds;
};

static void check(int result, const struct jaunt_error *error)
{
	if (result >= 0)
		return;
	fprintf(stderr, "jaunt-bench-tracking: %s\n", error->text);
	exit(1);
}

static void nap(double ms)
{
	struct timespec time = {(time_t)(ms / 1e3), (long)((ms - 1e3 * (long)(ms / 1e3)) * 1e6)};
	nanosleep(&time, NULL);
}

static uint64_t operations(struct run *run)
{
	struct microvm_account account;
	struct jaunt_error error;
	check(microvm_account(run->vm, &account, &error), &error);
	uint64_t operations = account.operations;
	microvm_account_free(&account);
	return operations;
}

static double collect_us(struct run *run, bool running)
{
	struct jaunt_error error;
	uint64_t before = clock_ns();
	check(tracker_collect(run->tracker, running, &error), &error);
	return (double)(clock_ns() - before) / 1e3;
}

/* Operations a second over that time; with `rounds`, collecting so often. */
static double throughput(struct run *run, double ms, double round_ms)
{
	uint64_t from = operations(run), before = clock_ns();
	while (round_ms > 0 && (double)(clock_ns() - before) < ms * 1e6) {
		nap(round_ms);
		if (run->rounds == ROUNDS_MOST)
			continue;
		run->collect_us[run->rounds] = collect_us(run, true);
		run->pages[run->rounds++] = (double)dirty_count_all(&run->dirty);
		dirty_clear(&run->dirty);
	}
	if (round_ms <= 0)
		nap(ms);
	return (double)(operations(run) - from) * 1e9 / (double)(clock_ns() - before);
}

static void measure(struct run *run, double ms, double round_ms, double settle_ms, json_t *report)
{
	struct jaunt_error error;
	uint64_t ignored;
	double base = throughput(run, ms, 0);
	uint64_t before = clock_ns();
	check(tracker_start(run->tracker, &error), &error);
	double start_us = (double)(clock_ns() - before) / 1e3;
	double with = throughput(run, ms, round_ms);
	nap(round_ms); /* what a last round would find */
	check(microvm_ops.pause(run->vm, &ignored, &error), &error);
	double paused_us = collect_us(run, false);
	double paused_pages = (double)dirty_count_all(&run->dirty);
	check(microvm_ops.resume(run->vm, &ignored, &error), &error);
	before = clock_ns();
	check(tracker_stop(run->tracker, &error), &error);
	double stop_us = (double)(clock_ns() - before) / 1e3;
	double right_after = throughput(run, ms / 10, 0), after = throughput(run, ms, 0);
	nap(settle_ms);
	double settled = throughput(run, ms, 0);
	json_object_set_new(report, "operations_per_s", json_real(base));
	json_object_set_new(report, "ratio_during", json_real(with / base));
	json_object_set_new(report, "ratio_right_after", json_real(right_after / base));
	json_object_set_new(report, "ratio_after", json_real(after / base));
	json_object_set_new(report, "ratio_settled", json_real(settled / base));
	json_object_set_new(report, "start_us", json_real(start_us));
	json_object_set_new(report, "stop_us", json_real(stop_us));
	json_object_set_new(report, "first_collect_us", json_real(run->collect_us[0]));
	json_object_set_new(report, "collect_us",
			    json_real(report_median(run->collect_us, run->rounds)));
	json_object_set_new(report, "pages", json_real(report_median(run->pages, run->rounds)));
	json_object_set_new(report, "paused_collect_us", json_real(paused_us));
	json_object_set_new(report, "paused_pages", json_real(paused_pages));
}

static const char help[] =
	"usage: jaunt-bench-tracking --tracker log|ring|write-protect|soft-dirty [OPTION...]\n"
	"\n"
	"A guest runs without dirty tracking, with it while rounds collect, and without it again; "
	"nothing\n"
	"is sent. One line of JSON: its throughput in each part as ratios to the first, and times "
	"in us.\n"
	"\n"
	"  --memory SIZE      of the guest (default: 1G)\n"
	"  --vcpus N          (default: 1)\n"
	"  --huge             pages of 2 MiB\n"
	"  --workload TEXT    as of `jaunt vm run` (default: random)\n"
	"  --round-ms N       a collect so often (default: 100)\n"
	"  --ms N             how long each part takes (default: 2000)\n"
	"  --settle-ms N      after it, before the guest is taken to have recovered (default: "
	"4000)\n"
	"  --thread-backed    vCPUs on threads, without KVM\n";

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"tracker", 1, NULL, 't'},  {"memory", 1, NULL, 'm'},
		{"vcpus", 1, NULL, 'v'},    {"huge", 0, NULL, 'h'},
		{"workload", 1, NULL, 'w'}, {"round-ms", 1, NULL, 'r'},
		{"ms", 1, NULL, 'd'},       {"thread-backed", 0, NULL, 'b'},
		{"help", 0, NULL, 'H'},     {"settle-ms", 1, NULL, 's'},
		{NULL, 0, NULL, 0}};
	struct microvm_config config = {.name = "bench",
					.memory_bytes = UINT64_C(1) << 30,
					.vcpus = 1,
					.page_bytes = 4096,
					.workload = "random"};
	const char *name = NULL;
	double ms = 2000, round_ms = 100, settle_ms = 4000;
	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (option == 't')
			name = optarg;
		else if (option == 'm')
			config.memory_bytes = program_bytes(optarg);
		else if (option == 'v')
			config.vcpus = (unsigned)program_count(optarg, 1);
		else if (option == 'h')
			config.page_bytes = 2 << 20;
		else if (option == 'w')
			config.workload = optarg;
		else if (option == 'r')
			round_ms = (double)program_count(optarg, 1);
		else if (option == 'd')
			ms = (double)program_count(optarg, 1);
		else if (option == 's')
			settle_ms = (double)program_count(optarg, 0);
		else if (option == 'b')
			config.thread_backed = true;
		else if (option == 'H')
			return fputs(help, stdout) < 0;
		else
			program_usage("unknown option");
	}
	enum tracker_kind kind = TRACKER_DRIVER;
	if (!name)
		program_usage("which tracker?");
	if (strcmp(name, "ring") == 0)
		config.tracking = MICROVM_DIRTY_RING;
	else if (strcmp(name, "log") != 0 && !tracker_kind_parse(name, &kind))
		program_usage("there is no tracker \"%s\"", name);

	static struct run run;
	struct jaunt_error error;
	struct jaunt_description description;
	check(microvm_create(&run.vm, &config, &error), &error);
	check(microvm_start(run.vm, &error), &error);
	check(microvm_wait_ready(run.vm, 60000, &error), &error);
	check(microvm_ops.describe(run.vm, &description, &error), &error);
	check(guestmem_open(&run.memory, &description, false, &error), &error);
	if (dirty_open(&run.dirty, &run.memory) < 0)
		program_fail("the map of dirty pages");
	check(tracker_open(&run.tracker, kind, &microvm_ops, run.vm, &run.memory, &run.dirty,
			   &error),
	      &error);
	json_t *report = report_begin("tracking");
	json_object_set_new(report, "tracker", json_string(name));
	measure(&run, ms, round_ms, settle_ms, report);
	report_print(report);
	tracker_close(run.tracker);
	dirty_close(&run.dirty);
	guestmem_close(&run.memory);
	microvm_destroy(run.vm);
	return 0;
}
