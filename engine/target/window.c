/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/target/window.h"

#include "base/bits.h"
#include "engine/target/prefetch.h"

/* A measurement of the rate takes so long, or until so much has come if that is sooner: more than
 * sockets hold back, which comes at the speed of memory after a stall. */
#define RATE_NS    UINT64_C(50000000)
#define RATE_BYTES MIB(16)
/* But never less than this, nor than this part of the round trip. */
#define RATE_LEAST_NS         UINT64_C(1000000)
#define RATE_LEAST_ROUND_TRIP 4
#define RATE_FALLS            8 /* the rate falls by this part of the difference */

static void size_for(struct window *window, uint64_t round_trip_ns)
{
	double blocks = 2 * window->rate * (double)round_trip_ns / (double)PREFETCH_BLOCK_BYTES;
	double room = window->most - BUDGET_BLOCKS_LEAST;

	window->blocks = BUDGET_BLOCKS_LEAST + (unsigned)(blocks < room ? blocks : room);
}

void window_open(struct window *window, unsigned most, uint64_t bytes_per_s, uint64_t round_trip_ns)
{
	*window = (struct window){.most = most, .rate = (double)bytes_per_s / 1e9};
	size_for(window, round_trip_ns);
}

void window_asked(struct window *window, uint64_t now_ns)
{
	window->asked_ns = now_ns;
}

static void begin_measurement(struct window *window, uint64_t now_ns)
{
	window->from_ns = now_ns;
	window->data_bytes = window->zero_bytes = 0;
}

static void take_first_answer(struct window *window, uint64_t now_ns)
{
	uint64_t took = now_ns - window->asked_ns;

	if (!window->round_trip_ns || took < window->round_trip_ns)
		window->round_trip_ns = took;
	window->asked_ns = 0;
	size_for(window, window->round_trip_ns);
	begin_measurement(window, now_ns);
}

static void take_rate(struct window *window, uint64_t took_ns)
{
	double data = (double)window->data_bytes / (double)took_ns;
	double all = data + (double)window->zero_bytes / (double)took_ns;

	if (data > window->rate)
		window->rate = data;
	else if (all < window->rate)
		window->rate -= (window->rate - all) / RATE_FALLS;
}

void window_answered(struct window *window, uint64_t now_ns, uint64_t data_bytes,
		     uint64_t zero_bytes)
{
	if (window->asked_ns)
		take_first_answer(window, now_ns);
	window->data_bytes += data_bytes;
	window->zero_bytes += zero_bytes;
	uint64_t took = now_ns - window->from_ns;
	if (took < RATE_LEAST_NS || took < window->round_trip_ns / RATE_LEAST_ROUND_TRIP)
		return;
	if (took < RATE_NS && window->data_bytes + window->zero_bytes < RATE_BYTES)
		return;
	take_rate(window, took);
	size_for(window, window->round_trip_ns);
	begin_measurement(window, now_ns);
}
