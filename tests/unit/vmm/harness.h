/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small VMs for tests, and moving them by hand. Failures end the test. KVM cases skip with a reason
 * where /dev/kvm cannot be used.
 */
#ifndef TESTS_UNIT_VMM_HARNESS_H
#define TESTS_UNIT_VMM_HARNESS_H

#include "vmm/microvm/guest/abi.h"
#include "vmm/microvm/microvm.h"

/* Far more than anything here takes: only a hang gets there. */
#define HARNESS_PATIENCE_MS 60000

enum harness_backing { HARNESS_KVM, HARNESS_THREAD };

/* Skips the test where that backing cannot be had. */
void harness_require(enum harness_backing backing);

/* 64 MiB in 4 KiB pages, two vCPUs; does not run yet. */
struct microvm *harness_create(enum harness_backing backing, const char *workload);
/* The same, running and populated. */
struct microvm *harness_start(enum harness_backing backing, const char *workload);

void harness_pause(struct microvm *vm);
void harness_resume(struct microvm *vm);
/* Has to find nothing. */
void harness_check(struct microvm *vm);

/* Where guest address 0 is. */
uint8_t *harness_memory(struct microvm *vm);
uint64_t harness_memory_bytes(struct microvm *vm);

/* An empty VM as the source describes it, made by the factory. */
struct microvm *harness_target(struct microvm *source);
/* The paused source's state, loaded into the target; no memory. */
void harness_move_state(struct microvm *source, struct microvm *target);
void harness_copy_memory(struct microvm *source, struct microvm *target);

struct microvm_account harness_account(struct microvm *vm);

#endif
