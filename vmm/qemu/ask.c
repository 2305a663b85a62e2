/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/ask.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

json_t *ask(struct ask *ask, const char *command, json_t *arguments)
{
	json_t *answer = NULL;

	if (ask->result) {
		json_decref(arguments);
		return NULL;
	}
	int result =
		qmp_execute(ask->qmp, command, arguments, ask->timeout_ms, &answer, ask->error);
	if (result == -EINVAL || result == -ENOSYS)
		error_clear(ask->error);
	else
		ask->result = result;
	return answer;
}

json_t *ask_property(struct ask *asking, const char *path, const char *name)
{
	return ask(asking, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", name));
}

json_t *ask_list(struct ask *asking, const char *path)
{
	return ask(asking, "qom-list", json_pack("{s:s}", "path", path));
}

void ask_each(struct ask *asking, const char *path,
	      bool (*wanted)(void *context, const char *name, const char *type),
	      void (*take)(void *context, const char *name, const json_t *value), void *context)
{
	json_t *list = ask_list(asking, path), *one;
	size_t room = json_array_size(list) + 1, count = 0, i;
	const char **names = calloc(room, sizeof(*names));
	json_t **arguments = calloc(room, sizeof(json_t *));
	json_t **values = calloc(room, sizeof(json_t *));

	json_array_foreach (list, i, one) {
		const char *name = ask_text(one, "name");
		if (!names || !arguments || !values ||
		    !wanted(context, name, ask_text(one, "type")))
			continue;
		names[count] = name;
		arguments[count++] = json_pack("{s:s, s:s}", "path", path, "property", name);
	}
	if (names && arguments && values && !asking->result)
		asking->result = qmp_execute_each(asking->qmp, "qom-get", arguments, count,
						  asking->timeout_ms, values, asking->error);
	asking->facts->lost |= !names || !arguments || !values;
	for (i = 0; i < count; i++) {
		if (values[i])
			take(context, names[i], values[i]);
		json_decref(values[i]);
	}
	free(names);
	free(arguments);
	free(values);
	json_decref(list);
}

const char *ask_text(const json_t *object, const char *member)
{
	const char *text = json_string_value(json_object_get(object, member));
	return text ? text : "";
}

bool ask_scalar(const json_t *value, char *text, size_t room)
{
	if (json_is_string(value))
		snprintf(text, room, "%s", json_string_value(value));
	else if (json_is_boolean(value))
		snprintf(text, room, "%s", json_is_true(value) ? "on" : "off");
	else if (json_is_integer(value))
		snprintf(text, room, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_real(value)) /* a whole number beyond 63 bits */
		snprintf(text, room, "%.0f", json_real_value(value));
	else
		return false;
	return true;
}
