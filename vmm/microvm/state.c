/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * The state is a header, and for each vCPU a fixed sequence of sections (state.h). Numbers are
 * little-endian, as everything on the one architecture this runs on. A change of layout raises
 * STATE_VERSION; a reader refuses versions it does not know.
 *
 * The guest's TSC must go on as if nothing had happened, so it needs the time that passed between
 * save and load. Within one boot of one host the monotonic clock tells; across hosts, as well as
 * their wall clocks agree, those do.
 */
#include "vmm/microvm/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "vmm/microvm/machine.h"

#define STATE_MAGIC   "JAUNTMVM"
#define STATE_VERSION 1
#define BOOT_ID_BYTES 36
/* A wall clock that is further off is none. */
#define LONGEST_TRIP_NS INT64_C(3600000000000)

struct state_header {
	char magic[8];
	uint32_t version, vcpus, thread_backed, xsave_bytes;
	uint64_t realtime_less_monotonic_ns;
	char boot_id[MACHINE_BOOT_ID_BYTES];
	uint32_t reserved;
	double operations_per_s;
};

struct section {
	uint32_t tag, bytes;
};

static const char *tag_name(enum state_tag tag)
{
	static const char *const names[] = {[STATE_CLOCK] = "clock",
					    [STATE_PROGRESS] = "progress",
					    [STATE_REGISTERS] = "regs",
					    [STATE_SYSTEM] = "sregs",
					    [STATE_XSAVE] = "xsave",
					    [STATE_XCRS] = "xcrs",
					    [STATE_MSRS] = "MSRs",
					    [STATE_EVENTS] = "events",
					    [STATE_DEBUG] = "debugregs",
					    [STATE_MP] = "mp_state",
					    [STATE_THREAD] = "thread registers"};
	return names[tag];
}

static void put_bytes(struct state_writer *writer, const void *bytes, size_t count)
{
	if (writer->failed)
		return;
	if (count > writer->room - writer->used) {
		size_t room = writer->room * 2 + count;
		uint8_t *grown = realloc(writer->bytes, room);
		if (!grown) {
			writer->failed = true;
			return;
		}
		writer->bytes = grown;
		writer->room = room;
	}
	memcpy(writer->bytes + writer->used, bytes, count);
	writer->used += count;
}

void state_put(struct state_writer *writer, enum state_tag tag, const void *bytes, size_t count)
{
	struct section section = {tag, (uint32_t)count};
	put_bytes(writer, &section, sizeof section);
	put_bytes(writer, bytes, count);
}

int state_take(struct state_reader *reader, enum state_tag tag, const uint8_t **bytes,
	       size_t *count, struct jaunt_error *error)
{
	struct section section;
	if (reader->left < sizeof section)
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u ends before its %s: it was cut short",
				 reader->vcpu, tag_name(tag));
	memcpy(&section, reader->bytes, sizeof section);
	if (section.tag != tag)
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u has section %u where its %s should be",
				 reader->vcpu, section.tag, tag_name(tag));
	if (section.bytes > reader->left - sizeof section)
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u: its %s say %u bytes, but only %zu are "
				 "left: it was cut short",
				 reader->vcpu, tag_name(tag), section.bytes,
				 reader->left - sizeof section);
	*bytes = reader->bytes + sizeof section;
	*count = section.bytes;
	reader->bytes += sizeof section + section.bytes;
	reader->left -= sizeof section + section.bytes;
	return 0;
}

int state_take_object(struct state_reader *reader, enum state_tag tag, void *object, size_t bytes,
		      struct jaunt_error *error)
{
	const uint8_t *found;
	size_t count;
	int failed = state_take(reader, tag, &found, &count, error);
	if (failed)
		return failed;
	if (count != bytes)
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u: its %s have %zu bytes, not %zu",
				 reader->vcpu, tag_name(tag), count, bytes);
	memcpy(object, found, bytes);
	return 0;
}

static uint64_t realtime_less_monotonic(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec - clock_ns();
}

/* From `monotonic_ns` at the source until now. */
static uint64_t elapsed_since(const struct microvm *vm, const struct state_header *header,
			      uint64_t monotonic_ns)
{
	uint64_t then = monotonic_ns;
	if (!vm->boot_id[0] || memcmp(vm->boot_id, header->boot_id, sizeof vm->boot_id))
		then += header->realtime_less_monotonic_ns - realtime_less_monotonic();
	int64_t elapsed = (int64_t)(clock_ns() - then);
	return elapsed < 0 || elapsed > LONGEST_TRIP_NS ? 0 : (uint64_t)elapsed;
}

static void put_progress(struct state_writer *writer, struct vcpu *vcpu)
{
	struct account *account = &vcpu->account;
	pthread_mutex_lock(&account->lock);
	struct state_progress progress = {.operations = account->operations,
					  .errors = account->errors,
					  .ready = vcpu->ready,
					  .crashed = vcpu->crashed};
	pthread_mutex_unlock(&account->lock);
	state_put(writer, STATE_PROGRESS, &progress, sizeof progress);
}

static int save_vcpu(struct vcpu *vcpu, struct state_writer *writer, struct jaunt_error *error)
{
	put_progress(writer, vcpu);
	if (!vcpu->vm->thread_backed)
		return cpu_save(vcpu, writer, error);
	struct state_clock clock = {__builtin_ia32_rdtsc() + vcpu->guest.registers.tsc_offset,
				    clock_ns()};
	state_put(writer, STATE_CLOCK, &clock, sizeof clock);
	state_put(writer, STATE_THREAD, &vcpu->guest.registers, sizeof vcpu->guest.registers);
	return 0;
}

int state_save(struct microvm *vm, void **state, size_t *bytes, struct jaunt_error *error)
{
	struct state_writer writer = {.room = 4096 + vm->vcpu_count * (vm->xsave_bytes + 4096)};
	writer.bytes = malloc(writer.room);
	if (!writer.bytes)
		return error_set(error, ENOMEM, "no-memory", "save vCPUs: out of memory");
	struct state_header header = {.magic = STATE_MAGIC,
				      .version = STATE_VERSION,
				      .vcpus = vm->vcpu_count,
				      .thread_backed = vm->thread_backed,
				      .xsave_bytes = (uint32_t)vm->xsave_bytes,
				      .realtime_less_monotonic_ns = realtime_less_monotonic()};
	memcpy(header.boot_id, vm->boot_id, sizeof header.boot_id);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		header.operations_per_s += account_rate(&vm->vcpus[i]);
	put_bytes(&writer, &header, sizeof header);
	int failed = 0;
	for (unsigned i = 0; i < vm->vcpu_count && !failed; i++)
		failed = save_vcpu(&vm->vcpus[i], &writer, error);
	if (!failed && writer.failed)
		failed = error_set(error, ENOMEM, "no-memory", "save vCPUs: out of memory");
	if (failed) {
		free(writer.bytes);
		return failed;
	}
	*state = writer.bytes;
	*bytes = writer.used;
	return 0;
}

static int check_header(const struct microvm *vm, const struct state_header *header,
			struct jaunt_error *error)
{
	if (memcmp(header->magic, STATE_MAGIC, sizeof header->magic))
		return error_set(error, EPROTO, "bad-state",
				 "saved state: these bytes are not the state of a built-in VM");
	if (header->version != STATE_VERSION)
		return error_set(error, EPROTO, "bad-state",
				 "saved state has version %u, this program knows %u: run the same "
				 "version of jaunt on both hosts",
				 header->version, STATE_VERSION);
	if (header->vcpus != vm->vcpu_count)
		return error_set(error, EPROTO, "bad-state",
				 "saved state has %u vCPUs, the VM was described with %u",
				 header->vcpus, vm->vcpu_count);
	if (!!header->thread_backed != vm->thread_backed)
		return error_set(error, EPROTO, "bad-state",
				 "saved state is of %s vCPUs, the VM was described with %s ones",
				 header->thread_backed ? "thread-backed" : "KVM",
				 vm->thread_backed ? "thread-backed" : "KVM");
	return 0;
}

/* The guest says which block is its own; a thread would follow it anywhere. */
static int load_thread(struct vcpu *vcpu, struct state_reader *reader, uint64_t tsc,
		       struct jaunt_error *error)
{
	typeof(vcpu->guest.registers) registers;
	int failed = state_take_object(reader, STATE_THREAD, &registers, sizeof registers, error);
	if (failed)
		return failed;
	if (registers.block != memory_block(vcpu))
		return error_set(error, EPROTO, "bad-state",
				 "saved state of vCPU %u points outside its own memory",
				 vcpu->index);
	registers.tsc_offset = tsc - __builtin_ia32_rdtsc();
	vcpu->guest.registers = registers;
	return 0;
}

static int load_vcpu(struct vcpu *vcpu, const struct state_header *header,
		     struct state_reader *reader, struct jaunt_error *error)
{
	struct microvm *vm = vcpu->vm;
	struct state_progress progress;
	struct state_clock clock;
	int failed = state_take_object(reader, STATE_PROGRESS, &progress, sizeof progress, error);
	if (!failed)
		failed = state_take_object(reader, STATE_CLOCK, &clock, sizeof clock, error);
	if (failed)
		return failed;
	uint64_t elapsed = elapsed_since(vm, header, clock.monotonic_ns);
	uint64_t tsc = clock.tsc + (uint64_t)((double)elapsed * (double)vm->tsc_khz / 1e6);
	vcpu->restored_tsc = tsc;
	vcpu->restored_ns = clock_ns();
	failed = vm->thread_backed ? load_thread(vcpu, reader, tsc, error)
				   : cpu_load(vcpu, reader, tsc, error);
	if (failed)
		return failed;
	struct account *account = &vcpu->account;
	pthread_mutex_lock(&account->lock);
	account->operations = account->operations_at_arrival = progress.operations;
	account->errors = progress.errors;
	pthread_mutex_unlock(&account->lock);
	pthread_mutex_lock(&vm->lock);
	vcpu->ready = progress.ready;
	pthread_mutex_unlock(&vm->lock);
	if (progress.crashed)
		vcpu_crash(vcpu, "had crashed at the source");
	return 0;
}

int state_load(struct microvm *vm, const void *state, size_t bytes, struct jaunt_error *error)
{
	struct state_header header;
	if (bytes < sizeof header)
		return error_set(
			error, EPROTO, "bad-state",
			"saved state has %zu bytes, its header alone %zu: it was cut short", bytes,
			sizeof header);
	memcpy(&header, state, sizeof header);
	int failed = check_header(vm, &header, error);
	struct state_reader reader = {.bytes = (const uint8_t *)state + sizeof header,
				      .left = bytes - sizeof header};
	for (unsigned i = 0; i < vm->vcpu_count && !failed; i++) {
		reader.vcpu = i;
		failed = load_vcpu(&vm->vcpus[i], &header, &reader, error);
	}
	if (!failed && reader.left)
		failed = error_set(error, EPROTO, "bad-state",
				   "saved state goes on for %zu bytes behind its last vCPU",
				   reader.left);
	if (failed)
		return failed;
	vm->operations_per_s_before = header.operations_per_s >= 0 && header.operations_per_s < 1e12
					      ? header.operations_per_s
					      : 0;
	vm->loaded = true;
	return 0;
}
