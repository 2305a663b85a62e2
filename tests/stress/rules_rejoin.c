/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guests that touch pages, a fault thread and two streams, and a source that is cut off again and
 * again: each time new channels are handed to the running threads in a new epoch, while the old
 * ones die late, early or in the middle of a page, and go on sending pages of the old epoch, which
 * are wrong ones. Every page must come, and be the source's.
 */
#include <pthread.h>
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

#define PAGES       8192u
#define GUESTS      8u
#define STREAMS     2u
#define ATTACHMENTS 40u /* before the last they answer for little more than half of the pages */
#define RIGHT       1u  /* versions of a page */
#define WRONG       2u

static struct world world;

static void *touch(void *argument)
{
	uint64_t seed = (uintptr_t)argument;
	uint8_t copy[PAGE];

	for (unsigned n = 0; n < PAGES; n++) {
		uint64_t page = (n * 2654435761u + seed * 977) % PAGES;
		const uint64_t *at = (const uint64_t *)(const void *)world_at(&world, 0, page);
		for (unsigned i = 0; i < PAGE / 8; i++) {
			uint64_t word = __atomic_load_n(&at[i], __ATOMIC_RELAXED);
			memcpy(copy + i * 8, &word, 8);
		}
		must(world_made(copy, PAGE, page, RIGHT), "page %lu is torn, or of another epoch",
		     page);
	}
	return NULL;
}

/* One connection of the source, in one epoch. */
struct line {
	pthread_t thread;
	int fd;
	uint32_t epoch;
	unsigned seed;
	unsigned answers; /* until it goes wrong; 0: never */
	bool wrong;       /* it has gone wrong, and is silent from then on */
};

static void send_page(struct line *line, uint64_t page, uint32_t epoch, uint64_t version,
		      size_t bytes)
{
	uint8_t message[FRAME_BYTES + PAGE];
	struct frame frame = {.type = FRAME_DATA,
			      .epoch = epoch,
			      .page_count = 1,
			      .first_page = page,
			      .payload_bytes = PAGE};

	frame_encode(&frame, message);
	world_make(message + FRAME_BYTES, PAGE, page, version);
	for (size_t at = 0; at < bytes;) {
		ssize_t sent = send(line->fd, message + at, bytes - at, MSG_NOSIGNAL);
		if (sent <= 0)
			return;
		at += (size_t)sent;
	}
}

/* Goes wrong: half a page and the end; or silence; or pages of the epoch before, which are wrong.
 */
static void go_wrong(struct line *line, uint64_t page)
{
	switch (line->seed % 3) {
	case 0:
		send_page(line, page, line->epoch, RIGHT, FRAME_BYTES + PAGE / 2);
		shutdown(line->fd, SHUT_RDWR);
		break;
	case 1:
		for (unsigned i = 0; i < 64; i++)
			send_page(line, (page + i) % PAGES, line->epoch - 1, WRONG,
				  FRAME_BYTES + PAGE);
		break;
	default:
		break;
	}
}

static void *answer(void *argument)
{
	struct line *line = argument;
	struct frame frame;
	unsigned answered = 0;

	while (peer_read_frame(line->fd, &frame)) {
		must(frame.type == FRAME_FETCH || frame.type == FRAME_GRANT, "not a question");
		if (frame.epoch != line->epoch)
			continue; /* asked by a thread that has not heard of its new channels */
		for (uint32_t i = 0; i < frame.page_count && !line->wrong; i++) {
			line->wrong = line->answers && answered++ == line->answers;
			if (line->wrong)
				go_wrong(line, frame.first_page + i);
			else
				send_page(line, frame.first_page + i, line->epoch, RIGHT,
					  FRAME_BYTES + PAGE);
		}
		if (frame.type == FRAME_GRANT && !line->wrong) {
			uint8_t head[FRAME_BYTES];
			frame.type = FRAME_GRANT_END;
			frame.flags = 0;
			frame_encode(&frame, head);
			(void)!send(line->fd, head, sizeof(head), MSG_NOSIGNAL);
		}
	}
	return NULL;
}

static void hang(int signal)
{
	static const char text[] = "rules_rejoin: a page never comes\n";
	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(3);
}

static void attach(struct line lines[1 + STREAMS], struct demand *demand, struct fill **fills,
		   unsigned number, bool last)
{
	uint32_t attachment = number ? session_reattach(&world.shared.session, number + 1) : 0;

	for (unsigned i = 0; i < 1 + STREAMS; i++) {
		struct channel *channel;
		peer_open(&channel, &lines[i].fd);
		lines[i].epoch = number + 1;
		lines[i].seed = number + i;
		lines[i].answers = last ? 0 : 8 + 15 * ((number + i) % 5);
		lines[i].wrong = false;
		if (number == 0 && i == 0)
			must(demand_start(demand, &world.shared, 0, channel, NULL) == 0,
			     "no fault thread");
		else if (number == 0)
			must(fill_start(fills[i - 1], &world.shared, i - 1, channel, NULL) == 0,
			     "no stream");
		else if (i == 0)
			demand_reattach(demand, channel, NULL, attachment);
		else
			fill_reattach(fills[i - 1], channel, NULL, attachment);
	}
	for (unsigned i = 0; i < 1 + STREAMS; i++) {
		peer_expect_preamble(lines[i].fd, i ? ATTACH_STREAM : ATTACH_URGENT, i ? i - 1 : 0);
		pthread_create(&lines[i].thread, NULL, answer, &lines[i]);
	}
}

static void detach(struct line lines[1 + STREAMS])
{
	for (unsigned i = 0; i < 1 + STREAMS; i++) {
		shutdown(lines[i].fd, SHUT_RDWR);
		pthread_join(lines[i].thread, NULL);
		close(lines[i].fd);
	}
}

int main(void)
{
	static struct line lines[2][1 + STREAMS];
	struct demand *demand = calloc(1, sizeof(*demand));
	struct fill *fills[STREAMS];
	pthread_t guests[GUESTS];
	uint64_t left = 0; /* for the last attachment */
	unsigned number;

	if (!world_open_pages(&world, PAGES)) {
		fprintf(stderr, "rules_rejoin: skipped: %s\n", world.lack);
		return 77;
	}
	signal(SIGALRM, hang);
	alarm(150);
	for (unsigned i = 0; i < STREAMS; i++)
		fills[i] = calloc(1, sizeof(*fills[i]));
	world.shared.streams = STREAMS;
	atomic_store(&world.shared.granting, true);
	atomic_store(&world.shared.push, true);
	attach(lines[0], demand, fills, 0, false);
	for (uintptr_t i = 0; i < GUESTS; i++)
		pthread_create(&guests[i], NULL, touch, (void *)i);
	for (number = 1; number <= ATTACHMENTS; number++) {
		usleep(1000 * (number % 7));
		/* Half of the time the old ones are still there: half open, and talking. */
		if (number % 2)
			detach(lines[(number - 1) % 2]);
		left = pagemap_missing(&world.shared.map);
		must(left > PAGES / 4, "what came before was not cut off");
		attach(lines[number % 2], demand, fills, number, number == ATTACHMENTS);
		if (!(number % 2))
			detach(lines[(number - 1) % 2]);
	}
	for (unsigned i = 0; i < GUESTS; i++)
		pthread_join(guests[i], NULL);
	while (pagemap_missing(&world.shared.map))
		usleep(1000);
	must(!world_lost(&world), "the last attachment was lost: %s",
	     world.shared.session.why.text);
	must(!atomic_load(&world.shared.install.broken), "a page could not be made visible");
	demand_stop(demand);
	uint64_t came = counter_get(&demand->counters.demanded);
	for (unsigned i = 0; i < STREAMS; i++) {
		fill_stop(fills[i]);
		came += counter_get(&fills[i]->counters.pushed);
		free(fills[i]);
	}
	detach(lines[(number - 1) % 2]);
	alarm(0);
	must(came == PAGES, "%lu pages came, of %u", came, PAGES);
	printf("rules_rejoin: %u attachments, %lu pages demanded, %lu missing before the last\n",
	       ATTACHMENTS, counter_get(&demand->counters.demanded), left);
	world_close(&world);
	free(demand);
	return 0;
}
