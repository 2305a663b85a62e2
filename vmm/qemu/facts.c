/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/facts.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct jaunt_property *find(const struct facts *facts, const char *key)
{
	for (size_t i = 0; i < facts->count; i++)
		if (strcmp(facts->all[i].key, key) == 0)
			return &facts->all[i];
	return NULL;
}

static struct jaunt_property *make(struct facts *facts, const char *key)
{
	if (facts->count == facts->room) {
		size_t room = facts->room ? facts->room * 2 : 64;
		void *all = realloc(facts->all, room * sizeof(*facts->all));
		if (!all)
			return NULL;
		facts->all = all;
		facts->room = room;
	}
	char *own = strdup(key);
	if (!own)
		return NULL;
	facts->all[facts->count] = (struct jaunt_property){.key = own};
	return &facts->all[facts->count++];
}

/* Names in a QEMU may hold anything. A line of a fact is one line, whatever is in it; and control
 * characters cannot travel in a property. */
static void clean(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			*text = ' ';
}

void facts_add(struct facts *facts, const char *key, const char *format, ...)
{
	char line[FACTS_VALUE_MAX], *value;
	struct jaunt_property *fact = find(facts, key);
	va_list arguments;

	va_start(arguments, format);
	int bytes = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	clean(line);
	size_t before = fact ? strlen(fact->value) + 1 : 0;
	if (bytes < 0 || before + (size_t)bytes >= sizeof(line) || strlen(key) >= FACTS_KEY_MAX ||
	    (!fact && facts->count == JAUNT_MAX_PROPERTIES)) {
		facts->lost = true;
		return;
	}
	value = malloc(before + (size_t)bytes + 1);
	if (value && !fact)
		fact = make(facts, key);
	if (!value || !fact) {
		free(value);
		facts->lost = true;
		return;
	}
	if (before)
		snprintf(value, before + 1, "%s\n", fact->value);
	memcpy(value + before, line, (size_t)bytes + 1);
	free((char *)fact->value);
	fact->value = value;
}

const char *facts_find(const struct facts *facts, const char *key)
{
	const struct jaunt_property *fact = find(facts, key);
	return fact ? fact->value : NULL;
}

static int by_key(const void *a, const void *b)
{
	return strcmp(((const struct jaunt_property *)a)->key,
		      ((const struct jaunt_property *)b)->key);
}

void facts_sort(struct facts *facts)
{
	if (facts->count)
		qsort(facts->all, facts->count, sizeof(*facts->all), by_key);
}

void facts_close(struct facts *facts)
{
	for (size_t i = 0; i < facts->count; i++) {
		free((char *)facts->all[i].key);
		free((char *)facts->all[i].value);
	}
	free(facts->all);
	*facts = (struct facts){.all = NULL};
}

bool facts_line(const char *value, const char *name, char *text, size_t room)
{
	size_t length = strlen(name);

	while (value && *value) {
		size_t bytes = strcspn(value, "\n");
		if (bytes > length && memcmp(value, name, length) == 0 && value[length] == '=') {
			snprintf(text, room, "%.*s", (int)(bytes - length - 1), value + length + 1);
			return true;
		}
		value += bytes + (value[bytes] == '\n');
	}
	text[0] = '\0';
	return false;
}
