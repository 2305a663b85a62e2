/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/runstate.h"

#include <stdio.h>

int runstate_ask(struct qmp *qmp, unsigned timeout_ms, char word[RUNSTATE_MAX],
		 struct jaunt_error *error)
{
	json_t *answer = NULL;
	int result = qmp_execute(qmp, "query-status", NULL, timeout_ms, &answer, error);
	const char *text = json_string_value(json_object_get(answer, "status"));

	snprintf(word, RUNSTATE_MAX, "%s", text ? text : "unknown");
	json_decref(answer);
	return result;
}
