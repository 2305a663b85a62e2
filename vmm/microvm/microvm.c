/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A VM goes through: created (memory file, view, KVM VM and vCPU threads exist, nothing was
 * touched) → started, or loaded and resumed → parked and run again any number of times → destroyed.
 * What costs time at creation (KVM's slot, vCPUs, threads) is thereby behind when a migration
 * pauses its source.
 *
 * memory.c has the memory, cpu.c and cpu_state.c KVM, vcpu.c the threads, guest/ what they run.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/create.h"
#include "vmm/microvm/describe.h"
#include "vmm/microvm/machine.h"

#define LEAST_MEMORY MIB(64)

static void kicked(int number)
{
	/* Only to interrupt a system call. */
}

static int install_handler(struct jaunt_error *error)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static bool installed;
	struct sigaction action = {.sa_handler = kicked};
	int failed = 0;
	sigemptyset(&action.sa_mask);
	pthread_mutex_lock(&lock);
	if (!installed && sigaction(MICROVM_KICK_SIGNAL, &action, NULL))
		failed = errno;
	installed = !failed;
	pthread_mutex_unlock(&lock);
	if (failed)
		return error_set(error, failed, "bug", "sigaction: %s", strerror(failed));
	return 0;
}

static int check_config(const struct microvm_config *config, struct jaunt_error *error)
{
	if (config->page_bytes != 4096 && config->page_bytes != MIB(2))
		return error_set(error, EINVAL, "bad-size",
				 "pages of %" PRIu64 " bytes: a VM has pages of 4k or 2m",
				 config->page_bytes);
	if (config->memory_bytes < LEAST_MEMORY || config->memory_bytes % MIB(2) ||
	    config->memory_bytes > INT64_MAX)
		return error_set(error, EINVAL, "bad-size",
				 "%" PRIu64
				 " bytes of memory: a VM has at least 64 MiB, in multiples "
				 "of 2 MiB",
				 config->memory_bytes);
	if (!config->vcpus || config->vcpus > MICROVM_MAX_VCPUS)
		return error_set(error, EINVAL, "bad-size", "%u vCPUs: a VM has 1 to %u",
				 config->vcpus, MICROVM_MAX_VCPUS);
	return 0;
}

static void read_boot_id(char id[MACHINE_BOOT_ID_BYTES])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (read(fd, id, MACHINE_BOOT_ID_BYTES) != MACHINE_BOOT_ID_BYTES)
		memset(id, 0, MACHINE_BOOT_ID_BYTES);
	close(fd);
}

static void init_locks(struct microvm *vm)
{
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, &attributes);
	pthread_cond_init(&vm->wake, &attributes);
	pthread_cond_init(&vm->throttle.changed, &attributes);
	pthread_condattr_destroy(&attributes);
}

static struct microvm *allocate(const struct microvm_config *config)
{
	struct microvm *vm = calloc(1, sizeof *vm);
	if (!vm || !(vm->vcpus = calloc(config->vcpus, sizeof *vm->vcpus))) {
		free(vm);
		return NULL;
	}
	strncpy(vm->name, config->name ? config->name : "vm", sizeof vm->name - 1);
	vm->memory_bytes = config->memory_bytes;
	vm->page_bytes = config->page_bytes;
	vm->vcpu_count = config->vcpus;
	vm->thread_backed = config->thread_backed;
	vm->discarded = config->discarded;
	vm->discarded_context = config->discarded_context;
	vm->memory_fd = vm->kvm_fd = vm->vm_fd = -1;
	read_boot_id(vm->boot_id);
	init_locks(vm);
	track_init(vm, config->tracking == MICROVM_DIRTY_RING, config->ring_entries);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		vm->vcpus[i].vm = vm;
		vm->vcpus[i].index = i;
		vm->vcpus[i].fd = -1;
		account_init(&vm->vcpus[i].account, 1);
	}
	return vm;
}

static int create_cpus(struct microvm *vm, struct jaunt_error *error)
{
	int failed = 0;
	if (vm->thread_backed && !vm->tsc_khz)
		failed = thread_tsc_khz(&vm->tsc_khz, error);
	else if (!vm->thread_backed)
		failed = cpu_open(vm, error);
	for (unsigned i = 0; i < vm->vcpu_count && !failed && !vm->thread_backed; i++)
		failed = cpu_create_vcpu(&vm->vcpus[i], error);
	if (!failed && !vm->thread_backed)
		failed = cpu_probe_msrs(&vm->vcpus[0], error);
	if (failed)
		return failed;
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		vm->vcpus[i].account.tsc_khz = (double)vm->tsc_khz;
	return vcpu_start_threads(vm, error);
}

int microvm_create_as(struct microvm **out, const struct microvm_config *config,
		      struct kvm_cpuid2 *cpuid, uint64_t tsc_khz, struct jaunt_error *error)
{
	*out = NULL;
	int failed = check_config(config, error);
	struct microvm *vm = NULL;
	if (!failed && !(vm = allocate(config)))
		failed = error_set(error, ENOMEM, "no-memory", "create the VM: out of memory");
	if (failed) {
		free(cpuid);
		return failed;
	}
	vm->cpuid = cpuid;
	vm->tsc_khz = tsc_khz;
	failed = microvm_workload_parse(&vm->workload, config->workload, error);
	if (!failed)
		failed = memory_layout(vm, error);
	/* The factory has asked before, for what is in use at the source. */
	if (!failed && !tsc_khz)
		failed = microvm_check_room(
			NULL, vm->page_bytes == 4096 ? vm->pages_end : vm->memory_bytes,
			vm->page_bytes, error);
	if (!failed)
		failed = install_handler(error);
	if (!failed)
		failed = memory_create(vm, error);
	if (!failed)
		failed = create_cpus(vm, error);
	if (failed) {
		microvm_destroy(vm);
		return failed;
	}
	*out = vm;
	return 0;
}

int microvm_create(struct microvm **out, const struct microvm_config *config,
		   struct jaunt_error *error)
{
	return microvm_create_as(out, config, NULL, 0, error);
}

void microvm_destroy(struct microvm *vm)
{
	if (!vm)
		return;
	(void)throttle_set(vm, 0, NULL);
	vcpu_end_threads(vm);
	track_destroy(vm);
	cpu_close(vm);
	memory_destroy(vm);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		account_destroy(&vm->vcpus[i].account);
	pthread_cond_destroy(&vm->throttle.changed);
	pthread_cond_destroy(&vm->wake);
	pthread_cond_destroy(&vm->changed);
	pthread_mutex_destroy(&vm->lock);
	free(vm->vcpus);
	free(vm->properties);
	free(vm->property_text);
	free(vm);
}

const char *microvm_name(const struct microvm *vm)
{
	return vm->name;
}

int microvm_start(struct microvm *vm, struct jaunt_error *error)
{
	if (vm->has_run || vm->loaded)
		return error_set(error, EALREADY, "bug", "start: the VM has run before");
	int failed = memory_load_program(vm, error);
	for (unsigned i = 0; i < vm->vcpu_count && !failed; i++) {
		if (vm->thread_backed)
			thread_begin(&vm->vcpus[i]);
		else
			failed = cpu_begin(&vm->vcpus[i], error);
	}
	return failed ? failed : vcpu_run_all(vm, NULL, error);
}

/* --- Waiting for what guests report
 * --------------------------------------------------------------- */

static bool is_ready(const struct vcpu *vcpu)
{
	return vcpu->ready;
}

static bool is_checked(const struct vcpu *vcpu)
{
	return vcpu->checked;
}

/* Waits until all vCPUs are so. */
static int wait_for_all(struct microvm *vm, bool (*is)(const struct vcpu *), const char *what,
			unsigned timeout_ms, struct jaunt_error *error)
{
	uint64_t end = clock_ns() + timeout_ms * UINT64_C(1000000);
	struct timespec until = {(time_t)(end / 1000000000), (long)(end % 1000000000)};
	int timed_out = 0, failed = 0;
	pthread_mutex_lock(&vm->lock);
	for (;;) {
		unsigned count = 0;
		for (unsigned i = 0; i < vm->vcpu_count && !failed; i++) {
			count += is(&vm->vcpus[i]);
			if (vm->vcpus[i].crashed)
				failed = error_set(error, EIO, "vcpu-crashed", "vCPU %u %s", i,
						   vm->vcpus[i].crash);
		}
		if (failed || count == vm->vcpu_count)
			break;
		if (timed_out == ETIMEDOUT) {
			failed = error_set(error, ETIMEDOUT, "guest-slow",
					   "%u of %u vCPUs have %s after %u ms", count,
					   vm->vcpu_count, what, timeout_ms);
			break;
		}
		timed_out = pthread_cond_timedwait(&vm->changed, &vm->lock, &until);
	}
	pthread_mutex_unlock(&vm->lock);
	return failed;
}

int microvm_wait_ready(struct microvm *vm, unsigned timeout_ms, struct jaunt_error *error)
{
	return wait_for_all(vm, is_ready, "populated their working set", timeout_ms, error);
}

static int find_errors(struct microvm *vm, struct jaunt_error *error)
{
	uint64_t errors = 0;
	char text[512] = "found before it came here";
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct account *account = &vm->vcpus[i].account;
		pthread_mutex_lock(&account->lock);
		if (account->first_error[0] && !errors)
			memcpy(text, account->first_error, sizeof text);
		errors += account->errors;
		pthread_mutex_unlock(&account->lock);
	}
	if (!errors)
		return 0;
	return error_set(error, EIO, "memory-errors",
			 "the guest found %" PRIu64 " memory errors; first: %s", errors, text);
}

int microvm_self_check(struct microvm *vm, unsigned timeout_ms, struct jaunt_error *error)
{
	uint64_t begin = clock_ns();
	int failed = microvm_wait_ready(vm, timeout_ms, error);
	if (failed)
		return failed;
	unsigned used_ms = (unsigned)((clock_ns() - begin) / 1000000);
	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		vm->vcpus[i].checked = false;
		atomic_store(&vm->vcpus[i].command, GUEST_SELF_CHECK);
	}
	pthread_cond_broadcast(&vm->wake);
	pthread_mutex_unlock(&vm->lock);
	failed = wait_for_all(vm, is_checked, "gone through their memory",
			      used_ms < timeout_ms ? timeout_ms - used_ms : 0, error);
	return failed ? failed : find_errors(vm, error);
}

int microvm_stop(struct microvm *vm, bool self_check, unsigned timeout_ms,
		 struct jaunt_error *error)
{
	int failed = 0;
	if (self_check && atomic_load(&vm->order) == MACHINE_RUN)
		failed = microvm_self_check(vm, timeout_ms, error);
	vcpu_end_threads(vm);
	return failed;
}

/* --- The engine's view
 * ---------------------------------------------------------------------------- */

static int describe(void *vm, struct jaunt_description *out, struct jaunt_error *error)
{
	return describe_vm(vm, out, error);
}

static int pause_all(void *context, uint64_t *last_instruction_ns, struct jaunt_error *error)
{
	struct microvm *vm = context;
	int failed = vcpu_park_all(vm, error);
	if (failed)
		return failed;
	uint64_t last = 0;
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i].left_ns > last)
			last = vm->vcpus[i].left_ns;
	*last_instruction_ns = last;
	return 0;
}

static int save(void *vm, void **state, size_t *bytes, struct jaunt_error *error)
{
	return state_save(vm, state, bytes, error);
}

static int load(void *context, const void *state, size_t bytes, struct jaunt_error *error)
{
	struct microvm *vm = context;
	if (vm->has_run)
		return error_set(error, EALREADY, "bug", "load: the VM has run before");
	return state_load(vm, state, bytes, error);
}

static int resume(void *context, uint64_t *first_entry_ns, struct jaunt_error *error)
{
	return vcpu_run_all(context, first_entry_ns, error);
}

const struct jaunt_vm_ops microvm_ops = {.driver = "microvm",
					 .describe = describe,
					 .pause = pause_all,
					 .save = save,
					 .load = load,
					 .resume = resume,
					 .track_start = track_start,
					 .track_collect = track_collect,
					 .track_stop = track_stop,
					 .track_sample = track_sample,
					 .track_sampled = track_sampled,
					 .report_to = track_report_to,
					 .throttle = throttle_set};
