/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * One slot per point, set up before any thread passes and then only read, but for two counters. A
 * pass takes a number from an atomic counter; whether that number fires is arithmetic on it and the
 * keys, so exactly the n-th pass fires however many threads come by. `count` needs no counter of
 * its own: the k-th firing is at pass first + (k - 1) * step. A point that is not armed counts
 * nothing, so a test build without JAUNT_INJECT in its environment runs with one load per point.
 */
#include "engine/inject.h"

#ifdef JAUNT_INJECT

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"

static const char *const point_names[INJECT_POINTS] = {
	[INJECT_DATA_FLIP] = "data.flip",
	[INJECT_DATA_LOSE] = "data.lose",
	[INJECT_DATA_TEAR] = "data.tear",
	[INJECT_DATA_TWICE] = "data.twice",
	[INJECT_DATA_STALE] = "data.stale",
	[INJECT_REPLY_DELAY] = "reply.delay",
	[INJECT_CHANNEL_DROP] = "channel.drop",
	[INJECT_CHANNEL_CUT] = "channel.cut",
	[INJECT_MEMORY_FULL] = "memory.full",
	[INJECT_LINK_CUT_LOADED] = "link.cut.loaded",
	[INJECT_LINK_CUT_COMMIT] = "link.cut.commit",
	[INJECT_KILL_PREPARE] = "side.kill.prepare",
	[INJECT_KILL_ROUND] = "side.kill.round",
	[INJECT_KILL_AHEAD] = "side.kill.ahead",
	[INJECT_KILL_SWITCHOVER] = "side.kill.switchover",
	[INJECT_KILL_BEFORE_COMMIT] = "side.kill.before-commit",
	[INJECT_KILL_AFTER_COMMIT] = "side.kill.after-commit",
	[INJECT_KILL_POSTCOPY] = "side.kill.postcopy",
	[INJECT_KILL_CLAIMED] = "side.kill.claimed",
	[INJECT_KILL_WRITTEN] = "side.kill.written",
	[INJECT_KILL_VISIBLE] = "side.kill.visible",
	[INJECT_HOLD_PREPARE] = "side.hold.prepare",
	[INJECT_HOLD_AHEAD] = "side.hold.ahead",
	[INJECT_HOLD_HELD] = "side.hold.held",
	[INJECT_HOLD_SWITCHOVER] = "side.hold.switchover",
	[INJECT_HOLD_BEFORE_COMMIT] = "side.hold.before-commit",
};

static const char *const key_names[INJECT_KEYS] = {
	[INJECT_NTH] = "nth",           [INJECT_EVERY] = "every", [INJECT_COUNT] = "count",
	[INJECT_DELAY_US] = "delay_us", [INJECT_SEED] = "seed",
};

struct slot {
	bool armed;
	enum inject_side side;
	uint64_t keys[INJECT_KEYS];
	uint64_t first, step, limit; /* limit 0: none */
	atomic_uint_least64_t passes, fired;
};

static struct slot slots[INJECT_POINTS];
static _Atomic enum inject_side my_side;

static int unknown(struct jaunt_error *error, const char *what, const char *name, int length,
		   const char *const *names, size_t count)
{
	char known[512] = "";
	size_t used = 0;
	for (size_t i = 0; i < count && used < sizeof(known); i++)
		used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "",
					 names[i]);
	return error_set(error, EINVAL, "usage", "JAUNT_INJECT: unknown %s \"%.*s\"; known are: %s",
			 what, length, name, known);
}

static int find(const char *name, size_t length, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (strlen(names[i]) == length && !memcmp(names[i], name, length))
			return (int)i;
	return -1;
}

static int parse_key(struct slot *slot, const char *text, size_t length, struct jaunt_error *error)
{
	const char *equals = memchr(text, '=', length);
	size_t name_length = equals ? (size_t)(equals - text) : length;
	int key = find(text, name_length, key_names, INJECT_KEYS);
	char *end = NULL;

	if (key < 0)
		return unknown(error, "key", text, (int)name_length, key_names, INJECT_KEYS);
	errno = 0;
	uint64_t value = 0;
	if (equals && equals[1] >= '0' && equals[1] <= '9')
		value = strtoull(equals + 1, &end, 10);
	else
		errno = EINVAL;
	if (errno || end != text + length)
		return error_set(error, EINVAL, "usage",
				 "JAUNT_INJECT: \"%.*s\" needs a number, as in %s=1", (int)length,
				 text, key_names[key]);
	slot->keys[key] = value;
	return 0;
}

static int parse_point(struct slot new_slots[INJECT_POINTS], const char *text, size_t length,
		       struct jaunt_error *error)
{
	const char *end = text + length, *colon = memchr(text, ':', length);
	const char *name = text, *name_end = colon ? colon : end;
	enum inject_side side = INJECT_ANY_SIDE;

	if (!strncmp(name, "source.", 7))
		side = INJECT_SOURCE;
	else if (!strncmp(name, "target.", 7))
		side = INJECT_TARGET;
	if (side != INJECT_ANY_SIDE)
		name += 7;
	int point = name <= name_end
			    ? find(name, (size_t)(name_end - name), point_names, INJECT_POINTS)
			    : -1;
	if (point < 0)
		return unknown(error, "point", text, (int)(name_end - text), point_names,
			       INJECT_POINTS);

	struct slot *slot = &new_slots[point];
	slot->armed = true;
	slot->side = side;
	for (const char *at = colon ? colon + 1 : end; at < end;) {
		const char *comma = memchr(at, ',', (size_t)(end - at));
		const char *stop = comma ? comma : end;
		int result = parse_key(slot, at, (size_t)(stop - at), error);
		if (result)
			return result;
		at = comma ? comma + 1 : end;
	}
	const uint64_t *keys = slot->keys;
	slot->step = keys[INJECT_EVERY] ? keys[INJECT_EVERY] : 1;
	slot->first = keys[INJECT_NTH] ? keys[INJECT_NTH] : slot->step;
	slot->limit = keys[INJECT_COUNT] ? keys[INJECT_COUNT] : !keys[INJECT_EVERY];
	return 0;
}

int inject_configure(const char *text, struct jaunt_error *error)
{
	struct slot new_slots[INJECT_POINTS] = {0};

	while (text && *text) {
		size_t length = strcspn(text, ";");
		if (length) {
			int result = parse_point(new_slots, text, length, error);
			if (result)
				return result;
		}
		text += length + (text[length] == ';');
	}
	memcpy(slots, new_slots, sizeof(slots));
	return 0;
}

static struct jaunt_error init_error;

static void init_once(void)
{
	inject_configure(getenv("JAUNT_INJECT"), &init_error);
}

int inject_init(struct jaunt_error *error)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, init_once);
	if (init_error.code && error)
		*error = init_error;
	return -init_error.code;
}

void inject_side(enum inject_side side)
{
	atomic_store_explicit(&my_side, side, memory_order_relaxed);
}

bool inject_armed(enum inject_point point)
{
	const struct slot *slot = &slots[point];
	if (!slot->armed)
		return false;
	enum inject_side mine = atomic_load_explicit(&my_side, memory_order_relaxed);
	return slot->side == INJECT_ANY_SIDE || mine == INJECT_ANY_SIDE || slot->side == mine;
}

bool inject_fires(enum inject_point point)
{
	if (!inject_armed(point))
		return false;
	struct slot *slot = &slots[point];
	uint64_t pass = atomic_fetch_add_explicit(&slot->passes, 1, memory_order_relaxed) + 1;
	if (pass < slot->first || (pass - slot->first) % slot->step)
		return false;
	if (slot->limit && (pass - slot->first) / slot->step >= slot->limit)
		return false;
	atomic_fetch_add_explicit(&slot->fired, 1, memory_order_relaxed);
	return true;
}

uint64_t inject_fired(enum inject_point point)
{
	return atomic_load_explicit(&slots[point].fired, memory_order_relaxed);
}

uint64_t inject_value(enum inject_point point, enum inject_key key)
{
	return slots[point].keys[key];
}

/* The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
 * generators", 2014). */
uint64_t inject_random(enum inject_point point)
{
	uint64_t z = slots[point].keys[INJECT_SEED] +
		     (inject_fired(point) + 1) * UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

void inject_kill(enum inject_point point)
{
	if (inject_fires(point))
		kill(getpid(), SIGKILL);
}

void inject_delay(enum inject_point point)
{
	if (!inject_fires(point))
		return;
	uint64_t delay_us = slots[point].keys[INJECT_DELAY_US];
	struct timespec left = {.tv_sec = (time_t)(delay_us / 1000000),
				.tv_nsec = (long)(delay_us % 1000000) * 1000};
	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

uint64_t inject_hold_until_ns(enum inject_point point)
{
	if (!inject_fires(point))
		return 0;
	uint64_t delay_us = slots[point].keys[INJECT_DELAY_US];
	return delay_us ? clock_ns() + delay_us * 1000 : UINT64_MAX;
}

#else

typedef int inject_is_compiled_out; /* ISO C wants something in every file */

#endif
