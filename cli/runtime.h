/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The runtime directory: all that the commands share. Each process that owns a VM claims a name in
 * it and answers on NAME.sock. Errors come as -errno with `error` filled.
 */
#ifndef CLI_RUNTIME_H
#define CLI_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "jaunt.h"

#define RUNTIME_NAME_MAX 63

/* A name that this process holds, and the socket that listens under it. */
struct runtime_claim {
	char name[RUNTIME_NAME_MAX + 1];
	int lock_fd;   /* locked: the kernel lets go of it whatever way the process dies */
	int listen_fd; /* non-blocking */
};
#define RUNTIME_NO_CLAIM ((struct runtime_claim){.lock_fd = -1, .listen_fd = -1})

/* [A-Za-z0-9._-]{1,63}, beginning with a letter or a digit. */
bool runtime_name_valid(const char *name);
int runtime_name_check(const char *name, struct jaunt_error *error);

/* "$JAUNT_RUNTIME_DIR", else "/run/jaunt" for root, else "$XDG_RUNTIME_DIR/jaunt". */
int runtime_path(char *path, size_t room, struct jaunt_error *error);

/* Opens the directory, making it (0700) if it is not there; refuses one that others could write to
 * or that somebody else owns. Returns a descriptor. */
int runtime_open(struct jaunt_error *error);

/* -EEXIST, reason "name-taken", if a living process has the name: the text says which. What a dead
 * process left behind is removed. */
int runtime_claim(struct runtime_claim *claim, const char *name, struct jaunt_error *error);
void runtime_release(struct runtime_claim *claim);

/* Connects to the owner of a name. Non-blocking socket, or -ENOENT, reason "unknown-vm", with the
 * names that there are in the text. */
int runtime_connect(const char *name, struct jaunt_error *error);

/* The names with a living owner, sorted, in a malloc()ed array of malloc()ed strings. */
int runtime_list(char ***names, size_t *count, struct jaunt_error *error);
void runtime_list_free(char **names, size_t count);

#endif
