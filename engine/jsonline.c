/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/jsonline.h"

#include <stdio.h>

void jsonline_number(struct jsonline *line, uint64_t value)
{
	char digits[20];
	unsigned at = sizeof(digits);
	do
		digits[--at] = (char)('0' + value % 10);
	while (value /= 10);
	jsonline_bytes(line, digits + at, sizeof(digits) - at);
}

/* The length of the UTF-8 sequence that begins here, 0 if it is none (RFC 3629). */
static unsigned sequence_length(const unsigned char *text)
{
	unsigned length;
	unsigned char low = 0x80, high = 0xbf;

	if (text[0] < 0x80)
		return 1;
	if (text[0] >= 0xc2 && text[0] <= 0xdf)
		length = 2;
	else if (text[0] >= 0xe0 && text[0] <= 0xef)
		length = 3;
	else if (text[0] >= 0xf0 && text[0] <= 0xf4)
		length = 4;
	else
		return 0;
	if (text[0] == 0xe0)
		low = 0xa0;
	else if (text[0] == 0xed)
		high = 0x9f;
	else if (text[0] == 0xf0)
		low = 0x90;
	else if (text[0] == 0xf4)
		high = 0x8f;
	if (text[1] < low || text[1] > high)
		return 0;
	for (unsigned i = 2; i < length; i++)
		if (text[i] < 0x80 || text[i] > 0xbf)
			return 0;
	return length;
}

/* A JSON string; names come from the peer and may hold anything. */
void jsonline_string(struct jsonline *line, const char *text)
{
	jsonline_literal(line, "\"");
	for (const unsigned char *at = (const unsigned char *)text; *at;) {
		unsigned length = sequence_length(at);
		char escaped[8];
		if (!length) {
			jsonline_literal(line, "\\ufffd");
			at++;
		} else if (*at == '"' || *at == '\\' || *at < 0x20 || *at == 0x7f) {
			snprintf(escaped, sizeof(escaped), "\\u%04x", *at);
			jsonline_bytes(line, escaped, 6);
			at++;
		} else {
			jsonline_bytes(line, (const char *)at, length);
			at += length;
		}
	}
	jsonline_literal(line, "\"");
}
