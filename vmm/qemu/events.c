/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/events.h"

#include <string.h>

static const char *name_of(const json_t *event)
{
	return json_string_value(json_object_get(event, "event"));
}

bool events_is_one(const json_t *message)
{
	return name_of(message) != NULL;
}

bool events_is_named(const json_t *event, const char *name)
{
	return strcmp(name_of(event), name) == 0;
}

ssize_t events_first(const json_t *events, const char *name)
{
	for (size_t i = 0; i < json_array_size(events); i++)
		if (events_is_named(json_array_get(events, i), name))
			return (ssize_t)i;
	return -1;
}

ssize_t events_last(const json_t *events, const char *name)
{
	for (size_t i = json_array_size(events); i-- > 0;)
		if (events_is_named(json_array_get(events, i), name))
			return (ssize_t)i;
	return -1;
}

/* The oldest that was told again since; if there is none, the oldest of all. */
static size_t least_wanted(const json_t *events)
{
	for (size_t i = 0; i < json_array_size(events); i++)
		if (events_last(events, name_of(json_array_get(events, i))) > (ssize_t)i)
			return i;
	return 0;
}

void events_keep(json_t *events, json_t *event)
{
	while (json_array_size(events) >= EVENTS_MAX)
		json_array_remove(events, least_wanted(events));
	json_array_append_new(events, event);
}

void events_take(json_t *events, size_t which, json_t **event)
{
	if (event)
		*event = json_incref(json_array_get(events, which));
	json_array_remove(events, which);
}

void events_forget(json_t *events, const char *name, size_t before)
{
	for (size_t i = before; i-- > 0;)
		if (events_is_named(json_array_get(events, i), name))
			json_array_remove(events, i);
}
