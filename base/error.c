/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct jaunt_error *error, int code, const char *reason, const char *format, ...)
{
	if (error) {
		va_list arguments;
		va_start(arguments, format);
		error->code = code;
		snprintf(error->reason, sizeof(error->reason), "%s", reason);
		vsnprintf(error->text, sizeof(error->text), format, arguments);
		va_end(arguments);
	}
	return -code;
}

int error_context(struct jaunt_error *error, const char *format, ...)
{
	char text[sizeof(error->text)];
	va_list arguments;

	if (!error)
		return -1;
	va_start(arguments, format);
	int used = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (used >= 0 && (size_t)used < sizeof(text))
		snprintf(text + used, sizeof(text) - (size_t)used, ": %s", error->text);
	memcpy(error->text, text, sizeof(text));
	return -error->code;
}

void error_clear(struct jaunt_error *error)
{
	if (error)
		memset(error, 0, sizeof(*error));
}
