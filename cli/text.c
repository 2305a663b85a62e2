/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at `at`, 0 if there is none. */
static size_t sequence_length(const unsigned char *at)
{
	size_t length;
	uint32_t point;

	if (at[0] < 0x80)
		return 1;
	if ((at[0] & 0xe0) == 0xc0)
		length = 2, point = at[0] & 0x1fu;
	else if ((at[0] & 0xf0) == 0xe0)
		length = 3, point = at[0] & 0x0fu;
	else if ((at[0] & 0xf8) == 0xf0)
		length = 4, point = at[0] & 0x07u;
	else
		return 0;
	for (size_t i = 1; i < length; i++) {
		if ((at[i] & 0xc0) != 0x80)
			return 0;
		point = point << 6 | (at[i] & 0x3fu);
	}
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	if (point < least[length] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
		return 0;
	/* C1 controls move the cursor on some terminals too. */
	return point < 0xa0 ? 0 : length;
}

void text_clean(char *to, size_t room, const char *from)
{
	const unsigned char *at = (const unsigned char *)(from ? from : "");
	size_t used = 0;

	while (*at) {
		size_t length = sequence_length(at);
		if (used + (length ? length : 1) >= room)
			break;
		if (!length)
			to[used++] = '?';
		else if (length == 1)
			to[used++] = (char)(*at < 0x20 || *at == 0x7f ? ' ' : *at);
		else
			memcpy(to + used, at, length), used += length;
		at += length ? length : 1;
	}
	if (room)
		to[used] = '\0';
}

json_t *text_json(const char *from)
{
	char clean[4096];
	text_clean(clean, sizeof(clean), from);
	return json_string(clean);
}

json_t *text_real(double value)
{
	return json_real(isfinite(value) ? value : 0.0);
}

void text_print_json(json_t *object)
{
	char *line = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(12)) : NULL;
	printf("%s\n", line ? line : "{}");
	fflush(stdout);
	free(line);
	json_decref(object);
}

char *text_bytes(char *to, size_t room, uint64_t bytes)
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	size_t unit = 0;
	double value = (double)bytes;

	while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0]))
		value /= 1024, unit++;
	snprintf(to, room, unit && value < 100 ? "%.2f %s" : "%.0f %s", value, units[unit]);
	return to;
}

char *text_rate(char *to, size_t room, double bytes_per_s)
{
	static const char *const units[] = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};
	size_t unit = 0;
	double value = isfinite(bytes_per_s) && bytes_per_s > 0 ? bytes_per_s : 0;

	while (value >= 1000 && unit + 1 < sizeof(units) / sizeof(units[0]))
		value /= 1000, unit++;
	snprintf(to, room, unit && value < 100 ? "%.2f %s" : "%.0f %s", value, units[unit]);
	return to;
}

char *text_microseconds(char *to, size_t room, double us)
{
	if (!isfinite(us) || us < 0)
		us = 0;
	if (us < 1000)
		snprintf(to, room, us < 10 ? "%.1f us" : "%.0f us", us);
	else if (us < 1000000)
		snprintf(to, room, us < 100000 ? "%.2f ms" : "%.0f ms", us / 1000);
	else
		snprintf(to, room, "%.2f s", us / 1000000);
	return to;
}

size_t text_distance(const char *a, const char *b)
{
	enum { LONGEST = 64 };
	size_t row[LONGEST + 1];
	size_t a_length = strlen(a), b_length = strlen(b);

	if (a_length > LONGEST || b_length > LONGEST)
		return LONGEST;
	for (size_t j = 0; j <= b_length; j++)
		row[j] = j;
	for (size_t i = 1; i <= a_length; i++) {
		size_t diagonal = row[0];
		row[0] = i;
		for (size_t j = 1; j <= b_length; j++) {
			size_t change = diagonal + (a[i - 1] != b[j - 1]);
			diagonal = row[j];
			size_t least = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
			row[j] = change < least ? change : least;
		}
	}
	return row[b_length];
}
