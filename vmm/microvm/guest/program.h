/* SPDX-License-Identifier: Apache-2.0 */
/* The guest program, one step at a time: see program.c. */
#ifndef VMM_MICROVM_GUEST_PROGRAM_H
#define VMM_MICROVM_GUEST_PROGRAM_H

#include "registers.h"

/* Sets the registers up for a vCPU that has never run and whose block is at `block`. */
void guest_begin(uint64_t block);

/* One operation, one page of a check, or one bounded wait. All that outlives it is in registers and
 * in the guest's pages. */
void guest_step(void);

#endif
