/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Guest memory is one memory file, mapped once as the VM's view. Creating it touches nothing: at
 * the target the engine registers the view with userfaultfd first, and a page that was touched
 * before would be visible behind its back. Only a VM that starts here writes into its view from the
 * monitor: page tables, program, parameters.
 *
 * From the bottom: GDT, program, a block for each vCPU, page tables (8 bytes for each 2 MiB), and
 * from the next multiple of 2 MiB on the pages that workloads work on. Page table entries have
 * their accessed and dirty bits set from the start, so that nobody ever writes to them again.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "vmm/microvm/guest/page.h"
#include "vmm/microvm/image.h"
#include "vmm/microvm/machine.h"

/* MFD_HUGE_2MB, which is only in <linux/memfd.h>, which disagrees with <sys/mman.h>. */
#define HUGE_2MIB (21u << 26)

/* MADV_POPULATE_WRITE, of Linux 5.14; older ones say EINVAL. */
#define POPULATE_WRITE 23
/* Short enough not to hold up a pause. */
#define CHUNK MIB(2)

#define HUGE_PAGE   MIB(2)
#define TABLE_BYTES UINT64_C(4096)
#define ENTRIES     512

#define ENTRY_TABLE UINT64_C(0x27) /* present, writable, user, accessed */
#define ENTRY_PAGE  UINT64_C(0xe7) /* the same, dirty, 2 MiB */

static void *at(struct microvm *vm, uint64_t guest_address)
{
	return vm->view + guest_address;
}

static uint64_t directories(const struct microvm *vm)
{
	return round_up(vm->memory_bytes, GIB(1)) / GIB(1);
}

static uint64_t directory_tables(const struct microvm *vm)
{
	return round_up(directories(vm), ENTRIES) / ENTRIES;
}

int memory_layout(struct microvm *vm, struct jaunt_error *error)
{
	uint64_t tables = TABLE_BYTES * (1 + directory_tables(vm) + directories(vm));
	vm->pages_start = round_up(MEMORY_TABLES(vm->vcpu_count) + tables, HUGE_PAGE);
	uint64_t room = vm->memory_bytes > vm->pages_start ? vm->memory_bytes - vm->pages_start : 0;
	uint64_t wanted = vm->workload.working_set_bytes;
	if (!wanted) {
		wanted = vm->memory_bytes / 100 * vm->workload.working_set_percent;
		if (wanted > room)
			wanted = room;
	}
	if (wanted > room)
		return error_set(error, EINVAL, "bad-workload",
				 "workload: the working set of %" PRIu64
				 " MiB does not fit into %" PRIu64
				 " MiB of memory, of which %" PRIu64
				 " are left for it: give a smaller ws= or more --memory",
				 wanted >> 20, vm->memory_bytes >> 20, room >> 20);
	uint64_t least = vm->workload.kind == GUEST_DISCARD ? 4 : 1;
	uint64_t share = wanted / vm->vcpu_count / vm->page_bytes * vm->page_bytes;
	if (share < least * vm->page_bytes)
		return error_set(error, EINVAL, "bad-workload",
				 "workload: a working set of %" PRIu64
				 " KiB is too small for %u vCPUs with %" PRIu64
				 " KiB pages, each needs %" PRIu64
				 ": give a larger ws= or more --memory",
				 wanted >> 10, vm->vcpu_count, vm->page_bytes >> 10, least);
	vm->pages_end = vm->pages_start + share * vm->vcpu_count;
	return 0;
}

/* A mapping that starts at a multiple of 2 MiB lets KVM use huge entries where the file has huge
 * pages, and userfaultfd deal in whole ones. */
static void *map_aligned(uint64_t bytes, int fd)
{
	uint8_t *room = mmap(NULL, bytes + HUGE_PAGE, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return room;
	uint8_t *start = room + (round_up((uintptr_t)room, HUGE_PAGE) - (uintptr_t)room);
	void *view = mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	int failed = errno;
	if (view == MAP_FAILED) {
		munmap(room, bytes + HUGE_PAGE);
		errno = failed;
		return view;
	}
	if (start > room)
		munmap(room, (size_t)(start - room));
	uint8_t *end = start + bytes, *room_end = room + bytes + HUGE_PAGE;
	if (room_end > end)
		munmap(end, (size_t)(room_end - end));
	return view;
}

int memory_create(struct microvm *vm, struct jaunt_error *error)
{
	bool huge = vm->page_bytes != 4096;
	vm->memory_fd =
		memfd_create("jaunt-ram", MFD_CLOEXEC | (huge ? MFD_HUGETLB | HUGE_2MIB : 0));
	if (vm->memory_fd < 0)
		return error_set(error, errno, huge ? "no-hugepages" : "no-memory",
				 "memory file: %s%s", strerror(errno),
				 huge ? "; does this kernel have 2 MiB huge pages (hugetlbfs)?"
				      : "");
	if (ftruncate(vm->memory_fd, (off_t)vm->memory_bytes))
		return error_set(error, errno, "no-memory",
				 "memory file of %" PRIu64 " MiB: %s; is there a file size limit "
				 "(ulimit -f)?",
				 vm->memory_bytes >> 20, strerror(errno));
	void *view = map_aligned(vm->memory_bytes, vm->memory_fd);
	if (view == MAP_FAILED)
		return error_set(error, errno, huge ? "no-hugepages" : "no-memory",
				 "map %" PRIu64 " MiB of guest memory: %s; %s",
				 vm->memory_bytes >> 20, strerror(errno),
				 huge ? "raise vm.nr_hugepages" : "is there a limit (ulimit -v)?");
	vm->view = view;
	/* A child of a fork would read zeros where pages are missing. */
	if (madvise(view, vm->memory_bytes, MADV_DONTFORK))
		return error_set(error, errno, "no-memory", "madvise(MADV_DONTFORK): %s",
				 strerror(errno));
	return 0;
}

void memory_destroy(struct microvm *vm)
{
	if (vm->view)
		munmap(vm->view, vm->memory_bytes);
	if (vm->memory_fd >= 0)
		close(vm->memory_fd);
	vm->view = NULL;
	vm->memory_fd = -1;
}

void memory_populate(struct vcpu *vcpu)
{
	struct microvm *vm = vcpu->vm;
	uint64_t share = (vm->pages_end - vm->pages_start) / vm->vcpu_count;
	uint8_t *start = vm->view + vm->pages_start + share * vcpu->index;
	while (vcpu->populated < share && vcpu_may_run(vcpu)) {
		uint64_t left = share - vcpu->populated, now = left < CHUNK ? left : CHUNK;
		int failed = madvise(start + vcpu->populated, now, POPULATE_WRITE) ? errno : 0;
		vcpu->populated += now;
		if (failed == ENOMEM || failed == EFAULT || failed == EHWPOISON)
			vcpu_crash(vcpu, "has no memory for its working set: %s", strerror(failed));
		if (failed)
			vcpu->populated = share;
	}
}

/*
 * A wait for a missing page cannot always be interrupted: where KVM walks the guest's page tables
 * by itself (shadow paging, as when nested) it reads them as any kernel code reads user memory,
 * which a signal does not end but turns into a busy loop (seen with Linux 6.18); a thread-backed
 * vCPU goes from the signal straight back into its fault. Ordinary memory in place of the view lets
 * all of them succeed, with zeros. Nobody has to leave a signal handler by longjmp for that, which
 * the thread sanitizer might run late or never.
 */
void memory_release(struct microvm *vm)
{
	atomic_store(&vm->released, true);
	/* If it fails there is nothing else to try: the wait ends when the engine's does. */
	(void)!mmap(vm->view, vm->memory_bytes, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

uint64_t memory_resident_bytes(const struct microvm *vm)
{
	struct stat status;
	return fstat(vm->memory_fd, &status) ? 0 : (uint64_t)status.st_blocks * 512;
}

static void write_tables(struct microvm *vm)
{
	uint64_t top = MEMORY_TABLES(vm->vcpu_count), tables = directory_tables(vm);
	uint64_t first_table = top + TABLE_BYTES, first = first_table + tables * TABLE_BYTES;
	uint64_t *entries = at(vm, top);
	for (uint64_t i = 0; i < tables; i++)
		entries[i] = (first_table + i * TABLE_BYTES) | ENTRY_TABLE;
	entries = at(vm, first_table);
	for (uint64_t i = 0; i < directories(vm); i++)
		entries[i] = (first + i * TABLE_BYTES) | ENTRY_TABLE;
	entries = at(vm, first);
	for (uint64_t i = 0; i < vm->memory_bytes / HUGE_PAGE; i++)
		entries[i] = i * HUGE_PAGE | ENTRY_PAGE;
}

struct guest_parameters memory_parameters(const struct vcpu *vcpu)
{
	const struct microvm *vm = vcpu->vm;
	uint64_t pages = (vm->pages_end - vm->pages_start) / GUEST_PAGE_BYTES / vm->vcpu_count;
	double cycles_per_s = (double)vm->tsc_khz * 1000;
	uint64_t rate = vm->workload.operations_per_s;
	return (struct guest_parameters){
		.workload = vm->workload.kind,
		.first_page = vm->pages_start / GUEST_PAGE_BYTES + pages * vcpu->index,
		.pages = pages,
		.unit_pages = vm->page_bytes / GUEST_PAGE_BYTES,
		.seed = vm->workload.seed,
		.owner = page_element(vm->workload.seed, vcpu->index + 1),
		.tick_cycles = vm->tsc_khz,
		.tick_reciprocal = UINT64_MAX / vm->tsc_khz,
		.slow_cycles = vm->tsc_khz * MICROVM_SLOW_TOUCH_US / 1000,
		.interval_cycles =
			rate ? (uint64_t)(cycles_per_s * vm->vcpu_count / (double)rate) : 0,
		.check_every = vm->workload.check_every,
	};
}

int memory_load_program(struct microvm *vm, struct jaunt_error *error)
{
	if (image_size > GUEST_PROGRAM_ROOM)
		return error_set(error, EFBIG, "bug", "the guest program does not fit its room");
	uint64_t *gdt = at(vm, GUEST_GDT);
	gdt[1] = UINT64_C(0x00affb000000ffff); /* 64-bit code, DPL 3 */
	gdt[2] = UINT64_C(0x00cff3000000ffff); /* data, DPL 3 */
	memcpy(vm->view + GUEST_PROGRAM, image_bytes, image_size);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct guest_parameters parameters = memory_parameters(&vm->vcpus[i]);
		memcpy(vm->view + memory_block(&vm->vcpus[i]), &parameters, sizeof parameters);
	}
	write_tables(vm);
	return 0;
}
