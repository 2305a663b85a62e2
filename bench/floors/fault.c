/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that a demand fault of a vCPU over the network can cost.
 *
 * Theory of operation
 *
 * A second process holds the pages. Here, vCPUs touch pages of registered memory at random and at
 * full rate; one thread reads the userfaultfd, asks the other process for the page over TCP with
 * blocking calls, and copies it in: four system calls a fault, no page map, no protocol, no
 * bookkeeping. Each vCPU times its touches with its own time stamp counter; counted are those that
 * took longer than a threshold and whose page this side has fetched: the first on each page. Every
 * vCPU has pages of its own, as the guests have that this is compared with.
 *
 * With --push another connection streams memory beside it, received by one more thread into a
 * staging buffer of 256 KiB and copied in behind the working set, as fast as it will go, from the
 * moment the vCPUs start until all of it is there; then the measurement ends.
 *
 * There are as many busy threads here as in a migration of a VM with as many vCPUs: the vCPUs, one
 * fault thread, one serving thread at the source, and with --push one thread on each side of the
 * stream. Where they run decides much of the result, so --pin places each role and the report
 * says so.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "bench/floors/guest.h"
#include "bench/floors/link.h"
#include "bench/floors/memory.h"
#include "bench/floors/program.h"
#include "bench/floors/report.h"

#define PAGE      4096u
#define RUN_BYTES KIB(256)

enum role { SOURCE, SOURCE_BULK, VCPU, HANDLER, BULK, ROLES };

static const char *const role_names[ROLES] = {"source", "source-bulk", "vcpu", "handler", "bulk"};

static const char help[] =
	"Usage: jaunt-floor-fault [OPTION...]\n"
	"Measures remote demand faults of vCPUs, done the barest way; one JSON object.\n\n"
	"  --vcpus N            vCPUs that touch pages at full rate (default 2)\n"
	"  --working-set N      bytes that they touch (default 512M)\n"
	"  --faults N           stop after N faults (default: when all of it is there)\n"
	"  --push               stream beside it, and stop when the stream ends\n"
	"  --bulk N             bytes of that stream (default 1G)\n"
	"  --bulk-nice N        nice value of the threads of that stream (default 0)\n"
	"  --threshold-us N     do not count touches that took less (default 2)\n"
	"  --dwell-us N         work between two touches (default 0)\n"
	"  --pin ROLE=CPUS      run a role on these CPUs; roles: source, source-bulk, vcpu,\n"
	"                       handler, bulk. Repeat for others\n"
	"  --seed N             of the random order (default 1)\n"
	"  --samples            put every counted touch into the report, in microseconds\n";

struct options {
	uint64_t vcpus, working_set, faults, bulk, seed;
	double threshold_us, dwell_us;
	int bulk_nice;
	bool push, samples;
	const char *cpus[ROLES];
};

struct request {
	uint64_t offset, bytes; /* more than one page: a stream */
};

/* The head is as long as that of Jaunt's frames. */
struct reply {
	uint64_t offset, unused[3];
	uint8_t page[PAGE];
};

/* Of the calling thread alone: Linux keeps it by thread. */
static void be_nice(const struct options *options)
{
	if (options->bulk_nice && setpriority(PRIO_PROCESS, 0, options->bulk_nice))
		program_fail("nice %d", options->bulk_nice);
}

/* --- The process that holds the pages --------------------------------------------------------- */

struct serving {
	const struct options *options;
	const uint8_t *memory;
	int link;
};

static void *serve(void *argument)
{
	struct serving *serving = argument;
	struct request request;
	while (link_receive(serving->link, &request, sizeof(request))) {
		if (request.bytes == PAGE) {
			uint64_t head[4] = {request.offset};
			link_send_two(serving->link, head, sizeof(head),
				      serving->memory + request.offset, PAGE);
			continue;
		}
		program_pin(serving->options->cpus[SOURCE_BULK]);
		be_nice(serving->options);
		for (uint64_t done = 0; done < request.bytes; done += RUN_BYTES)
			link_send(serving->link, serving->memory + request.offset + done,
				  RUN_BYTES);
	}
	return NULL;
}

static void source(int listener, const struct options *options)
{
	program_pin(options->cpus[SOURCE]);
	uint64_t bytes = options->working_set + (options->push ? options->bulk : 0);
	static struct serving servings[2];
	static pthread_t threads[2];
	const uint8_t *memory = memory_source(bytes);
	unsigned links = options->push ? 2 : 1;
	for (unsigned i = 0; i < links; i++) {
		servings[i] = (struct serving){options, memory, link_accept(listener)};
		if (pthread_create(&threads[i], NULL, serve, &servings[i]))
			program_fail("start serving");
	}
	for (unsigned i = 0; i < links; i++)
		pthread_join(threads[i], NULL);
	exit(0);
}

/* --- The process that faults ------------------------------------------------------------------ */

struct target {
	const struct options *options;
	struct memory memory;
	struct guest guest;
	int demand_link, bulk_link;
	uint64_t faults, faults_wanted;
	uint8_t *demanded; /* one byte a page: fetched by a fault */
	sem_t done;
	double bulk_gb_per_s;
};

/* Asks for the page of a fault, unless another vCPU's fault did: one reply wakes both. */
static unsigned ask_for_page(struct target *target, const struct uffd_msg *message)
{
	struct request request = {.offset = (message->arg.pagefault.address & -(uint64_t)PAGE) -
					    (uintptr_t)target->memory.view,
				  .bytes = PAGE};
	if (target->demanded[request.offset / PAGE]++)
		return 0;
	link_send(target->demand_link, &request, sizeof(request));
	return 1;
}

static void take_reply(struct target *target)
{
	static struct reply reply;
	if (!link_receive(target->demand_link, &reply, sizeof(reply)))
		program_usage("the page server went away");
	memory_copy(&target->memory, reply.offset, reply.page, PAGE);
	if (++target->faults == target->faults_wanted)
		sem_post(&target->done);
}

static void *handle_faults(void *argument)
{
	struct target *target = argument;
	struct pollfd ready[2] = {{.fd = target->memory.uffd, .events = POLLIN},
				  {.fd = target->demand_link, .events = POLLIN}};
	struct uffd_msg messages[16];
	unsigned asked = 0;
	for (;;) {
		if (poll(ready, asked ? 2 : 1, -1) < 0 && errno != EINTR)
			program_fail("wait for faults");
		if (asked && ready[1].revents) {
			take_reply(target);
			asked--;
		}
		if (!ready[0].revents)
			continue;
		ssize_t got = read(target->memory.uffd, messages, sizeof(messages));
		if (got < 0 && errno != EAGAIN)
			program_fail("read the userfaultfd");
		for (ssize_t i = 0; i < got / (ssize_t)sizeof(*messages); i++)
			asked += ask_for_page(target, &messages[i]);
	}
	return NULL;
}

static void *receive_bulk(void *argument)
{
	struct target *target = argument;
	const struct options *options = target->options;
	uint8_t *staging = mmap(NULL, RUN_BYTES, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (staging == MAP_FAILED)
		program_fail("staging buffer");
	struct request request = {options->working_set, options->bulk};
	be_nice(options);
	uint64_t start = clock_ns();
	link_send(target->bulk_link, &request, sizeof(request));
	for (uint64_t done = 0; done < options->bulk; done += RUN_BYTES) {
		if (!link_receive(target->bulk_link, staging, RUN_BYTES))
			program_usage("the page server went away");
		memory_copy(&target->memory, options->working_set + done, staging, RUN_BYTES);
	}
	target->bulk_gb_per_s = (double)options->bulk / (double)(clock_ns() - start);
	sem_post(&target->done);
	return NULL;
}

static void start_thread(void *(*work)(void *), struct target *target, enum role role)
{
	pthread_t thread;
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	program_pin_attributes(&attributes, target->options->cpus[role]);
	if (pthread_create(&thread, &attributes, work, target))
		program_fail("start a thread");
	pthread_attr_destroy(&attributes);
	pthread_detach(thread);
}

/* Microseconds of the first touch of each vCPU on each demanded page. */
static double *collect(const struct target *target, size_t *count)
{
	uint64_t pages = target->options->working_set / PAGE;
	double *touches = malloc((pages * target->options->vcpus + 1) * sizeof(*touches));
	uint8_t *seen = malloc(pages);
	if (!touches || !seen)
		program_fail("collect");
	*count = 0;
	for (unsigned vcpu = 0; vcpu < target->options->vcpus; vcpu++) {
		size_t logged;
		const struct guest_touch *log = guest_log(&target->guest, vcpu, &logged);
		memset(seen, 0, pages);
		for (size_t i = 0; i < logged; i++) {
			if (!target->demanded[log[i].page] || seen[log[i].page]++)
				continue;
			touches[(*count)++] = (double)log[i].cycles / target->guest.cycles_per_us;
		}
		if (target->guest.vcpus[vcpu].task->wrong)
			program_usage("vCPU %u read %lu wrong pages", vcpu,
				      target->guest.vcpus[vcpu].task->wrong);
	}
	free(seen);
	return touches;
}

/* --- The program ------------------------------------------------------------------------------ */

static void pin_role(struct options *options, char *text)
{
	char *cpus = strchr(text, '=');
	if (cpus) {
		*cpus++ = 0;
		for (enum role role = 0; role < ROLES; role++) {
			if (!strcmp(text, role_names[role])) {
				options->cpus[role] = cpus;
				return;
			}
		}
	}
	program_usage("--pin wants ROLE=CPUS, not %s", text);
}

static struct options parse(int count, char **arguments)
{
	struct options options = {
		.vcpus = 2, .working_set = MIB(512), .bulk = GIB(1), .threshold_us = 2, .seed = 1};
	static const struct option names[] = {{"vcpus", required_argument, NULL, 'v'},
					      {"working-set", required_argument, NULL, 'w'},
					      {"faults", required_argument, NULL, 'f'},
					      {"push", no_argument, NULL, 'p'},
					      {"bulk", required_argument, NULL, 'b'},
					      {"bulk-nice", required_argument, NULL, 'N'},
					      {"threshold-us", required_argument, NULL, 't'},
					      {"dwell-us", required_argument, NULL, 'd'},
					      {"pin", required_argument, NULL, 'i'},
					      {"seed", required_argument, NULL, 'e'},
					      {"samples", no_argument, NULL, 's'},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	int option;
	while ((option = getopt_long(count, arguments, "", names, NULL)) != -1) {
		switch (option) {
		case 'v':
			options.vcpus = program_count(optarg, 1);
			break;
		case 'w':
			options.working_set = program_bytes(optarg);
			break;
		case 'f':
			options.faults = program_count(optarg, 1);
			break;
		case 'p':
			options.push = true;
			break;
		case 'b':
			options.bulk = program_bytes(optarg);
			break;
		case 'N':
			options.bulk_nice = (int)program_count(optarg, 0);
			break;
		case 't':
			options.threshold_us = strtod(optarg, NULL);
			break;
		case 'd':
			options.dwell_us = strtod(optarg, NULL);
			break;
		case 'i':
			pin_role(&options, optarg);
			break;
		case 'e':
			options.seed = program_count(optarg, 0);
			break;
		case 's':
			options.samples = true;
			break;
		case 'h':
			fputs(help, stdout);
			exit(0);
		default:
			program_usage("unknown option");
		}
	}
	if (!options.working_set || options.working_set % PAGE || !options.bulk ||
	    options.bulk % RUN_BYTES || options.vcpus > GUEST_VCPUS || optind < count)
		program_usage("sizes must be whole pages (the stream's: whole 256 KiB), "
			      "vCPUs at most %d",
			      GUEST_VCPUS);
	return options;
}

static json_t *placement(const struct options *options)
{
	json_t *roles = json_object();
	for (enum role role = 0; role < ROLES; role++)
		json_object_set_new(roles, role_names[role],
				    json_string(options->cpus[role] ? options->cpus[role] : "any"));
	return roles;
}

static void report(struct target *target, double seconds)
{
	const struct options *options = target->options;
	size_t count;
	double *touches = collect(target, &count);
	json_t *object = report_begin("fault");
	json_object_set_new(object, "vcpus", json_integer((json_int_t)options->vcpus));
	json_object_set_new(object, "working_set_bytes",
			    json_integer((json_int_t)options->working_set));
	json_object_set_new(object, "push", json_boolean(options->push));
	json_object_set_new(object, "placement", placement(options));
	json_object_set_new(object, "faults", json_integer((json_int_t)target->faults));
	json_object_set_new(object, "seconds", json_real(seconds));
	json_object_set_new(object, "faults_per_s", json_real((double)target->faults / seconds));
	if (options->push) {
		json_object_set_new(object, "bulk_gb_per_s", json_real(target->bulk_gb_per_s));
		json_object_set_new(object, "bulk_nice", json_integer(options->bulk_nice));
	}
	if (options->samples)
		json_object_set_new(object, "samples_us", report_values(touches, count));
	json_object_set_new(object, "touch_latency_us", report_percentiles(touches, count));
	report_print(object);
	free(touches);
}

int main(int count, char **arguments)
{
	struct options options = parse(count, arguments);
	uint64_t bytes = options.working_set + (options.push ? options.bulk : 0);
	uint16_t port;
	int listener = link_listen(&port);
	if (program_fork() == 0)
		source(listener, &options);

	static struct target target;
	target.options = &options;
	target.demand_link = link_connect(port);
	if (options.push)
		target.bulk_link = link_connect(port);
	/* Each vCPU has an equal share. */
	uint64_t pages = options.working_set / PAGE / options.vcpus * options.vcpus;
	/* With a stream the measurement ends with it, however many faults there were. */
	target.faults_wanted = options.push ? UINT64_MAX : pages;
	if (options.faults && options.faults < target.faults_wanted)
		target.faults_wanted = options.faults;
	target.demanded = calloc(pages, 1);
	if (!target.demanded || sem_init(&target.done, 0, 0))
		program_fail("start");
	/* One exchange, so that the source is known to be ready and the path to it is warm. */
	struct request request = {0, PAGE};
	static struct reply reply;
	link_send(target.demand_link, &request, sizeof(request));
	link_receive(target.demand_link, &reply, sizeof(reply));

	memory_warm(bytes, PAGE);
	memory_open(&target.memory, bytes, PAGE, true);
	guest_open(&target.guest, (unsigned)options.vcpus, target.memory.view, bytes);
	target.guest.ended = &target.done;
	guest_prepare(&target.guest, pages, options.threshold_us, options.dwell_us, MEMORY_MARK,
		      options.seed);
	start_thread(handle_faults, &target, HANDLER);
	uint64_t start = clock_ns();
	if (options.push)
		start_thread(receive_bulk, &target, BULK);
	guest_start(&target.guest, options.cpus[VCPU]);
	while (sem_wait(&target.done))
		;
	double seconds = (double)(clock_ns() - start) / 1e9;
	guest_stop(&target.guest);
	report(&target, seconds);
	exit(0); /* the handler still waits for faults */
}
