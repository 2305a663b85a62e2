/* SPDX-License-Identifier: Apache-2.0 */
/* A driver whose device state cannot be loaded without guest memory, and a source, a process of
 * its own, that stops sending it. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "jaunt.h"
#include "tests/unit/engine/world.h"

TestSuite(load, .timeout = 60);

enum { PAGES = 64 };
#define STATE "the devices"

struct vm {
	struct jaunt_region region;
	unsigned resumed, destroyed;
	bool loaded;
	unsigned wrong; /* pages that load() found to be something else */
};

static struct vm vm;
static struct jaunt_migration *target;
static pid_t source;
static void (*while_loading)(void); /* before memory is touched */

static int make_memory(void)
{
	struct jaunt_region ram = {.name = "ram", .bytes = PAGES * PAGE, .page_bytes = PAGE};

	ram.fd = memfd_create("load", MFD_CLOEXEC);
	if (ram.fd < 0 || ftruncate(ram.fd, PAGES * PAGE))
		return -errno;
	ram.view = mmap(NULL, ram.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	vm.region = ram;
	return ram.view == MAP_FAILED ? -ENOMEM : 0;
}

static int vm_describe(void *ignored, struct jaunt_description *out, struct jaunt_error *error)
{
	(void)ignored, (void)error;
	*out = (struct jaunt_description){.name = "vm", .regions = &vm.region, .region_count = 1};
	return 0;
}

static int vm_pause(void *ignored, uint64_t *last_instruction_ns, struct jaunt_error *error)
{
	(void)ignored, (void)error;
	*last_instruction_ns = clock_ns();
	return 0;
}

static int vm_save(void *ignored, void **state, size_t *bytes, struct jaunt_error *error)
{
	(void)ignored, (void)error;
	*state = strdup(STATE);
	*bytes = sizeof(STATE);
	return 0;
}

static int vm_load(void *ignored, const void *state, size_t bytes, struct jaunt_error *error)
{
	(void)ignored, (void)error;
	must(bytes == sizeof(STATE) && !memcmp(state, STATE, bytes), "another state");
	if (while_loading)
		while_loading();
	for (uint64_t page = 0; page < PAGES; page++)
		vm.wrong += !world_made((uint8_t *)vm.region.view + page * PAGE, PAGE, page, 1);
	vm.loaded = true;
	return 0; /* whatever it read */
}

static int vm_resume(void *ignored, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	(void)ignored, (void)error;
	vm.resumed++;
	*first_entry_ns = clock_ns();
	return 0;
}

static const struct jaunt_vm_ops ops = {.driver = "load",
					.describe = vm_describe,
					.pause = vm_pause,
					.save = vm_save,
					.load = vm_load,
					.resume = vm_resume};

static int vm_create(void *context, const struct jaunt_description *wanted, void **out,
		     struct jaunt_error *error)
{
	(void)context, (void)wanted, (void)error;
	*out = &vm;
	return make_memory();
}

static void vm_destroy(void *context, void *ignored)
{
	(void)context, (void)ignored;
	vm.destroyed++;
}

static const struct jaunt_vm_factory factory = {
	.ops = &ops, .create = vm_create, .destroy = vm_destroy};

/* The source's process: ends with the outcome, and 16 more if the VM was resumed. */
static _Noreturn void run_source(unsigned port)
{
	struct jaunt_options options;
	struct jaunt_migration *migration;
	struct jaunt_error error = {0};
	char peer[32];

	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", port);
	jaunt_options_init(&options);
	options.peer = peer;
	options.mode = "post-copy";
	options.push = false;
	if (make_memory() < 0)
		_exit(100);
	for (uint64_t page = 0; page < PAGES; page++)
		world_make((uint8_t *)vm.region.view + page * PAGE, PAGE, page, 1);
	if (jaunt_source_open(&migration, &ops, &vm, &options, &error) < 0)
		_exit(101);
	int outcome = jaunt_migration_run(migration, &error);
	_exit(outcome + 16 * (int)vm.resumed);
}

/* The whole migration; the target's outcome. */
static int migrate(uint32_t peer_timeout_ms, struct jaunt_error *error)
{
	struct jaunt_options options;
	struct world world;

	if (!world_open_pages(&world, 1))
		cr_skip_test("%s", world.lack);
	world_close(&world);
	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0";
	options.peer_timeout_ms = peer_timeout_ms;
	cr_assert_eq(jaunt_target_open(&target, &factory, NULL, &options, error), 0, "%s",
		     error->text);
	source = fork();
	if (source == 0)
		run_source(jaunt_target_port(target));
	return jaunt_migration_run(target, error);
}

static void expect_source(int status)
{
	int how;

	kill(source, SIGCONT);
	cr_assert_eq(waitpid(source, &how, 0), source);
	cr_assert(WIFEXITED(how));
	cr_assert_eq(WEXITSTATUS(how), status, "%d", WEXITSTATUS(how));
}

/* It was let go, and nothing of it will ever run. */
static void expect_doomed(void)
{
	struct jaunt_status status;

	jaunt_migration_status(target, &status);
	cr_assert_eq(status.vm_is_at, JAUNT_AT_SOURCE);
	cr_assert(vm.loaded);
	cr_assert_gt(vm.wrong, 0, "the pages came after all");
	cr_assert_eq(vm.resumed, 0);
	cr_assert_eq(vm.destroyed, 1);
	jaunt_migration_close(target);
}

Test(load, memory_that_loading_touches_is_fetched)
{
	struct jaunt_error error = {0};

	cr_assert_eq(migrate(0, &error), JAUNT_DONE, "%s", error.text);
	cr_assert(vm.loaded);
	cr_assert_eq(vm.wrong, 0);
	cr_assert_eq(vm.resumed, 1);
	cr_assert_eq(vm.destroyed, 0);
	jaunt_migration_close(target);
	expect_source(JAUNT_DONE);
}

static void kill_source(void)
{
	kill(source, SIGKILL);
}

Test(load, a_source_that_dies_while_loading_waits_for_it_ends_it_as_failed)
{
	struct jaunt_error error = {0};

	while_loading = kill_source;
	cr_assert_eq(migrate(0, &error), JAUNT_FAILED, "%s", error.text);
	cr_assert_str_eq(error.reason, "link-lost", "%s", error.text);
	cr_assert(strstr(error.text, "load the VM's state"));
	expect_doomed();
	cr_assert_eq(waitpid(source, NULL, 0), source);
}

static void stop_source(void)
{
	kill(source, SIGSTOP);
}

Test(load, a_source_that_falls_silent_while_loading_waits_for_it_ends_it_as_failed)
{
	struct jaunt_error error = {0};

	while_loading = stop_source;
	cr_assert_eq(migrate(3000, &error), JAUNT_FAILED, "%s", error.text);
	cr_assert_str_eq(error.reason, "load-timeout", "%s", error.text);
	expect_doomed();
	expect_source(JAUNT_FAILED + 16);
}

static void stop_source_and_cancel(void)
{
	struct jaunt_error error = {0};

	stop_source();
	must(jaunt_migration_cancel(target, &error) == 0, "%s", error.text);
}

Test(load, a_cancel_is_heard_while_loading_waits_for_a_silent_source)
{
	struct jaunt_error error = {0};

	while_loading = stop_source_and_cancel;
	cr_assert_eq(migrate(0, &error), JAUNT_CANCELLED, "%s", error.text);
	expect_doomed();
	expect_source(JAUNT_CANCELLED + 16);
}
