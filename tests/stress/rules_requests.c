/* SPDX-License-Identifier: Apache-2.0 */
/*
 * More guests than the request table has room for, all waiting at once, against a real fault thread
 * and a page server that answers nothing until the table is full. Then every one of them is served,
 * two by two on the same page, with a stream that pushes the same pages with other bytes beside it.
 * A plain program, so that the thread sanitizer can run it.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/target/demand.h"
#include "engine/target/fill.h"
#include "tests/unit/engine/world.h"

#define PAGES  (REQUESTS_MAX + 200u)
#define GUESTS (2u * PAGES)

static struct world world;
static int urgent, stream;
static _Atomic unsigned served;

static void *touch(void *argument)
{
	uint64_t page = (uintptr_t)argument;
	uint8_t copy[PAGE];
	const uint64_t *at = (const uint64_t *)(const void *)world_at(&world, 0, page);

	for (unsigned i = 0; i < PAGE / 8; i++) {
		uint64_t word = __atomic_load_n(&at[i], __ATOMIC_RELAXED);
		memcpy(copy + i * 8, &word, 8);
	}
	must(world_made(copy, PAGE, page, 1) || world_made(copy, PAGE, page, 2),
	     "page %lu is torn, or nobody's", page);
	atomic_fetch_add(&served, 1);
	return NULL;
}

static void answer(int fd, uint64_t page, uint64_t version)
{
	uint8_t message[FRAME_BYTES + PAGE];
	struct frame frame = {.type = FRAME_DATA,
			      .epoch = 1,
			      .page_count = 1,
			      .first_page = page,
			      .payload_bytes = PAGE};

	frame_encode(&frame, message);
	world_make(message + FRAME_BYTES, PAGE, page, version);
	peer_send(fd, message, sizeof(message));
}

/* Collects as many fetches as the table holds, then answers, the last first, and whatever comes. */
static void *serve(void *argument)
{
	static uint64_t asked[REQUESTS_MAX];
	static bool known[PAGES];
	struct frame frame;

	(void)argument;
	for (unsigned i = 0; i < REQUESTS_MAX; i++) {
		must(peer_read_frame(urgent, &frame) && frame.type == FRAME_FETCH &&
			     frame.first_page < PAGES && frame.page_count == 1,
		     "not a fetch");
		must(!known[frame.first_page], "page %lu was asked for twice", frame.first_page);
		known[frame.first_page] = true;
		asked[i] = frame.first_page;
	}
	must(atomic_load(&served) == 0, "somebody saw a page that was never sent");
	for (unsigned i = REQUESTS_MAX; i-- > 0;)
		answer(urgent, asked[i], 1);
	while (peer_read_frame(urgent, &frame))
		answer(urgent, frame.first_page, 1);
	return NULL;
}

/* Takes no notice of grants; pushes everything, once the first page was served. */
static void *push(void *argument)
{
	(void)argument;
	while (!atomic_load(&served))
		sched_yield();
	for (uint64_t page = PAGES; page-- > 0;)
		answer(stream, page, 2);
	return NULL;
}

static void hang(int signal)
{
	static const char text[] = "rules_requests: a guest hangs in a fault\n";
	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(3);
}

int main(void)
{
	static pthread_t guests[GUESTS];
	struct demand *demand = calloc(1, sizeof(*demand));
	struct fill *fill = calloc(1, sizeof(*fill));
	pthread_t server, pusher;
	pthread_attr_t small;
	struct channel *channel;

	if (!world_open_pages(&world, PAGES)) {
		fprintf(stderr, "rules_requests: skipped: %s\n", world.lack);
		return 77;
	}
	signal(SIGALRM, hang);
	alarm(100);
	peer_open(&channel, &urgent);
	must(demand_start(demand, &world.shared, 0, channel, NULL) == 0, "no fault thread");
	peer_expect_preamble(urgent, ATTACH_URGENT, 0);
	peer_open(&channel, &stream); /* nothing is granted: this source is unasked */
	must(fill_start(fill, &world.shared, 0, channel, NULL) == 0, "no stream thread");
	peer_expect_preamble(stream, ATTACH_STREAM, 0);

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 256 << 10);
	pthread_create(&server, NULL, serve, NULL);
	pthread_create(&pusher, NULL, push, NULL);
	for (uintptr_t i = 0; i < GUESTS; i++)
		must(pthread_create(&guests[i], &small, touch, (void *)(i / 2)) == 0, "no thread");
	for (unsigned i = 0; i < GUESTS; i++)
		pthread_join(guests[i], NULL);
	pthread_join(pusher, NULL);
	must(!world_lost(&world), "the session was lost: %s", world.shared.session.why.text);
	demand_stop(demand);
	fill_stop(fill);
	pthread_join(server, NULL);
	alarm(0);
	uint64_t demanded = counter_get(&demand->counters.demanded);
	uint64_t pushed = counter_get(&fill->counters.pushed);
	must(demanded + pushed == PAGES, "%lu and %lu pages won, of %u", demanded, pushed, PAGES);
	must(pagemap_missing(&world.shared.map) == 0, "pages are missing");
	printf("rules_requests: %u guests, %lu pages demanded, %lu pushed\n", GUESTS, demanded,
	       pushed);
	close(urgent);
	close(stream);
	world_close(&world);
	free(demand);
	free(fill);
	return 0;
}
