/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <time.h>

#include "guest.h"

uint64_t time_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

void time_sleep_until(uint64_t moment_ns)
{
	struct timespec until = {(time_t)(moment_ns / SECOND_NS), (long)(moment_ns % SECOND_NS)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

/* Slots 0 to 7 are the values themselves; from then on eight to a power of two. */
static unsigned slot_of(uint64_t ns)
{
	if (ns < 8)
		return (unsigned)ns;
	unsigned power = 63 - (unsigned)__builtin_clzll(ns);

	return (power - 2) * 8 + (unsigned)((ns >> (power - 3)) & 7);
}

/* The most that a slot stands for. */
static uint64_t slot_end(unsigned slot)
{
	if (slot < 8)
		return slot;
	unsigned power = slot / 8 + 2;

	return ((UINT64_C(8) + slot % 8 + 1) << (power - 3)) - 1;
}

void times_add(struct times *times, uint64_t ns)
{
	uint64_t most = times->most_ns;

	times->slots[slot_of(ns)]++;
	times->count++;
	while (ns > most && !atomic_compare_exchange_weak(&times->most_ns, &most, ns))
		;
}

void times_clear(struct times *times)
{
	for (unsigned i = 0; i < TIMES_SLOTS; i++)
		times->slots[i] = 0;
	times->count = 0;
	times->most_ns = 0;
}

uint64_t times_at(struct times *times, unsigned per_mille)
{
	uint64_t wanted = (times->count * per_mille + 999) / 1000, seen = 0;

	for (unsigned i = 0; i < TIMES_SLOTS; i++) {
		seen += times->slots[i];
		if (seen >= wanted && seen > 0) {
			uint64_t end = slot_end(i);
			return end < times->most_ns ? end : times->most_ns;
		}
	}
	return 0;
}

void times_print(struct times *times, FILE *out)
{
	fprintf(out,
		"\"count\": %" PRIu64 ", \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
		"\"max_us\": %.3f",
		times->count, (double)times_at(times, 500) / 1e3,
		(double)times_at(times, 990) / 1e3, (double)times_at(times, 999) / 1e3,
		(double)times->most_ns / 1e3);
}

void errors_add(struct errors *errors, const char *format, ...)
{
	va_list values;

	errors->count++;
	if (atomic_exchange(&errors->taken, true))
		return;
	va_start(values, format);
	vsnprintf(errors->first, sizeof(errors->first), format, values);
	va_end(values);
	errors->told = true;
}

void errors_print(struct errors *errors, FILE *out)
{
	fprintf(out, "\"errors\": %" PRIu64 ", \"first\": ", errors->count);
	if (errors->told)
		fprintf(out, "\"%s\"", errors->first);
	else
		fprintf(out, "null");
}
