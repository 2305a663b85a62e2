/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/ask.h"

#include <errno.h>
#include <stdio.h>
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
