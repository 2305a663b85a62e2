/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/differences.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int differences_take(struct differences *differences, const Jaunt__Refused *refused)
{
	bool all_there = true;

	*differences = (struct differences){.all = NULL};
	if (!refused->n_differences)
		return 0;
	differences->all = calloc(refused->n_differences, sizeof(*differences->all));
	if (!differences->all)
		return -ENOMEM;
	for (size_t i = 0; i < refused->n_differences; i++) {
		const Jaunt__Difference *told = refused->differences[i];
		differences->all[differences->count++] = (struct jaunt_difference){
			.item = strdup(told->item),
			.source = strdup(told->source),
			.target = strdup(told->target),
			.advice = strdup(told->advice),
			.allowable = told->allowable,
		};
		const struct jaunt_difference *taken = &differences->all[i];
		all_there =
			all_there && taken->item && taken->source && taken->target && taken->advice;
	}
	if (all_there)
		return 0;
	differences_close(differences);
	return -ENOMEM;
}

void differences_close(struct differences *differences)
{
	for (size_t i = 0; i < differences->count; i++) {
		free((char *)differences->all[i].item);
		free((char *)differences->all[i].source);
		free((char *)differences->all[i].target);
		free((char *)differences->all[i].advice);
	}
	free(differences->all);
	*differences = (struct differences){.all = NULL};
}

void differences_tell(Jaunt__Refused *refused, const struct jaunt_difference *all, size_t count)
{
	Jaunt__Difference *told = calloc(count ? count : 1, sizeof(*told));
	Jaunt__Difference **list = calloc(count ? count : 1, sizeof(Jaunt__Difference *));

	if (!told || !list || !count) {
		free(told);
		free(list);
		return;
	}
	if (count > JAUNT_MAX_DIFFERENCES)
		count = JAUNT_MAX_DIFFERENCES;
	for (size_t i = 0; i < count; i++) {
		jaunt__difference__init(&told[i]);
		told[i].item = (char *)all[i].item;
		told[i].source = (char *)all[i].source;
		told[i].target = (char *)all[i].target;
		told[i].advice = (char *)all[i].advice;
		told[i].allowable = all[i].allowable;
		list[i] = &told[i];
	}
	refused->differences = list;
	refused->n_differences = count;
}

void differences_untell(Jaunt__Refused *refused)
{
	if (!refused->n_differences)
		return;
	free(refused->differences[0]); /* all of them lie behind the first */
	free(refused->differences);
	refused->differences = NULL;
	refused->n_differences = 0;
}
