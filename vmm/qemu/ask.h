/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions to a QEMU whose release may not know them, and the facts that come of the answers. One
 * thread at a time. What QEMU refuses to say is no error: the answer is NULL. Anything else, a QEMU
 * that is silent or gone, is kept in `result`, and no more is asked.
 */
#ifndef VMM_QEMU_ASK_H
#define VMM_QEMU_ASK_H

#include "vmm/qemu/facts.h"
#include "vmm/qemu/qmp.h"

struct ask {
	struct qmp *qmp;
	unsigned timeout_ms;
	struct facts *facts;
	struct jaunt_error *error;
	int result; /* 0, or the first -errno */
};

/* Takes the reference to `arguments`. A new reference, or NULL. */
json_t *ask(struct ask *ask, const char *command, json_t *arguments);
/* A property of an object, and the list of them. */
json_t *ask_property(struct ask *ask, const char *path, const char *name);
json_t *ask_list(struct ask *ask, const char *path);
/* Calls `take` with each property of an object whose name and type `wanted` wants, and that QEMU
 * tells. QEMU reads what it is asked byte by byte, some microseconds each: ask for little. */
void ask_each(struct ask *ask, const char *path,
	      bool (*wanted)(void *context, const char *name, const char *type),
	      void (*take)(void *context, const char *name, const json_t *value), void *context);
/* The text of a member; "" where there is none. */
const char *ask_text(const json_t *object, const char *member);

/* A number, a text, a truth as text; false: it is none of them. */
bool ask_scalar(const json_t *value, char *text, size_t room);

#endif
