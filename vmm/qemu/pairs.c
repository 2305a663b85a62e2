/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/pairs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int by_key(const void *a, const void *b)
{
	const struct jaunt_property *one = a, *other = b;
	int order = strcmp(one->key, other->key);

	return order ? order : strcmp(one->value, other->value);
}

static void sort(struct pairs *pairs)
{
	if (pairs->count)
		qsort(pairs->all, pairs->count, sizeof(*pairs->all), by_key);
}

int pairs_of_list(struct pairs *pairs, const struct jaunt_property *all, size_t count)
{
	*pairs = (struct pairs){.all = calloc(count + 1, sizeof(*all))};
	if (!pairs->all)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++)
		pairs->all[i] = all[i];
	pairs->count = count;
	sort(pairs);
	return 0;
}

static int cut(struct pairs *pairs, const char *value, const char *between)
{
	size_t bytes = value ? strlen(value) : 0;
	char *rest = NULL;

	*pairs = (struct pairs){.all = calloc(bytes / 2 + 2, sizeof(*pairs->all)),
				.text = strdup(value ? value : "")};
	if (!pairs->all || !pairs->text)
		return -ENOMEM;
	for (char *one = strtok_r(pairs->text, between, &rest); one;
	     one = strtok_r(NULL, between, &rest))
		pairs->all[pairs->count++] = (struct jaunt_property){one, ""};
	return 0;
}

int pairs_of_words(struct pairs *pairs, const char *value)
{
	int result = cut(pairs, value, " \n");

	sort(pairs);
	return result;
}

int pairs_of_lines(struct pairs *pairs, const char *value)
{
	int result = cut(pairs, value, "\n");

	for (size_t i = 0; i < pairs->count; i++) {
		char *equals = strchr(pairs->all[i].key, '=');
		if (equals) {
			*equals = '\0';
			pairs->all[i].value = equals + 1;
		}
	}
	sort(pairs);
	return result;
}

void pairs_close(struct pairs *pairs)
{
	free(pairs->all);
	free(pairs->text);
}

void pairs_walk(const struct pairs *source, const struct pairs *here,
		void (*visit)(void *context, const char *name, const char *source,
			      const char *here),
		void *context)
{
	size_t i = 0, j = 0;

	while (i < source->count || j < here->count) {
		const struct jaunt_property *a = i < source->count ? &source->all[i] : NULL;
		const struct jaunt_property *b = j < here->count ? &here->all[j] : NULL;
		int order = !a ? 1 : !b ? -1 : strcmp(a->key, b->key);
		visit(context, order <= 0 ? a->key : b->key, order <= 0 ? a->value : NULL,
		      order >= 0 ? b->value : NULL);
		i += order <= 0;
		j += order >= 0;
	}
}
