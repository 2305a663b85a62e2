/* SPDX-License-Identifier: Apache-2.0 */
/* Where a vCPU starts under KVM: 64-bit mode, CPL 3, IOPL 3, identity-mapped, its block in rdi. */
#include "registers.h"
#include "program.h"

void _start(uint64_t block) __attribute__((noreturn, section(".text.start")));

void _start(uint64_t block)
{
	guest_begin(block);
	for (;;)
		guest_step();
}
