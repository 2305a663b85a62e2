/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/engine/reading.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "tests/unit/engine/world.h"
#include "transport/provider.h"
#include "transport/ring.h"

#define CHUNKS_MAX 256u
#define DONE_MAX   128u

/* --- Memory ------------------------------------------------------------------------------- */

struct pinned {
	struct exposure_private private; /* first */
	struct io_uring ring;
	uint64_t address;
	size_t bytes;
	bool live, on_demand;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all of these */
static struct pinned chunks[CHUNKS_MAX];
static unsigned exposed, posted, allowed = CHUNKS_MAX;
static bool held, fail_next, refuse_send;
static enum on_demand paging;

static void withdraw(struct exposure *exposure)
{
	struct pinned *pinned = (struct pinned *)exposure->private;

	pthread_mutex_lock(&mutex);
	must(pinned->live, "withdrawn twice");
	io_uring_queue_exit(&pinned->ring);
	pinned->live = false;
	exposed--;
	pthread_mutex_unlock(&mutex);
}

static int pin(struct exposure *out, void *memory, size_t bytes, bool on_demand)
{
	struct iovec range = {memory, bytes};
	uint32_t key = 0;

	while (key < CHUNKS_MAX && chunks[key].address)
		key++; /* none is used twice: an old key must not work by accident */
	must(key < CHUNKS_MAX, "too many chunks for this test");
	struct pinned *pinned = &chunks[key];
	must(io_uring_queue_init(2, &pinned->ring, 0) == 0, "no ring");
	pinned->on_demand = on_demand;
	must(on_demand || io_uring_register_buffers(&pinned->ring, &range, 1) == 0,
	     "memory cannot be pinned");
	pinned->private.withdraw = withdraw;
	pinned->address = (uintptr_t)memory;
	pinned->bytes = bytes;
	pinned->live = true;
	exposed++;
	*out = (struct exposure){pinned->address, key, &pinned->private};
	return 0;
}

static int expose(struct exposure *out, const struct channel *channel, void *memory, size_t bytes,
		  bool on_demand, struct jaunt_error *error)
{
	(void)channel;
	pthread_mutex_lock(&mutex);
	int result = allowed ? pin(out, memory, bytes, on_demand && paging)
			     : error_set(error, ENOMEM, "memory-lock", "no more can be pinned");
	allowed -= result == 0;
	pthread_mutex_unlock(&mutex);
	return result;
}

static int read_pinned(uint64_t address, uint32_t key, void *to, size_t bytes)
{
	struct pinned *pinned = key < CHUNKS_MAX ? &chunks[key] : NULL;
	struct io_uring_cqe *done;

	if (!pinned || !pinned->live || address < pinned->address ||
	    address - pinned->address > pinned->bytes ||
	    bytes > pinned->bytes - (address - pinned->address))
		return -EREMOTEIO;
	if (pinned->on_demand) {
		memcpy(to, (const void *)(uintptr_t)address, bytes);
		return 0;
	}
	int file = memfd_create("read", MFD_CLOEXEC);
	must(file >= 0, "no file");
	struct io_uring_sqe *entry = io_uring_get_sqe(&pinned->ring);
	io_uring_prep_write_fixed(entry, file, (void *)(uintptr_t)address, (unsigned)bytes, 0, 0);
	must(io_uring_submit_and_wait(&pinned->ring, 1) == 1 &&
		     io_uring_wait_cqe(&pinned->ring, &done) == 0 && done->res == (int)bytes &&
		     pread(file, to, bytes, 0) == (ssize_t)bytes,
	     "pinned memory cannot be read");
	io_uring_cqe_seen(&pinned->ring, done);
	close(file);
	return 0;
}

int reading_now(uint64_t address, uint32_t key, void *to, size_t bytes)
{
	pthread_mutex_lock(&mutex);
	int result = read_pinned(address, key, to, bytes);
	pthread_mutex_unlock(&mutex);
	return result;
}

static void free_landing(struct landing *landing)
{
	munmap(landing->bytes, landing->size);
}

static int land(struct landing *out, struct channel *channel, void *memory, size_t bytes,
		struct jaunt_error *error)
{
	static struct landing_private private = {free_landing};

	(void)channel, (void)error;
	must(!memory, "not needed here");
	out->bytes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(out->bytes != MAP_FAILED, "no memory");
	out->size = bytes;
	out->private = &private;
	return 0;
}

/* --- The channel -------------------------------------------------------------------------- */

struct reading {
	struct channel base; /* first */
	struct channel *inner;
	struct channel *next; /* of all that are bound, for reading_hold() */
	const struct channel_events *events;
	void *user;
	struct ring_watch watch;
	struct {
		uint64_t cookie;
		int error;
	} done[DONE_MAX];
	unsigned head, count;
	bool dead;
};

static struct channel *bound; /* guarded by the mutex */

static void ring_bell(struct reading *reading)
{
	uint64_t one = 1;
	must(write(reading->watch.fd, &one, sizeof(one)) == sizeof(one), "no bell");
}

static void tell(struct reading *reading)
{
	for (;;) {
		pthread_mutex_lock(&mutex);
		bool some = reading->count && !held;
		pthread_mutex_unlock(&mutex);
		if (!some || reading->dead)
			return;
		unsigned at = reading->head;
		uint64_t cookie = reading->done[at].cookie;
		int error = reading->done[at].error;
		reading->head = (at + 1) % DONE_MAX;
		reading->count--;
		reading->events->read_done(reading->user, cookie, error);
		if (error)
			channel_shutdown(reading->inner);
	}
}

static void ready(void *user, int mask)
{
	struct reading *reading = user;
	uint64_t bells;

	(void)mask;
	if (read(reading->watch.fd, &bells, sizeof(bells)) == sizeof(bells))
		tell(reading);
}

static size_t inner_received(void *user, const uint8_t *data, size_t bytes)
{
	struct reading *reading = user;
	return reading->events->received(reading->user, data, bytes);
}

static void inner_sent(void *user, uint64_t cookie)
{
	struct reading *reading = user;
	if (reading->events->sent)
		reading->events->sent(reading->user, cookie);
}

static void inner_closed(void *user, int error)
{
	struct reading *reading = user;

	reading->dead = true;
	for (; reading->count; reading->count--) {
		reading->events->read_done(reading->user, reading->done[reading->head].cookie,
					   -ECANCELED);
		reading->head = (reading->head + 1) % DONE_MAX;
	}
	reading->events->closed(reading->user, error);
}

static const struct channel_events inner_events = {
	.received = inner_received, .sent = inner_sent, .closed = inner_closed};

static struct reading *of(const struct channel *channel)
{
	return (struct reading *)(uintptr_t)channel;
}

static int op_bind(struct channel *channel, struct ring *ring, const struct channel_events *events,
		   void *user, size_t receive_bytes)
{
	struct reading *reading = of(channel);

	reading->events = events;
	reading->user = user;
	reading->watch = (struct ring_watch){
		.ready = ready, .user = reading, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
	must(reading->watch.fd >= 0 && ring_watch_add(ring, &reading->watch) == 0, "no bell");
	pthread_mutex_lock(&mutex);
	reading->next = bound;
	bound = channel;
	pthread_mutex_unlock(&mutex);
	return channel_bind(reading->inner, ring, &inner_events, reading, receive_bytes);
}

static void op_unbind(struct channel *channel)
{
	struct reading *reading = of(channel);

	channel_unbind(reading->inner);
	if (!reading->events)
		return;
	pthread_mutex_lock(&mutex);
	for (struct channel **at = &bound; *at; at = &of(*at)->next)
		if (*at == channel) {
			*at = reading->next;
			break;
		}
	pthread_mutex_unlock(&mutex);
	ring_watch_remove(&reading->watch);
	close(reading->watch.fd);
	reading->events = NULL;
	reading->count = 0;
}

static int op_send(struct channel *channel, const void *head, size_t head_bytes,
		   const void *payload, size_t payload_bytes, uint64_t cookie)
{
	pthread_mutex_lock(&mutex);
	bool refused = refuse_send;
	refuse_send = false;
	pthread_mutex_unlock(&mutex);
	return refused ? -EPIPE
		       : channel_send(of(channel)->inner, head, head_bytes, payload, payload_bytes,
				      cookie);
}

static size_t op_room(const struct channel *channel)
{
	return channel_room(of(channel)->inner);
}

static void op_want(struct channel *channel, size_t bytes)
{
	channel_want(of(channel)->inner, bytes);
}

static void op_pause(struct channel *channel, bool paused)
{
	channel_pause(of(channel)->inner, paused);
}

static void op_shutdown(struct channel *channel)
{
	channel_shutdown(of(channel)->inner);
}

static void op_free(struct channel *channel)
{
	op_unbind(channel);
	channel_free(of(channel)->inner);
	free(of(channel));
}

static int op_pace(struct channel *channel, uint64_t bytes_per_s)
{
	return channel_pace(of(channel)->inner, bytes_per_s);
}

static int op_timeout(struct channel *channel, uint32_t timeout_ms)
{
	return channel_timeout(of(channel)->inner, timeout_ms);
}

static struct channel_totals op_totals(const struct channel *channel)
{
	return channel_totals(of(channel)->inner);
}

static const char *op_name(const struct channel *channel)
{
	return channel_name(of(channel)->inner);
}

static int op_read(struct channel *channel, struct landing *landing, size_t offset,
		   uint64_t address, uint32_t key, size_t bytes, uint64_t cookie)
{
	struct reading *reading = of(channel);

	must(bytes && offset + bytes <= landing->size, "a READ beyond its landing");
	if (reading->dead)
		return -EPIPE;
	if (reading->count == DONE_MAX)
		return -EAGAIN;
	pthread_mutex_lock(&mutex);
	unsigned at = (reading->head + reading->count++) % DONE_MAX;
	reading->done[at].cookie = cookie;
	reading->done[at].error =
		fail_next ? -EREMOTEIO : read_pinned(address, key, landing->bytes + offset, bytes);
	fail_next = false;
	posted++;
	pthread_mutex_unlock(&mutex);
	ring_bell(reading);
	return 0;
}

static enum on_demand op_on_demand(const struct channel *channel)
{
	(void)channel;
	return paging;
}

static size_t op_read_room(const struct channel *channel)
{
	return of(channel)->dead ? 0 : DONE_MAX - of(channel)->count;
}

static const struct channel_ops ops = {.bind = op_bind,
				       .unbind = op_unbind,
				       .send = op_send,
				       .room = op_room,
				       .want = op_want,
				       .pause = op_pause,
				       .shutdown = op_shutdown,
				       .free = op_free,
				       .pace = op_pace,
				       .timeout = op_timeout,
				       .totals = op_totals,
				       .name = op_name,
				       .expose = expose,
				       .land = land,
				       .read = op_read,
				       .read_room = op_read_room,
				       .on_demand = op_on_demand};

struct channel *reading_wrap(struct channel *inner)
{
	struct reading *reading = calloc(1, sizeof(*reading));

	must(reading, "no memory");
	reading->base.ops = &ops;
	reading->inner = inner;
	return &reading->base;
}

/* --- For tests ---------------------------------------------------------------------------- */

unsigned reading_count(void)
{
	pthread_mutex_lock(&mutex);
	unsigned count = posted;
	pthread_mutex_unlock(&mutex);
	return count;
}

unsigned reading_exposed(void)
{
	pthread_mutex_lock(&mutex);
	unsigned count = exposed;
	pthread_mutex_unlock(&mutex);
	return count;
}

void reading_hold(bool hold)
{
	pthread_mutex_lock(&mutex);
	held = hold;
	for (struct channel *at = bound; at; at = of(at)->next)
		ring_bell(of(at));
	pthread_mutex_unlock(&mutex);
}

void reading_fail_next(void)
{
	pthread_mutex_lock(&mutex);
	fail_next = true;
	pthread_mutex_unlock(&mutex);
}

void reading_refuse_next_send(void)
{
	pthread_mutex_lock(&mutex);
	refuse_send = true;
	pthread_mutex_unlock(&mutex);
}

void reading_page_on_demand(enum on_demand how)
{
	pthread_mutex_lock(&mutex);
	paging = how;
	pthread_mutex_unlock(&mutex);
}

void reading_refuse_after(unsigned count)
{
	pthread_mutex_lock(&mutex);
	allowed = count;
	pthread_mutex_unlock(&mutex);
}
