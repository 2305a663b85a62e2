/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that a switchover can cost: saving the vCPUs, restoring them elsewhere, and round trips
 * between the two sides.
 *
 * Theory of operation
 *
 * Two VMs with as many vCPUs exist beforehand, as they do in a migration. The state of each vCPU of
 * the first is read and written to its counterpart in the second; a small message goes to a second
 * process and back over loopback TCP, as often as a handoff needs it. The parts are timed apart,
 * many times, and the floor is the sum of their medians.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "bench/floors/guest.h"
#include "bench/floors/link.h"
#include "bench/floors/program.h"
#include "bench/floors/report.h"

#define RUNS_MAX      10000
#define MESSAGE_BYTES 64

static const char help[] =
	"Usage: jaunt-floor-switchover [OPTION...]\n"
	"Measures vCPU save, restore and loopback round trips; one JSON object.\n\n"
	"  --vcpus N            vCPUs of the VM (default 2)\n"
	"  --round-trips N      round trips that a handoff needs (default 2)\n"
	"  --runs N             repeat N times (default 200)\n"
	"  --source-cpus LIST   run the echoing process on these CPUs\n"
	"  --target-cpus LIST   run the measuring process on these CPUs\n";

struct options {
	uint64_t vcpus, round_trips, runs;
	const char *source_cpus, *target_cpus;
};

struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_mp_state mp_state;
};

/* What is saved, and the order in which it is restored. */
static const struct part {
	unsigned long get, set;
	size_t offset;
	const char *name;
} parts[] = {
	{KVM_GET_SREGS, KVM_SET_SREGS, offsetof(struct vcpu_state, sregs), "special registers"},
	{KVM_GET_REGS, KVM_SET_REGS, offsetof(struct vcpu_state, regs), "registers"},
	{KVM_GET_XCRS, KVM_SET_XCRS, offsetof(struct vcpu_state, xcrs), "XCR0"},
	{KVM_GET_XSAVE, KVM_SET_XSAVE, offsetof(struct vcpu_state, xsave), "extended state"},
	{KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, offsetof(struct vcpu_state, events), "events"},
	{KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, offsetof(struct vcpu_state, debugregs),
	 "debug registers"},
	{KVM_GET_MP_STATE, KVM_SET_MP_STATE, offsetof(struct vcpu_state, mp_state), "run state"},
};

static void save(const struct guest *guest, unsigned vcpu, struct vcpu_state *state)
{
	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		if (ioctl(guest->vcpus[vcpu].fd, parts[i].get, (char *)state + parts[i].offset))
			program_fail("save %s", parts[i].name);
}

static void restore(const struct guest *guest, unsigned vcpu, struct vcpu_state *state)
{
	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		if (ioctl(guest->vcpus[vcpu].fd, parts[i].set, (char *)state + parts[i].offset))
			program_fail("restore %s", parts[i].name);
}

static void echo(int listener, const struct options *options)
{
	program_pin(options->source_cpus);
	int link = link_accept(listener);
	char message[MESSAGE_BYTES];
	while (link_receive(link, message, sizeof(message)))
		link_send(link, message, sizeof(message));
	exit(0);
}

static double us_since(uint64_t start)
{
	return (double)(clock_ns() - start) / 1000;
}

static struct options parse(int count, char **arguments)
{
	struct options options = {.vcpus = 2, .round_trips = 2, .runs = 200};
	static const struct option names[] = {{"vcpus", required_argument, NULL, 'v'},
					      {"round-trips", required_argument, NULL, 't'},
					      {"runs", required_argument, NULL, 'r'},
					      {"source-cpus", required_argument, NULL, 'S'},
					      {"target-cpus", required_argument, NULL, 'T'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	int option;
	while ((option = getopt_long(count, arguments, "", names, NULL)) != -1) {
		switch (option) {
		case 'v':
			options.vcpus = program_count(optarg, 1);
			break;
		case 't':
			options.round_trips = program_count(optarg, 0);
			break;
		case 'r':
			options.runs = program_count(optarg, 1);
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
	if (options.vcpus > GUEST_VCPUS || options.runs > RUNS_MAX || optind < count)
		program_usage("at most %d vCPUs and %d runs", GUEST_VCPUS, RUNS_MAX);
	return options;
}

int main(int count, char **arguments)
{
	struct options options = parse(count, arguments);
	uint16_t port;
	int listener = link_listen(&port);
	if (program_fork() == 0)
		echo(listener, &options);
	program_pin(options.target_cpus);
	int link = link_connect(port);
	unsigned vcpus = (unsigned)options.vcpus;
	static struct guest from, to;
	guest_open(&from, vcpus, NULL, 0);
	guest_open(&to, vcpus, NULL, 0);
	guest_prepare(&from, 1, 0, 0, 0, 1);
	guest_prepare(&to, 1, 0, 0, 0, 1);

	static double saves[RUNS_MAX], restores[RUNS_MAX], trips[RUNS_MAX];
	static struct vcpu_state states[GUEST_VCPUS];
	for (uint64_t run = 0; run < options.runs; run++) {
		uint64_t start = clock_ns();
		for (unsigned vcpu = 0; vcpu < vcpus; vcpu++)
			save(&from, vcpu, &states[vcpu]);
		saves[run] = us_since(start);
		start = clock_ns();
		for (unsigned vcpu = 0; vcpu < vcpus; vcpu++)
			restore(&to, vcpu, &states[vcpu]);
		restores[run] = us_since(start);
		char message[MESSAGE_BYTES] = {0};
		start = clock_ns();
		link_send(link, message, sizeof(message));
		if (!link_receive(link, message, sizeof(message)))
			program_usage("the echoing process went away");
		trips[run] = us_since(start);
	}

	double saving = report_median(saves, options.runs);
	double restoring = report_median(restores, options.runs);
	double trip = report_median(trips, options.runs);
	json_t *report = report_begin("switchover");
	json_object_set_new(report, "vcpus", json_integer(vcpus));
	json_object_set_new(report, "round_trips", json_integer((json_int_t)options.round_trips));
	json_object_set_new(report, "save_us", json_real(saving));
	json_object_set_new(report, "restore_us", json_real(restoring));
	json_object_set_new(report, "round_trip_us", json_real(trip));
	json_object_set_new(report, "floor_us",
			    json_real(saving + restoring + (double)options.round_trips * trip));
	json_object_set_new(report, "round_trips_us", report_percentiles(trips, options.runs));
	report_print(report);
	return 0;
}
