/* SPDX-License-Identifier: Apache-2.0 */
/* A VM whose memory is mapped in another process: a child that writes to its own mapping while it
 * is told to run. Here that memory is known by its file and by the child's userfaultfd alone. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "fault/wp.h"
#include "jaunt.h"
#include "tests/unit/fault/descriptor.h"

#define PAGE  4096u
#define PAGES 4096u
#define WORDS (PAGE / sizeof(uint64_t))

TestSuite(elsewhere, .timeout = 120);

/* Shared with the child. */
struct cell {
	_Atomic bool running, idle, sum_wanted;
	_Atomic uint64_t writes, sum;
	uint64_t address;
};

struct vm {
	struct cell *cell;
	pid_t child;
	int memory, uffd;
	struct jaunt_region region;
};

static uint64_t sum_of(const uint64_t *words)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < PAGES * WORDS; i++)
		sum = (sum ^ words[i]) * UINT64_C(0x9e3779b97f4a7c15);
	return sum;
}

/* --- The child ---------------------------------------------------------------------------------
 */

static void work(uint64_t *words, struct cell *cell, uint64_t *random)
{
	for (unsigned i = 0; i < 16; i++) {
		*random = *random * UINT64_C(6364136223846793005) + 1442695040888963407u;
		/* Every other page is never touched, and stays a hole. */
		uint64_t page = (*random >> 33) % PAGES | 1;
		words[page * WORDS + (*random >> 20) % WORDS] = *random;
	}
	atomic_fetch_add(&cell->writes, 16);
	usleep(200);
}

static void live(struct cell *cell, int memory, int to)
{
	uint64_t random = 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	uint64_t *words = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	cell->address = (uintptr_t)words;
	send_descriptor(to, (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
	for (;;) {
		if (atomic_load(&cell->running)) {
			work(words, cell, &random);
			continue;
		}
		atomic_store(&cell->idle, true);
		if (atomic_load(&cell->sum_wanted)) {
			atomic_store(&cell->sum, sum_of(words));
			atomic_store(&cell->sum_wanted, false);
		}
		usleep(200);
	}
}

static void vm_open(struct vm *vm)
{
	int ends[2];

	vm->cell = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	vm->memory = memfd_create("elsewhere", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(vm->memory, PAGES * PAGE), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	vm->child = fork();
	cr_assert_geq(vm->child, 0);
	if (!vm->child)
		live(vm->cell, vm->memory, ends[1]);
	vm->uffd = receive_descriptor(ends[0]);
	close(ends[0]);
	close(ends[1]);
	if (vm->uffd < 0)
		cr_skip_test("userfaultfd is not allowed here");
	vm->region = (struct jaunt_region){.name = "ram",
					   .bytes = PAGES * PAGE,
					   .page_bytes = PAGE,
					   .fd = vm->memory,
					   .view = (void *)(uintptr_t)vm->cell->address};
}

static void vm_end(struct vm *vm)
{
	kill(vm->child, SIGKILL);
	waitpid(vm->child, NULL, 0);
	close(vm->memory);
	close(vm->uffd);
	munmap(vm->cell, PAGE);
}

/* --- As a driver has it ------------------------------------------------------------------------
 */

static int describe(void *context, struct jaunt_description *out, struct jaunt_error *error)
{
	struct vm *vm = context;

	*out = (struct jaunt_description){
		.name = "elsewhere", .regions = &vm->region, .region_count = 1};
	return 0;
}

static int stand_still(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	struct vm *vm = context;

	atomic_store(&vm->cell->running, false);
	atomic_store(&vm->cell->idle, false);
	while (!atomic_load(&vm->cell->idle))
		usleep(50);
	*when_ns = clock_ns();
	return 0;
}

static int save(void *context, void **state, size_t *bytes, struct jaunt_error *error)
{
	*state = strdup("state");
	*bytes = 6;
	return 0;
}

static int load(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	return bytes == 6 && strcmp(state, "state") == 0 ? 0 : -EINVAL;
}

static int run(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	struct vm *vm = context;

	*when_ns = clock_ns();
	atomic_store(&vm->cell->running, true);
	return 0;
}

static int userfaultfd(void *context, struct jaunt_error *error)
{
	const struct vm *vm = context;
	return fcntl(vm->uffd, F_DUPFD_CLOEXEC, 0);
}

static int process(void *context)
{
	const struct vm *vm = context;
	return vm->child;
}

static const char *recorded;
static int refuse_record;
static int committed(void *context, const char *peer, struct jaunt_error *error)
{
	recorded = peer;
	return refuse_record ? error_set(error, refuse_record, "no-record", "no room") : 0;
}

static const struct jaunt_vm_ops ops = {.driver = "elsewhere",
					.describe = describe,
					.pause = stand_still,
					.save = save,
					.load = load,
					.resume = run,
					.committed = committed,
					.userfaultfd = userfaultfd,
					.process = process};

static int create(void *context, const struct jaunt_description *wanted, void **vm,
		  struct jaunt_error *error)
{
	*vm = context;
	return 0;
}

static const struct jaunt_vm_factory factory = {.ops = &ops, .create = create};

/* --- Moving it ---------------------------------------------------------------------------------
 */

static bool has_rounds(const char *mode)
{
	return strcmp(mode, "pre-copy") == 0 || strcmp(mode, "hybrid") == 0;
}

struct arrival {
	struct jaunt_migration *migration;
	int outcome;
	struct jaunt_error error;
};

static void *arrive(void *context)
{
	struct arrival *arrival = context;

	arrival->outcome = jaunt_migration_run(arrival->migration, &arrival->error);
	return NULL;
}

/* The source's outcome. */
static int move(struct vm *from, struct vm *to, const char *mode, struct arrival *arrival,
		struct jaunt_error *error)
{
	struct jaunt_options options;
	struct jaunt_migration *source;
	char peer[64];
	pthread_t thread;

	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0";
	*arrival = (struct arrival){0};
	cr_assert_eq(jaunt_target_open(&arrival->migration, &factory, to, &options, error), 0, "%s",
		     error->text);
	pthread_create(&thread, NULL, arrive, arrival);
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(arrival->migration));
	options.peer = peer;
	options.mode = mode;
	options.max_rounds = has_rounds(mode) ? 4 : 0;
	cr_assert_eq(jaunt_source_open(&source, &ops, from, &options, error), 0, "%s", error->text);
	int outcome = jaunt_migration_run(source, error);
	pthread_join(thread, NULL);
	jaunt_migration_close(source);
	return outcome;
}

static void check_moved(struct vm *from, struct vm *to, const char *mode)
{
	struct arrival arrival;
	struct jaunt_error error = {0};
	struct jaunt_status status;
	uint64_t when, writes = atomic_load(&to->cell->writes);

	recorded = NULL;
	cr_assert_eq(move(from, to, mode, &arrival, &error), JAUNT_DONE, "%s: %s", mode,
		     error.text);
	cr_assert_eq(arrival.outcome, JAUNT_DONE, "%s", arrival.error.text);
	cr_assert(recorded);
	cr_assert(atomic_load(&to->cell->running));
	cr_assert_not(atomic_load(&from->cell->running));
	jaunt_migration_status(arrival.migration, &status);
	cr_assert_eq(status.install_conflicts, 0);
	while (atomic_load(&to->cell->writes) == writes)
		usleep(1000);
	jaunt_migration_close(arrival.migration);
	stand_still(to, &when, NULL);
}

static uint64_t seen_by(struct vm *vm)
{
	atomic_store(&vm->cell->sum_wanted, true);
	while (atomic_load(&vm->cell->sum_wanted))
		usleep(100);
	return atomic_load(&vm->cell->sum);
}

/* What the file has, which the child at the source wrote last. */
static uint64_t in_file(const struct vm *vm)
{
	void *words = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, vm->memory, 0);
	uint64_t sum = sum_of(words);

	munmap(words, PAGES * PAGE);
	return sum;
}

static void fill(struct vm *vm)
{
	uint64_t when;

	run(vm, &when, NULL);
	while (atomic_load(&vm->cell->writes) < 6000)
		usleep(1000);
}

/* A guest that does nothing at the target shows the memory that arrived. */
static bool lies_still;
static int run_or_lie(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	if (!lies_still)
		return run(context, when_ns, error);
	*when_ns = clock_ns();
	return 0;
}

static void check_bytes(const char *mode)
{
	struct jaunt_vm_ops still = ops;
	const struct jaunt_vm_factory lying = {.ops = &still, .create = create};
	struct vm a, b;
	struct jaunt_options options;
	struct arrival arrival = {0};
	struct jaunt_migration *source;
	struct jaunt_error error = {0};
	pthread_t thread;
	char peer[64];

	still.resume = run_or_lie;
	lies_still = true;
	vm_open(&a);
	vm_open(&b);
	fill(&a);
	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0";
	cr_assert_eq(jaunt_target_open(&arrival.migration, &lying, &b, &options, &error), 0);
	pthread_create(&thread, NULL, arrive, &arrival);
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(arrival.migration));
	options.peer = peer;
	options.mode = mode;
	options.max_rounds = has_rounds(mode) ? 4 : 0;
	cr_assert_eq(jaunt_source_open(&source, &ops, &a, &options, &error), 0, "%s", error.text);
	cr_assert_eq(jaunt_migration_run(source, &error), JAUNT_DONE, "%s", error.text);
	pthread_join(thread, NULL);
	jaunt_migration_close(source);
	jaunt_migration_close(arrival.migration);
	cr_assert_eq(seen_by(&b), in_file(&a), "%s", mode);
	vm_end(&a);
	vm_end(&b);
}

static bool can_track(void)
{
	char why[256];
	return wp_supported(why, sizeof(why));
}

Test(elsewhere, arrives_with_the_bytes_that_it_left_with)
{
	check_bytes("stop-and-copy");
	check_bytes("post-copy");
	if (can_track()) {
		check_bytes("pre-copy");
		check_bytes("hybrid");
	}
}

Test(elsewhere, leaves_again_by_the_userfaultfd_that_it_came_by)
{
	struct vm a, b, c;

	vm_open(&a);
	vm_open(&b);
	vm_open(&c);
	fill(&a);
	check_moved(&a, &b, "post-copy");
	atomic_store(&b.cell->running, true);
	check_moved(&b, &c, can_track() ? "hybrid" : "post-copy");
	vm_end(&a);
	vm_end(&b);
	vm_end(&c);
}

Test(elsewhere, goes_on_at_the_source_when_commit_cannot_be_recorded)
{
	struct vm a, b;
	struct arrival arrival;
	struct jaunt_error error = {0};

	vm_open(&a);
	vm_open(&b);
	fill(&a);
	refuse_record = ENOSPC;
	cr_assert_eq(move(&a, &b, "post-copy", &arrival, &error), JAUNT_FAILED);
	cr_assert_str_eq(error.reason, "no-record");
	cr_assert(atomic_load(&a.cell->running));
	cr_assert_not(atomic_load(&b.cell->running));
	jaunt_migration_close(arrival.migration);
	vm_end(&a);
	vm_end(&b);
}

static void *kill_soon(void *context)
{
	struct vm *vm = context;

	while (!atomic_load(&vm->cell->running))
		usleep(100);
	kill(vm->child, SIGKILL);
	return NULL;
}

Test(elsewhere, whose_process_dies_at_the_target_is_told_and_nobody_hangs)
{
	struct vm a, b;
	struct jaunt_options options;
	struct arrival arrival = {0};
	struct arrival departure = {0};
	struct jaunt_error error = {0};
	pthread_t target, source, killer;
	char peer[64];

	vm_open(&a);
	vm_open(&b);
	fill(&a);
	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0";
	cr_assert_eq(jaunt_target_open(&arrival.migration, &factory, &b, &options, &error), 0);
	pthread_create(&target, NULL, arrive, &arrival);
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(arrival.migration));
	options.peer = peer;
	options.mode = "post-copy";
	options.push = false;
	pthread_create(&killer, NULL, kill_soon, &b);
	cr_assert_eq(jaunt_source_open(&departure.migration, &ops, &a, &options, &error), 0);
	pthread_create(&source, NULL, arrive, &departure);
	pthread_join(target, NULL);
	cr_assert_eq(arrival.outcome, JAUNT_INCOMPLETE, "%s", arrival.error.text);
	cr_assert_str_eq(arrival.error.reason, "vm-gone");
	cr_assert_not(atomic_load(&a.cell->running));
	pthread_join(killer, NULL);
	jaunt_migration_close(arrival.migration);
	cr_assert_eq(jaunt_migration_abandon(departure.migration, &error), 0, "%s", error.text);
	pthread_join(source, NULL);
	cr_assert_neq(departure.outcome, JAUNT_DONE);
	jaunt_migration_close(departure.migration);
	vm_end(&a);
	vm_end(&b);
}

/* Who else may run it, its driver does not know: it waits for what it lacks for as long as its
 * userfaultfd is kept. */
Test(elsewhere, that_is_given_up_at_the_target_reads_no_zeros)
{
	struct jaunt_vm_ops still = ops;
	const struct jaunt_vm_factory lying = {.ops = &still, .create = create};
	struct vm a, b;
	struct jaunt_options options;
	struct jaunt_status status = {.vm_is_at = JAUNT_AT_SOURCE};
	struct arrival arrival = {0}, departure = {0};
	struct jaunt_error error = {0};
	pthread_t target, source;
	char peer[64];

	still.resume = run_or_lie;
	lies_still = true;
	vm_open(&a);
	vm_open(&b);
	fill(&a);
	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0";
	cr_assert_eq(jaunt_target_open(&arrival.migration, &lying, &b, &options, &error), 0);
	pthread_create(&target, NULL, arrive, &arrival);
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(arrival.migration));
	options.peer = peer;
	options.mode = "post-copy";
	options.push = false;
	cr_assert_eq(jaunt_source_open(&departure.migration, &ops, &a, &options, &error), 0);
	pthread_create(&source, NULL, arrive, &departure);
	while (status.vm_is_at != JAUNT_AT_TARGET) {
		usleep(1000);
		jaunt_migration_status(arrival.migration, &status);
	}
	cr_assert_eq(jaunt_migration_abandon(arrival.migration, &error), 0, "%s", error.text);
	pthread_join(target, NULL);
	cr_assert_eq(arrival.outcome, JAUNT_INCOMPLETE, "%s", arrival.error.text);
	jaunt_migration_close(arrival.migration);
	jaunt_migration_abandon(departure.migration, &error);
	pthread_join(source, NULL);
	jaunt_migration_close(departure.migration);

	struct pollfd fault = {.fd = b.uffd, .events = POLLIN};
	atomic_store(&b.cell->sum_wanted, true);
	while (poll(&fault, 1, 1) == 0)
		cr_assert(atomic_load(&b.cell->sum_wanted), "it has read what never came");
	cr_assert(fault.revents & POLLIN);
	vm_end(&a);
	vm_end(&b);
}
