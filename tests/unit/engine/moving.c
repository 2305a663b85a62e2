/* SPDX-License-Identifier: Apache-2.0 */
#include "moving.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

struct moving moving;

static void vm_open(struct moving_vm *vm, uint64_t pages)
{
	struct jaunt_region ram = {
		.name = "ram", .bytes = pages * MOVING_PAGE, .page_bytes = MOVING_PAGE};

	ram.fd = memfd_create("moving", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(ram.fd, (off_t)ram.bytes), 0);
	ram.view = mmap(NULL, ram.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	cr_assert_neq(ram.view, MAP_FAILED);
	*vm = (struct moving_vm){.region = ram};
}

static void vm_close(struct moving_vm *vm)
{
	munmap(vm->region.view, vm->region.bytes);
	close(vm->region.fd);
}

int moving_describe(void *context, struct jaunt_description *out, struct jaunt_error *error)
{
	struct moving_vm *vm = context;

	(void)error;
	*out = (struct jaunt_description){.name = "vm", .regions = &vm->region, .region_count = 1};
	return 0;
}

int moving_pause(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	(void)context, (void)error;
	*when_ns = clock_ns();
	return 0;
}

int moving_save(void *context, void **state, size_t *bytes, struct jaunt_error *error)
{
	(void)context, (void)error;
	*state = malloc(1);
	*bytes = 0;
	return 0;
}

int moving_load(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	(void)context, (void)state, (void)bytes, (void)error;
	return 0;
}

int moving_resume(void *context, uint64_t *when_ns, struct jaunt_error *error)
{
	struct moving_vm *vm = context;

	(void)error;
	*when_ns = clock_ns();
	vm->resumed++;
	return 0;
}

static int create(void *context, const struct jaunt_description *asked, void **vm,
		  struct jaunt_error *error)
{
	(void)asked, (void)error;
	*vm = context;
	return 0;
}

static void destroy(void *context, void *vm)
{
	(void)context, (void)vm;
}

static void *arrive(void *ignored)
{
	(void)ignored;
	moving.arrived = jaunt_migration_run(moving.arrival, &moving.arrived_with);
	return NULL;
}

int moving_move(const struct jaunt_vm_ops *here, const struct jaunt_vm_ops *there, uint64_t pages,
		const struct jaunt_options *options, struct jaunt_error *error)
{
	const struct jaunt_vm_factory factory = {
		.ops = there, .create = create, .destroy = destroy};
	struct jaunt_options of_source = *options, of_target;
	pthread_t thread;
	char peer[64];

	moving = (struct moving){0};
	vm_open(&moving.source, pages);
	vm_open(&moving.target, pages);
	memset(moving.source.region.view, 7, moving.source.region.bytes);
	jaunt_options_init(&of_target);
	of_target.peer = "tcp:127.0.0.1:0";
	cr_assert_eq(
		jaunt_target_open(&moving.arrival, &factory, &moving.target, &of_target, error), 0,
		"%s", error->text);
	pthread_create(&thread, NULL, arrive, NULL);
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(moving.arrival));
	of_source.peer = peer;
	cr_assert_eq(jaunt_source_open(&moving.departure, here, &moving.source, &of_source, error),
		     0, "%s", error->text);
	int outcome = jaunt_migration_run(moving.departure, error);
	pthread_join(thread, NULL);
	moving.same = memcmp(moving.source.region.view, moving.target.region.view,
			     moving.source.region.bytes) == 0;
	jaunt_migration_close(moving.departure);
	jaunt_migration_close(moving.arrival);
	vm_close(&moving.source);
	vm_close(&moving.target);
	return outcome;
}
