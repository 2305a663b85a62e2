/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU has told on its monitor and nobody has taken yet, in the order in which it was told: a
 * list of EVENTS_MAX at the most. Indices are good until the list changes; -1: there is none.
 */
#ifndef VMM_QEMU_EVENTS_H
#define VMM_QEMU_EVENTS_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#define EVENTS_MAX 256

bool events_is_one(const json_t *message);
bool events_is_named(const json_t *event, const char *name);

/* The first or the last of that name. */
ssize_t events_first(const json_t *events, const char *name);
ssize_t events_last(const json_t *events, const char *name);
/* Takes the reference. Where there is no room the oldest goes that was told again since: the last
 * of each name stays. */
void events_keep(json_t *events, json_t *event);
/* Takes that one out; a new reference goes to *event unless that is NULL. */
void events_take(json_t *events, size_t which, json_t **event);
/* Takes out those of that name that lie before that one. */
void events_forget(json_t *events, const char *name, size_t before);

#endif
