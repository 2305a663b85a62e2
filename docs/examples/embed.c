/* SPDX-License-Identifier: Apache-2.0 */
/* libjaunt in a VMM of one's own. The "VM" is 32 MiB of memory and one thread that keeps checking
 * and writing it; it moves to another process while it runs. Build against an installed copy:
 * cc embed.c $(pkg-config --cflags --libs libjaunt) -pthread */
#include <jaunt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 8192, PAGE = 4096, WORDS = PAGE / 8 };

struct vm {
	_Atomic uint64_t step; /* which it stands at: all of its state beside its memory */
	uint64_t *memory;
	_Atomic bool stop;
	pthread_t vcpu;
	struct jaunt_region region;
	unsigned errors;
};

/* What fills a page after so many steps: the number of the last that wrote it, from 1 on. */
static uint64_t expected(uint64_t page, uint64_t step)
{
	return step <= page ? 0 : (step - 1 - page) / PAGES * PAGES + page + 1;
}

static void *run_vcpu(void *argument)
{
	struct vm *vm = argument;
	for (; !vm->stop; vm->step++) {
		uint64_t page = vm->step % PAGES, *at = vm->memory + page * WORDS;
		for (unsigned i = 0; i < WORDS; at[i++] = vm->step + 1)
			vm->errors += at[i] != expected(page, vm->step);
	}
	return NULL;
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int vm_describe(void *vm, struct jaunt_description *out, struct jaunt_error *error)
{
	*out = (struct jaunt_description){"vm", NULL, 0, &((struct vm *)vm)->region, 1};
	return 0;
}

static int vm_pause(void *vm, uint64_t *last_instruction_ns, struct jaunt_error *error)
{
	((struct vm *)vm)->stop = true;
	pthread_join(((struct vm *)vm)->vcpu, NULL);
	*last_instruction_ns = now_ns();
	return 0;
}

static int vm_save(void *vm, void **state, size_t *bytes, struct jaunt_error *error)
{
	*bytes = sizeof(uint64_t);
	*state = memcpy(malloc(*bytes), &((struct vm *)vm)->step, *bytes);
	return 0;
}

static int vm_load(void *vm, const void *state, size_t bytes, struct jaunt_error *error)
{
	memcpy(&((struct vm *)vm)->step, state, sizeof(uint64_t));
	return 0;
}

static int vm_resume(void *vm, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	((struct vm *)vm)->stop = false;
	*first_entry_ns = now_ns();
	return -pthread_create(&((struct vm *)vm)->vcpu, NULL, run_vcpu, vm);
}

/* A real one compares with what is wanted, and refuses by name. */
static int vm_create(void *context, const struct jaunt_description *wanted, void **out,
		     struct jaunt_error *error)
{
	struct vm *vm = *out = context;
	struct jaunt_region ram = {.name = "ram", .bytes = PAGES * PAGE, .page_bytes = PAGE};
	ram.fd = memfd_create("guest", MFD_CLOEXEC);
	if (ftruncate(ram.fd, PAGES * PAGE) < 0)
		return -1;
	ram.view = mmap(NULL, ram.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	vm->memory = (vm->region = ram).view;
	return ram.view == MAP_FAILED ? -1 : 0;
}

static const struct jaunt_vm_ops ops = {"example", vm_describe, vm_pause,
					vm_save,   vm_load,     vm_resume};

/* The other host: takes the VM in, runs it, and looks at all of its memory in the end. */
static int receive(struct jaunt_migration *target, struct vm *vm)
{
	uint64_t when;
	if (jaunt_migration_run(target, NULL) != JAUNT_DONE)
		return 1;
	jaunt_migration_close(target);
	vm_pause(vm, &when, NULL);
	for (uint64_t i = 0; i < PAGES * WORDS; i++)
		vm->errors += vm->memory[i] != expected(i / WORDS, vm->step);
	printf("target: went on to step %lu, %u wrong words\n", vm->step, vm->errors);
	return vm->errors != 0;
}

int main(void)
{
	static const struct jaunt_vm_factory factory = {&ops, vm_create};
	static struct vm here, there;
	struct jaunt_migration *target, *source = NULL;
	struct jaunt_options options;
	struct jaunt_error error = {.text = ""};
	char peer[32];
	uint64_t when;
	void *vm;
	int said = -1;

	jaunt_options_init(&options);
	options.peer = "tcp:127.0.0.1:0"; /* any free port */
	if (jaunt_target_open(&target, &factory, &there, &options, &error) < 0)
		return fprintf(stderr, "target: %s\n", error.text), 1;
	snprintf(peer, sizeof(peer), "tcp:127.0.0.1:%u", jaunt_target_port(target));
	pid_t child = fork();
	if (child == 0)
		return receive(target, &there);
	jaunt_migration_close(target); /* the child's */
	vm_create(&here, NULL, &vm, &error);
	vm_resume(vm, &when, &error);
	while (here.step < PAGES + PAGES / 2) /* from then on there is something to move */
		sched_yield();
	options.peer = peer;
	int outcome = jaunt_source_open(&source, &ops, vm, &options, &error) < 0
			      ? JAUNT_FAILED
			      : jaunt_migration_run(source, &error);
	jaunt_migration_close(source);
	kill(child, outcome ? SIGKILL : 0);
	waitpid(child, &said, 0);
	printf("source: left at step %lu, %u wrong words\n%s", here.step, here.errors, error.text);
	return outcome || here.errors || said;
}
