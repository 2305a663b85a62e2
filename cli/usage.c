/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/command.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/text.h"

void command_complain(const char *command, const char *text)
{
	char clean[1400];

	text_clean(clean, sizeof(clean), text);
	fprintf(stderr, "jaunt %s: %s\n", command, clean);
}

void command_usage(struct argp_state *state, const char *format, ...)
{
	char text[1400], clean[1400];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	text_clean(clean, sizeof(clean), text);
	fprintf(stderr, "%s: %s\nTry `%s --help'.\n", state->name, clean, state->name);
	exit(JAUNT_USAGE);
}
