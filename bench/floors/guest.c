/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A vCPU begins in 64-bit mode at privilege level 3, with memory mapped one to one by 2 MiB
 * page-table entries, so that a touch costs one guest page-table walk and nothing in the guest
 * handles faults. Level 3 and not 0 because some nested hypervisors run only that natively; I/O
 * privilege 3 lets it end with an OUT all the same.
 *
 * The loop is in assembly: nothing may come between the two readings of the time stamp counter but
 * the touch, and the code must run wherever it is copied to. LFENCE keeps RDTSC from being executed
 * before the load in front of it has its value.
 */
#include "bench/floors/guest.h"
#include "bench/floors/program.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/bits.h"

#define PML4        0x1000
#define PDPT        0x2000
#define GDT         0x3000
#define TASKS       0x4000 /* one in 256 bytes for each vCPU */
#define CODE        0x8000
#define STACKS      0x10000 /* never used, but a stack pointer should point somewhere */
#define DIRECTORIES 0x100000
#define LOGS        MIB(16)
#define LOG_BYTES   (GUEST_LOG_ROOM * sizeof(struct guest_touch))
#define MAPPED_GIB  64

#define SELECTOR_CODE (8 | 3)
#define SELECTOR_DATA (16 | 3)
#define EXIT_PORT     0x10

_Static_assert(sizeof(struct guest_task) == 12 * 8, "the assembly knows the layout");
_Static_assert(LOGS + GUEST_VCPUS * LOG_BYTES <= GUEST_RAM, "logs lie below RAM");

extern const char guest_code_start[], guest_code_end[];

/* rdi: the task. r8 random state, r9 base, r10 pages, r11 threshold, r12 log, r13 log end,
 * r14 dwell, rbx page, rcx its address, rsi the time before, rax the time it took. */
__asm__(".pushsection .rodata\n"
	".global guest_code_start, guest_code_end\n"
	"guest_code_start:\n"
	"	mov 0(%rdi), %r8\n"
	"	mov 8(%rdi), %r9\n"
	"	mov 16(%rdi), %r10\n"
	"	mov 24(%rdi), %r11\n"
	"	mov 32(%rdi), %r12\n"
	"	mov 40(%rdi), %r13\n"
	"	mov 48(%rdi), %r14\n"
	"1:	mov %r8, %rax\n" /* xorshift64*, then a multiplication to bring it into range */
	"	shr $12, %rax\n"
	"	xor %rax, %r8\n"
	"	mov %r8, %rax\n"
	"	shl $25, %rax\n"
	"	xor %rax, %r8\n"
	"	mov %r8, %rax\n"
	"	shr $27, %rax\n"
	"	xor %rax, %r8\n"
	"	mov $0x2545f4914f6cdd1d, %rax\n"
	"	imul %r8, %rax\n"
	"	mul %r10\n"
	"	mov %rdx, %rbx\n"
	"	mov %rdx, %rcx\n"
	"	shl $12, %rcx\n"
	"	add %r9, %rcx\n"
	"	rdtsc\n"
	"	shl $32, %rdx\n"
	"	or %rdx, %rax\n"
	"	mov %rax, %rsi\n"
	"	lfence\n"
	"	mov (%rcx), %r15\n" /* the touch */
	"	lfence\n"
	"	rdtsc\n"
	"	shl $32, %rdx\n"
	"	or %rdx, %rax\n"
	"	mov %rax, %rdx\n" /* rdx: now */
	"	sub %rsi, %rax\n"
	"	incq 72(%rdi)\n"
	"	add 88(%rdi), %rbx\n" /* from here on the page's number among all */
	"	xor %rbx, %r15\n"
	"	cmp 56(%rdi), %r15\n"
	"	je 2f\n"
	"	incq 80(%rdi)\n"
	"2:	cmp %r11, %rax\n"
	"	jb 3f\n"
	"	mov %rbx, (%r12)\n"
	"	mov %rax, 8(%r12)\n"
	"	add $16, %r12\n"
	"	mov %r12, 32(%rdi)\n"
	"	cmp %r13, %r12\n"
	"	jae 9f\n"
	"3:	test %r14, %r14\n"
	"	jz 5f\n"
	"	lea (%rdx,%r14), %rsi\n"
	"4:	pause\n"
	"	rdtsc\n"
	"	shl $32, %rdx\n"
	"	or %rdx, %rax\n"
	"	cmp %rsi, %rax\n"
	"	jb 4b\n"
	"5:	cmpq $0, 64(%rdi)\n"
	"	je 1b\n"
	"9:	out %al, $0x10\n"
	"	jmp 9b\n"
	"guest_code_end:\n"
	".popsection\n");

static int ask(int fd, unsigned long request, void *argument, const char *what)
{
	int result;
	do
		result = ioctl(fd, request, argument);
	while (result < 0 && errno == EINTR);
	if (result < 0)
		program_fail("%s", what);
	return result;
}

static void add_memory(const struct guest *guest, uint32_t slot, uint64_t address, void *memory,
		       uint64_t bytes)
{
	struct kvm_userspace_memory_region region = {.slot = slot,
						     .guest_phys_addr = address,
						     .memory_size = bytes,
						     .userspace_addr = (uintptr_t)memory};
	ask(guest->vm, KVM_SET_USER_MEMORY_REGION, &region, "give memory to the guest");
}

static void build_tables(uint8_t *low)
{
	uint64_t *pml4 = (uint64_t *)(low + PML4), *pdpt = (uint64_t *)(low + PDPT);
	uint64_t *directory = (uint64_t *)(low + DIRECTORIES);
	pml4[0] = PDPT | 7; /* present, writable, for user mode */
	for (uint64_t gib = 0; gib < MAPPED_GIB; gib++)
		pdpt[gib] = (DIRECTORIES + gib * 4096) | 7;
	for (uint64_t entry = 0; entry < MAPPED_GIB * 512; entry++)
		directory[entry] = entry << 21 | 0x87;
	uint64_t *gdt = (uint64_t *)(low + GDT);
	gdt[1] = 0x00affb000000ffff; /* code, 64 bit, level 3 */
	gdt[2] = 0x00cff3000000ffff; /* data, level 3 */
	memcpy(low + CODE, guest_code_start, (size_t)(guest_code_end - guest_code_start));
}

static void reset_vcpu(const struct guest *guest, unsigned index)
{
	int fd = guest->vcpus[index].fd;
	struct kvm_sregs special;
	ask(fd, KVM_GET_SREGS, &special, "read special registers");
	special.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
	special.cr3 = PML4;
	special.cr4 = 0x620;  /* PAE OSFXSR OSXMMEXCPT */
	special.efer = 0xd00; /* LME LMA NXE */
	special.gdt.base = GDT;
	special.gdt.limit = 3 * 8 - 1;
	special.cs = (struct kvm_segment){.limit = UINT32_MAX,
					  .selector = SELECTOR_CODE,
					  .type = 11,
					  .present = 1,
					  .dpl = 3,
					  .s = 1,
					  .l = 1,
					  .g = 1};
	special.ss = (struct kvm_segment){.limit = UINT32_MAX,
					  .selector = SELECTOR_DATA,
					  .type = 3,
					  .present = 1,
					  .dpl = 3,
					  .db = 1,
					  .s = 1,
					  .g = 1};
	special.ds = special.es = special.fs = special.gs = special.ss;
	struct kvm_regs registers = {.rip = CODE,
				     .rflags = 0x3002, /* IOPL 3 */
				     .rsp = STACKS + (index + 1) * 1024,
				     .rdi = TASKS + index * 256};
	ask(fd, KVM_SET_SREGS, &special, "set special registers");
	ask(fd, KVM_SET_REGS, &registers, "set registers");
}

static void open_vcpu(struct guest *guest, unsigned index)
{
	struct guest_vcpu *vcpu = &guest->vcpus[index];
	vcpu->guest = guest;
	vcpu->fd = ask(guest->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)index, "create a vCPU");
	size_t bytes = (size_t)ask(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "size of a vCPU");
	vcpu->run = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		program_fail("map a vCPU");
	static union {
		struct kvm_cpuid2 head;
		char room[sizeof(struct kvm_cpuid2) + 128 * sizeof(struct kvm_cpuid_entry2)];
	} cpuid;
	cpuid.head.nent = 128;
	ask(guest->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid, "read CPUID");
	ask(vcpu->fd, KVM_SET_CPUID2, &cpuid, "set CPUID");
	vcpu->task = (struct guest_task *)(void *)(guest->low + TASKS + index * 256);
}

void guest_open(struct guest *guest, unsigned vcpu_count, void *ram, uint64_t ram_bytes)
{
	if (vcpu_count < 1 || vcpu_count > GUEST_VCPUS || ram_bytes > GIB(MAPPED_GIB) - GUEST_RAM)
		program_usage("1 to %d vCPUs, up to 60 GiB", GUEST_VCPUS);
	*guest = (struct guest){.vcpu_count = vcpu_count};
	guest->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (guest->kvm < 0)
		program_fail("/dev/kvm");
	guest->vm = ask(guest->kvm, KVM_CREATE_VM, NULL, "create a VM");
	uint64_t low_bytes = LOGS + vcpu_count * LOG_BYTES;
	guest->low = mmap(NULL, low_bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (guest->low == MAP_FAILED)
		program_fail("private memory of the guest");
	build_tables(guest->low);
	ask(guest->vm, KVM_SET_TSS_ADDR, (void *)(uintptr_t)0xfffbd000, "place the TSS");
	add_memory(guest, 0, 0, guest->low, low_bytes);
	if (ram)
		add_memory(guest, 1, GUEST_RAM, ram, ram_bytes);
	for (unsigned index = 0; index < vcpu_count; index++)
		open_vcpu(guest, index);
	guest->cycles_per_us =
		ask(guest->vcpus[0].fd, KVM_GET_TSC_KHZ, NULL, "frequency of the TSC") / 1000.0;
}

void guest_prepare(struct guest *guest, uint64_t pages, double threshold_us, double dwell_us,
		   uint64_t mark, uint64_t seed)
{
	uint64_t share = pages / guest->vcpu_count;
	for (unsigned index = 0; index < guest->vcpu_count; index++) {
		uint64_t log = LOGS + index * LOG_BYTES;
		*guest->vcpus[index].task = (struct guest_task){
			.state = (seed * GUEST_VCPUS + index + 1) * UINT64_C(0x9e3779b97f4a7c15),
			.base = GUEST_RAM + index * share * 4096,
			.first = index * share,
			.pages = share,
			.threshold = (uint64_t)(threshold_us * guest->cycles_per_us),
			.log = log,
			.log_end = log + LOG_BYTES,
			.dwell = (uint64_t)(dwell_us * guest->cycles_per_us),
			.mark = mark};
		reset_vcpu(guest, index);
	}
}

static void *run(void *argument)
{
	struct guest_vcpu *vcpu = argument;
	ask(vcpu->fd, KVM_RUN, NULL, "run a vCPU");
	if (vcpu->run->exit_reason != KVM_EXIT_IO || vcpu->run->io.port != EXIT_PORT)
		program_usage("a vCPU stopped for exit reason %u", vcpu->run->exit_reason);
	if (vcpu->guest->ended)
		sem_post(vcpu->guest->ended);
	return NULL;
}

void guest_start(struct guest *guest, const char *cpus)
{
	for (unsigned index = 0; index < guest->vcpu_count; index++) {
		pthread_attr_t attributes;
		pthread_attr_init(&attributes);
		program_pin_attributes(&attributes, cpus);
		struct guest_vcpu *vcpu = &guest->vcpus[index];
		if (pthread_create(&vcpu->thread, &attributes, run, vcpu))
			program_fail("start a vCPU");
		pthread_attr_destroy(&attributes);
	}
}

void guest_stop(struct guest *guest)
{
	for (unsigned index = 0; index < guest->vcpu_count; index++)
		__atomic_store_n(&guest->vcpus[index].task->stop, 1, __ATOMIC_RELEASE);
	for (unsigned index = 0; index < guest->vcpu_count; index++)
		pthread_join(guest->vcpus[index].thread, NULL);
}

const struct guest_touch *guest_log(const struct guest *guest, unsigned vcpu, size_t *count)
{
	uint64_t start = LOGS + vcpu * LOG_BYTES;
	*count = (guest->vcpus[vcpu].task->log - start) / sizeof(struct guest_touch);
	return (const struct guest_touch *)(const void *)(guest->low + start);
}
