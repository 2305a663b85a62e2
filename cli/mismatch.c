/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/mismatch.h"

#include <stdlib.h>
#include <string.h>

#include "cli/text.h"

#define ITEM_COLUMNS  30
#define VALUE_COLUMNS 34

json_t *mismatch_json(struct jaunt_migration *migration)
{
	struct jaunt_difference *all = calloc(JAUNT_MAX_DIFFERENCES, sizeof(*all));
	json_t *array = json_array();
	size_t count = 0;

	if (all && migration)
		count = jaunt_migration_differences(migration, all, JAUNT_MAX_DIFFERENCES);
	for (size_t i = 0; i < count; i++)
		json_array_append_new(
			array, json_pack("{s:o, s:o, s:o, s:o, s:b}", "item",
					 text_json(all[i].item), "source", text_json(all[i].source),
					 "target", text_json(all[i].target), "advice",
					 text_json(all[i].advice), "allowable", all[i].allowable));
	free(all);
	return array;
}

static const char *shown(char *out, size_t room, const json_t *difference, const char *member)
{
	const char *text = json_string_value(json_object_get(difference, member));

	text_clean(out, room, text && *text ? text : "-");
	return out;
}

void mismatch_print(FILE *out, const json_t *differences)
{
	char item[600], source[600], target[600], advice[1100];
	json_t *one;
	size_t i;

	fprintf(out, "  %-*s %-*s %s\n", ITEM_COLUMNS, "ITEM", VALUE_COLUMNS, "SOURCE", "TARGET");
	json_array_foreach ((json_t *)differences, i, one) {
		shown(item, sizeof(item), one, "item");
		shown(source, sizeof(source), one, "source");
		shown(target, sizeof(target), one, "target");
		if (strlen(source) <= VALUE_COLUMNS)
			fprintf(out, "  %-*s %-*s %s\n", ITEM_COLUMNS, item, VALUE_COLUMNS, source,
				target);
		else
			fprintf(out, "  %s\n      source: %s\n      target: %s\n", item, source,
				target);
		fprintf(out, "      -> %s\n", shown(advice, sizeof(advice), one, "advice"));
	}
}
