/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole migration for the tests of the engine, both sides in this process: memory, and what of a
 * driver does nothing but what it must. Neither VM has a vCPU. What a test is about it puts into
 * the drivers' operations itself; the context of each is its struct moving_vm.
 */
#ifndef TESTS_UNIT_ENGINE_MOVING_H
#define TESTS_UNIT_ENGINE_MOVING_H

#include <stdbool.h>
#include <stdint.h>

#include "jaunt.h"

enum { MOVING_PAGE = 4096 };

struct moving_vm {
	struct jaunt_region region;
	unsigned resumed;
};

struct moving {
	struct moving_vm source, target;
	struct jaunt_migration *departure, *arrival;
	/* Of the target, once it is over: */
	int arrived;
	struct jaunt_error arrived_with;
	bool same; /* the memory of both */
};

extern struct moving moving;

/* Operations: the description has that one region; a pause stops nothing; the state is empty. */
int moving_describe(void *vm, struct jaunt_description *out, struct jaunt_error *error);
int moving_pause(void *vm, uint64_t *when_ns, struct jaunt_error *error);
int moving_save(void *vm, void **state, size_t *bytes, struct jaunt_error *error);
int moving_load(void *vm, const void *state, size_t bytes, struct jaunt_error *error);
int moving_resume(void *vm, uint64_t *when_ns, struct jaunt_error *error); /* counts */

/* Moves a VM of so many pages, none of them zero. Of `options` the source has all but the peer. The
 * source's outcome. */
int moving_move(const struct jaunt_vm_ops *here, const struct jaunt_vm_ops *there, uint64_t pages,
		const struct jaunt_options *options, struct jaunt_error *error);

#endif
