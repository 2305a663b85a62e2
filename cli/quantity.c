/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Numbers are read by hand into an integer and nine decimal places, and multiplied in 128 bits:
 * strtod() would take "inf", "0x10" and "1e9", depend on the locale, and round large sizes.
 */
#include "cli/quantity.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"

#define QUANTITY_NANO 1000000000u

/* A non-negative decimal number in billionths, and where it ended. */
static int take_number(const char *text, unsigned __int128 *nano, const char **rest)
{
	const char *at = text;
	unsigned __int128 whole = 0;

	if (*at < '0' || *at > '9')
		return -EINVAL;
	for (; *at >= '0' && *at <= '9'; at++) {
		whole = whole * 10 + (unsigned)(*at - '0');
		if (whole > UINT64_MAX)
			return -ERANGE;
	}
	whole *= QUANTITY_NANO;
	if (*at == '.') {
		unsigned place = QUANTITY_NANO / 10;
		if (*++at < '0' || *at > '9')
			return -EINVAL;
		for (; *at >= '0' && *at <= '9'; at++, place /= 10)
			whole += (unsigned __int128)(unsigned)(*at - '0') * place;
	}
	*nano = whole;
	*rest = at;
	return 0;
}

static int scale(unsigned __int128 nano, uint64_t unit, uint64_t divisor, uint64_t *out)
{
	/* nano is below 2^94 and unit at most 2^40: look before multiplying. */
	if (nano / QUANTITY_NANO > UINT64_MAX / unit)
		return -ERANGE;
	unsigned __int128 value = nano * unit / QUANTITY_NANO / divisor;
	if (value > INT64_MAX)
		return -ERANGE;
	*out = (uint64_t)value;
	return 0;
}

/* The power that a prefix letter stands for, 0 when it is none. */
static unsigned prefix_power(char letter)
{
	static const char letters[] = "kmgt";
	char lower = letter >= 'A' && letter <= 'Z' ? (char)(letter + 32) : letter;
	const char *found = lower ? strchr(letters, lower) : NULL;
	return found ? (unsigned)(found - letters) + 1 : 0;
}

static uint64_t power_of(uint64_t base, unsigned exponent)
{
	uint64_t value = 1;
	while (exponent--)
		value *= base;
	return value;
}

int quantity_size(const char *text, uint64_t *bytes, struct jaunt_error *error)
{
	unsigned __int128 nano;
	const char *rest;
	unsigned power = 0;
	int result = take_number(text, &nano, &rest);

	if (!result) {
		power = prefix_power(*rest);
		if (power)
			rest++;
		if (*rest && strcasecmp(rest, "B") != 0 && (!power || strcasecmp(rest, "iB") != 0))
			result = -EINVAL;
	}
	if (!result)
		result = scale(nano, power_of(1024, power), 1, bytes);
	if (!result && *bytes == 0)
		result = -EINVAL;
	if (result)
		return error_set(error, -result, "bad-size",
				 "\"%s\" is not a size; write it like 512M, 1G or 1.5GiB", text);
	return 0;
}

int quantity_rate(const char *text, uint64_t *bytes_per_s, struct jaunt_error *error)
{
	static const struct {
		const char *name;
		unsigned bits;
	} units[] = {
		{"", 8}, {"B", 8}, {"B/s", 8}, {"bit", 1}, {"bit/s", 1}, {"bps", 1}, {"b/s", 1},
	};
	unsigned __int128 nano;
	const char *rest;
	uint64_t prefix = 1;
	unsigned bits = 0;
	int result = take_number(text, &nano, &rest);

	if (!result) {
		unsigned power = prefix_power(*rest);
		if (power) {
			rest++;
			prefix = power_of(*rest == 'i' ? 1024 : 1000, power);
			if (*rest == 'i')
				rest++;
		}
		/* B and b differ by eight: these are the only letters whose case counts. */
		for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
			if (strcmp(rest, units[i].name) == 0)
				bits = units[i].bits;
		if (!bits)
			result = -EINVAL;
	}
	if (!result)
		result = scale(nano, prefix, bits == 8 ? 1 : 8, bytes_per_s);
	if (!result && *bytes_per_s == 0)
		result = -EINVAL;
	if (result)
		return error_set(error, -result, "bad-rate",
				 "\"%s\" is not a rate; write it like 125MB/s, 100MiB/s or 1Gbit "
				 "(leave the option out for no limit)",
				 text);
	return 0;
}

int quantity_count(const char *what, const char *text, uint64_t least, uint64_t most,
		   uint64_t *count, struct jaunt_error *error)
{
	unsigned __int128 nano;
	const char *rest;
	int result = take_number(text, &nano, &rest);

	if (!result && (*rest || strchr(text, '.')))
		result = -EINVAL;
	if (!result)
		result = scale(nano, 1, 1, count);
	if (!result && (*count < least || *count > most))
		result = -ERANGE;
	if (result)
		return error_set(error, -result, "bad-number",
				 "\"%s\" is not a number of %s; it is a whole number from %llu to "
				 "%llu",
				 text, what, (unsigned long long)least, (unsigned long long)most);
	return 0;
}

int quantity_time_ms(const char *text, uint32_t *milliseconds, struct jaunt_error *error)
{
	unsigned __int128 nano;
	const char *rest;
	uint64_t value = 0;
	int result = take_number(text, &nano, &rest);

	if (!result) {
		if (strcmp(rest, "ms") == 0)
			result = scale(nano, 1, 1, &value);
		else if (!*rest || strcmp(rest, "s") == 0)
			result = scale(nano, 1000, 1, &value);
		else
			result = -EINVAL;
	}
	if (!result && (value < 1 || value > 3600000))
		result = -ERANGE;
	if (result)
		return error_set(error, -result, "bad-time",
				 "\"%s\" is not a time; write it like 10s or 250ms, up to 3600s",
				 text);
	*milliseconds = (uint32_t)value;
	return 0;
}

int quantity_switch(const char *what, const char *text, bool *on, struct jaunt_error *error)
{
	if (strcmp(text, "on") == 0)
		*on = true;
	else if (strcmp(text, "off") == 0)
		*on = false;
	else
		return error_set(error, EINVAL, "bad-switch", "%s is either on or off, not \"%s\"",
				 what, text);
	return 0;
}
