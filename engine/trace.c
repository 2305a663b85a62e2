/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A lane is a ring of fixed records with one producer, the thread that owns the lane, and one
 * consumer, the writer. The producer fills records[tail], then publishes it by storing tail + 1
 * (release); the writer loads tail (acquire), formats, and gives the slots back by storing head
 * (release), which the producer loads (acquire) only when the ring looks full to it. So telling
 * touches no cache line that another thread writes, but for one load every so many records.
 *
 * The writer looks at every lane each DRAIN_INTERVAL_MS; a producer calls it, with one system call,
 * only when its ring has become half full. It runs with a lower priority: when the processors are
 * short, the trace loses records rather than the guest time.
 *
 * Texts of events do not fit a record: they are allocated, the record carries the pointer, and
 * whoever takes the record out, or drops it, frees it.
 *
 * The first error of writing is kept and everything after it thrown away, by the producers as soon
 * as they notice.
 */
#include "engine/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "engine/jsonline.h"

#define DRAIN_INTERVAL_MS 20
#define WRITER_NICE       10
/* One line at most: a text of which every byte became \u00XX, and the rest. */
#define LINE_MAX_BYTES  (6 * (TRACE_TEXT_MAX + 256) + 512)
#define LANE_NAME_BYTES 32u

enum record_kind { RECORD_FAULT, RECORD_GRANT, RECORD_RUN, RECORD_EVENT, RECORD_OBJECT };

struct record {
	uint64_t ns;
	uint64_t first; /* page; of an event: the pointer to its text; of an object: to its members
			 */
	uint64_t count;
	uint64_t done_ns;
	uint64_t name; /* of both: the pointer to the name, within the same allocation */
	uint16_t region;
	uint16_t kind;
	uint32_t detail; /* answer, fate or stream */
};
_Static_assert(sizeof(struct record) == 48, "a lane is 3 MiB");

struct trace_lane {
	struct trace *trace;
	char name[LANE_NAME_BYTES];
	/* The producer's; the writer reads them. */
	_Alignas(64) _Atomic(struct record *) records;
	atomic_uint_least64_t tail;
	atomic_uint_least64_t dropped;
	uint64_t known_head; /* the producer's alone */
	bool called;         /* the producer's alone: the writer was called for this half */
	/* The writer's; the producer reads it. */
	_Alignas(64) atomic_uint_least64_t head;
};

struct trace {
	int fd;
	int call;         /* eventfd */
	atomic_int error; /* errno that ended it; set once, by the writer */
	atomic_bool stop;
	pthread_t writer;
	pthread_mutex_t lock; /* lanes are added under it */
	_Atomic(struct trace_lane *) lanes[TRACE_LANES_MAX];
	atomic_uint lane_count; /* release after the lane is in place; the writer acquires */
	uint32_t lanes_refused; /* under lock */
	char *path;
	/* The writer's. */
	uint64_t written; /* records */
	struct jsonline line;
};

static const char *const answer_names[TRACE_ANSWERS] = {
	[TRACE_FETCHED] = "fetched", [TRACE_JOINED] = "joined",       [TRACE_FILLING] = "filling",
	[TRACE_MAPPED] = "mapped",   [TRACE_DISCARDED] = "discarded", [TRACE_HOLE] = "hole",
};

static const char *const fate_names[TRACE_FATES] = {
	[TRACE_RUN_ZERO] = "zero",           [TRACE_RUN_HOLE] = "hole",
	[TRACE_RUN_PUSHED] = "pushed",       [TRACE_RUN_DEMANDED] = "demanded",
	[TRACE_RUN_DUPLICATE] = "duplicate", [TRACE_RUN_REFUSED] = "refused",
	[TRACE_RUN_FETCHED] = "fetched",     [TRACE_RUN_GRANTED] = "granted",
	[TRACE_RUN_TOLD] = "told",           [TRACE_RUN_DIGESTED] = "digested",
};

/* --- Telling
 * ----------------------------------------------------------------------------------------- */

static void call_writer(struct trace *trace)
{
	uint64_t one = 1;
	/* It can only fail when the counter is full: then the writer has been called often enough.
	 */
	ssize_t written = write(trace->call, &one, sizeof(one));
	(void)written;
}

static void drop(struct trace_lane *lane)
{
	atomic_store_explicit(&lane->dropped,
			      atomic_load_explicit(&lane->dropped, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

static struct record *make_ring(struct trace_lane *lane)
{
	struct record *records =
		mmap(NULL, TRACE_LANE_RECORDS * sizeof(*records), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (records == MAP_FAILED)
		return NULL;
	atomic_store_explicit(&lane->records, records, memory_order_relaxed);
	return records;
}

/* false: dropped, and counted. */
static bool put(struct trace_lane *lane, const struct record *record)
{
	struct record *records = atomic_load_explicit(&lane->records, memory_order_relaxed);
	uint64_t tail = atomic_load_explicit(&lane->tail, memory_order_relaxed);

	if (atomic_load_explicit(&lane->trace->error, memory_order_relaxed) ||
	    (!records && !(records = make_ring(lane)))) {
		drop(lane);
		return false;
	}
	if (tail - lane->known_head >= TRACE_LANE_RECORDS / 2) {
		/* Pairs with the release in drain(): the slots before head are free again. */
		lane->known_head = atomic_load_explicit(&lane->head, memory_order_acquire);
		bool half = tail - lane->known_head >= TRACE_LANE_RECORDS / 2;
		if (half && !lane->called)
			call_writer(lane->trace);
		lane->called = half;
		if (tail - lane->known_head >= TRACE_LANE_RECORDS) {
			drop(lane);
			return false;
		}
	}
	records[tail % TRACE_LANE_RECORDS] = *record;
	/* Pairs with the acquire in drain(): the record is whole. */
	atomic_store_explicit(&lane->tail, tail + 1, memory_order_release);
	return true;
}

void trace_put_fault(struct trace_lane *lane, unsigned region, uint64_t page, uint64_t read_ns,
		     uint64_t done_ns, enum trace_answer answer)
{
	put(lane, &(struct record){.ns = read_ns,
				   .first = page,
				   .done_ns = done_ns,
				   .region = (uint16_t)region,
				   .kind = RECORD_FAULT,
				   .detail = answer});
}

void trace_put_grant(struct trace_lane *lane, unsigned region, uint64_t first, uint64_t count,
		     unsigned stream)
{
	put(lane, &(struct record){.ns = clock_ns(),
				   .first = first,
				   .count = count,
				   .region = (uint16_t)region,
				   .kind = RECORD_GRANT,
				   .detail = stream});
}

void trace_put_run(struct trace_lane *lane, unsigned region, uint64_t first, uint64_t count,
		   enum trace_fate fate)
{
	put(lane, &(struct record){.ns = clock_ns(),
				   .first = first,
				   .count = count,
				   .region = (uint16_t)region,
				   .kind = RECORD_RUN,
				   .detail = fate});
}

void trace_put_event(struct trace_lane *lane, const char *name, const char *format, ...)
{
	size_t name_bytes = strnlen(name, LANE_NAME_BYTES - 1);
	char *text = malloc(TRACE_TEXT_MAX + LANE_NAME_BYTES);
	va_list arguments;

	if (!text) {
		drop(lane);
		return;
	}
	va_start(arguments, format);
	if (vsnprintf(text, TRACE_TEXT_MAX, format, arguments) < 0)
		text[0] = '\0';
	va_end(arguments);
	char *own_name = text + TRACE_TEXT_MAX;
	memcpy(own_name, name, name_bytes);
	own_name[name_bytes] = '\0';
	if (!put(lane, &(struct record){.ns = clock_ns(),
					.first = (uintptr_t)text,
					.name = (uintptr_t)own_name,
					.kind = RECORD_EVENT}))
		free(text);
}

void trace_put_object(struct trace_lane *lane, const char *what, const char *members)
{
	size_t bytes = strlen(members) + 1, name_bytes = strnlen(what, LANE_NAME_BYTES - 1);
	char *text = bytes <= TRACE_MEMBERS_MAX ? malloc(bytes + LANE_NAME_BYTES) : NULL;

	if (!text) {
		drop(lane);
		return;
	}
	memcpy(text, members, bytes);
	memcpy(text + bytes, what, name_bytes);
	text[bytes + name_bytes] = '\0';
	if (!put(lane, &(struct record){.ns = clock_ns(),
					.first = (uintptr_t)text,
					.name = (uintptr_t)(text + bytes),
					.kind = RECORD_OBJECT}))
		free(text);
}

/* --- Formatting
 * -------------------------------------------------------------------------------------- */

static void add_run(struct trace *trace, const struct record *record)
{
	jsonline_literal(&trace->line, ",\"region\":");
	jsonline_number(&trace->line, record->region);
	jsonline_literal(&trace->line, ",\"first\":");
	jsonline_number(&trace->line, record->first);
	jsonline_literal(&trace->line, ",\"count\":");
	jsonline_number(&trace->line, record->count);
}

static void add_record(struct trace *trace, const struct trace_lane *lane,
		       const struct record *record)
{
	static const char *const kinds[] = {[RECORD_FAULT] = "{\"what\":\"fault\",\"ns\":",
					    [RECORD_GRANT] = "{\"what\":\"grant\",\"ns\":",
					    [RECORD_RUN] = "{\"what\":\"run\",\"ns\":",
					    [RECORD_EVENT] = "{\"what\":\"event\",\"ns\":"};

	if (record->kind == RECORD_OBJECT) {
		jsonline_literal(&trace->line, "{\"what\":");
		jsonline_string(&trace->line, (const char *)(uintptr_t)record->name);
		jsonline_literal(&trace->line, ",\"ns\":");
	} else {
		jsonline_bytes(&trace->line, kinds[record->kind], strlen(kinds[record->kind]));
	}
	jsonline_number(&trace->line, record->ns);
	jsonline_literal(&trace->line, ",\"lane\":");
	jsonline_string(&trace->line, lane->name);
	switch (record->kind) {
	case RECORD_FAULT:
		jsonline_literal(&trace->line, ",\"region\":");
		jsonline_number(&trace->line, record->region);
		jsonline_literal(&trace->line, ",\"page\":");
		jsonline_number(&trace->line, record->first);
		jsonline_literal(&trace->line, ",\"latency_ns\":");
		jsonline_number(&trace->line,
				record->done_ns > record->ns ? record->done_ns - record->ns : 0);
		jsonline_literal(&trace->line, ",\"answer\":");
		jsonline_string(&trace->line, answer_names[record->detail]);
		break;
	case RECORD_GRANT:
		add_run(trace, record);
		jsonline_literal(&trace->line, ",\"stream\":");
		jsonline_number(&trace->line, record->detail);
		break;
	case RECORD_RUN:
		add_run(trace, record);
		jsonline_literal(&trace->line, ",\"fate\":");
		jsonline_string(&trace->line, fate_names[record->detail]);
		break;
	case RECORD_EVENT:
		jsonline_literal(&trace->line, ",\"name\":");
		jsonline_string(&trace->line, (const char *)(uintptr_t)record->name);
		jsonline_literal(&trace->line, ",\"text\":");
		jsonline_string(&trace->line, (const char *)(uintptr_t)record->first);
		break;
	case RECORD_OBJECT: {
		const char *members = (const char *)(uintptr_t)record->first;
		jsonline_literal(&trace->line, ",");
		jsonline_bytes(&trace->line, members, strlen(members));
		break;
	}
	}
	jsonline_literal(&trace->line, "}\n");
}

static void add_first_line(struct trace *trace)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	jsonline_literal(&trace->line, "{\"what\":\"trace\",\"ns\":");
	jsonline_number(&trace->line, clock_ns());
	jsonline_literal(&trace->line, ",\"schema\":\"" TRACE_SCHEMA
				       "\",\"version\":\"" JAUNT_VERSION "\",\"unix_ns\":");
	jsonline_number(&trace->line, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
	jsonline_literal(&trace->line, ",\"pid\":");
	jsonline_number(&trace->line, (uint64_t)getpid());
	jsonline_literal(&trace->line, "}\n");
}

/* --- Writing
 * ----------------------------------------------------------------------------------------- */

static void flush(struct trace *trace)
{
	size_t done = 0;
	while (done < trace->line.used &&
	       !atomic_load_explicit(&trace->error, memory_order_relaxed)) {
		ssize_t written =
			write(trace->fd, trace->line.bytes + done, trace->line.used - done);
		if (written > 0)
			done += (size_t)written;
		else if (written < 0 && errno == EINTR)
			continue;
		else
			atomic_store_explicit(&trace->error, written ? errno : EIO,
					      memory_order_relaxed);
	}
	trace->line.used = 0;
}

static void reserve_line(struct trace *trace)
{
	if (JSONLINE_BYTES - trace->line.used < LINE_MAX_BYTES)
		flush(trace);
}

static void drain(struct trace *trace, struct trace_lane *lane)
{
	uint64_t head = atomic_load_explicit(&lane->head, memory_order_relaxed);
	/* Pairs with the release in put(). */
	uint64_t tail = atomic_load_explicit(&lane->tail, memory_order_acquire);
	if (head == tail)
		return;
	const struct record *records = atomic_load_explicit(&lane->records, memory_order_relaxed);

	for (; head != tail; head++) {
		const struct record *record = &records[head % TRACE_LANE_RECORDS];
		bool failed = atomic_load_explicit(&trace->error, memory_order_relaxed);
		if (!failed) {
			reserve_line(trace);
			add_record(trace, lane, record);
			trace->written++;
		}
		if (record->kind == RECORD_EVENT || record->kind == RECORD_OBJECT)
			free((void *)(uintptr_t)record->first);
		/* Often enough that a producer in full flight sees room early. Pairs with the
		 * acquire in put(). */
		if (head % 1024 == 0)
			atomic_store_explicit(&lane->head, head, memory_order_release);
	}
	atomic_store_explicit(&lane->head, head, memory_order_release);
}

static void *write_trace(void *argument)
{
	struct trace *trace = argument;
	struct pollfd called = {.fd = trace->call, .events = POLLIN};
	uint64_t calls;

	pthread_setname_np(pthread_self(), "jaunt-trace");
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), WRITER_NICE);
	add_first_line(trace);
	for (;;) {
		/* Before draining: what was told before the stop is then drained. */
		bool stop = atomic_load_explicit(&trace->stop, memory_order_acquire);
		unsigned count = atomic_load_explicit(&trace->lane_count, memory_order_acquire);
		for (unsigned i = 0; i < count; i++)
			drain(trace, atomic_load_explicit(&trace->lanes[i], memory_order_relaxed));
		flush(trace);
		if (stop)
			return NULL;
		if (poll(&called, 1, DRAIN_INTERVAL_MS) > 0) {
			ssize_t got = read(trace->call, &calls, sizeof(calls));
			(void)got;
		}
	}
}

/* --- Opening and closing
 * ----------------------------------------------------------------------------- */

static int open_file(const char *path, struct jaunt_error *error)
{
	struct stat status;
	/* O_NONBLOCK: opening a pipe nobody reads would wait. */
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0644);
	if (fd < 0 && errno == ENXIO)
		return error_set(error, EINVAL, "trace-file",
				 "trace %s: a pipe cannot take a trace; name a regular file", path);
	if (fd < 0) {
		int code = errno;
		return error_set(error, code, "trace-file",
				 "trace %s: %s; choose a file that can be created", path,
				 strerror(code));
	}
	if (fstat(fd, &status) || (!S_ISREG(status.st_mode) && !S_ISCHR(status.st_mode))) {
		close(fd);
		return error_set(error, EINVAL, "trace-file",
				 "trace %s: neither a regular file nor a device; name a regular "
				 "file",
				 path);
	}
	return fd;
}

static void release(struct trace *trace)
{
	for (unsigned i = 0; i < atomic_load(&trace->lane_count); i++) {
		struct trace_lane *lane = atomic_load(&trace->lanes[i]);
		struct record *records = atomic_load(&lane->records);
		if (records)
			munmap(records, TRACE_LANE_RECORDS * sizeof(*records));
		free(lane);
	}
	if (trace->call >= 0)
		close(trace->call);
	if (trace->fd >= 0)
		close(trace->fd);
	pthread_mutex_destroy(&trace->lock);
	free(trace->path);
	free(trace);
}

int trace_open(struct trace **out, const char *path, struct jaunt_error *error)
{
	sigset_t all, before;

	*out = NULL;
	if (!path)
		return 0;
	int fd = open_file(path, error);
	if (fd < 0)
		return fd;
	struct trace *trace = calloc(1, sizeof(*trace));
	if (!trace) {
		close(fd);
		return error_set(error, ENOMEM, "memory", "trace %s: out of memory", path);
	}
	trace->fd = fd;
	pthread_mutex_init(&trace->lock, NULL);
	trace->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	trace->path = strdup(path);
	int code = trace->call < 0 ? errno : trace->path ? 0 : ENOMEM;
	if (!code) {
		/* Signals are for the threads of whoever embeds us. */
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		code = pthread_create(&trace->writer, NULL, write_trace, trace);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (code) {
		release(trace);
		return error_set(error, code, "trace-file", "trace %s: %s", path, strerror(code));
	}
	*out = trace;
	return 0;
}

struct trace_lane *trace_lane(struct trace *trace, const char *name)
{
	struct trace_lane *lane = NULL;

	if (!trace)
		return NULL;
	pthread_mutex_lock(&trace->lock);
	unsigned count = atomic_load_explicit(&trace->lane_count, memory_order_relaxed);
	for (unsigned i = 0; i < count; i++)
		if (strcmp(trace->lanes[i]->name, name) == 0) {
			pthread_mutex_unlock(&trace->lock);
			return trace->lanes[i];
		}
	if (count < TRACE_LANES_MAX)
		lane = aligned_alloc(_Alignof(struct trace_lane), sizeof(*lane));
	if (lane) {
		memset(lane, 0, sizeof(*lane));
		lane->trace = trace;
		snprintf(lane->name, sizeof(lane->name), "%s", name);
		atomic_store_explicit(&trace->lanes[count], lane, memory_order_relaxed);
		atomic_store_explicit(&trace->lane_count, count + 1, memory_order_release);
	} else {
		trace->lanes_refused++;
	}
	pthread_mutex_unlock(&trace->lock);
	return lane;
}

int trace_failed(const struct trace *trace)
{
	return trace ? atomic_load_explicit(&trace->error, memory_order_relaxed) : 0;
}

uint64_t trace_bytes(struct trace *trace)
{
	if (!trace)
		return 0;
	uint64_t bytes = sizeof(*trace);
	unsigned count = atomic_load_explicit(&trace->lane_count, memory_order_acquire);
	for (unsigned i = 0; i < count; i++) {
		struct trace_lane *lane =
			atomic_load_explicit(&trace->lanes[i], memory_order_relaxed);
		bytes += sizeof(*lane);
		if (atomic_load_explicit(&lane->records, memory_order_relaxed))
			bytes += TRACE_LANE_RECORDS * sizeof(struct record);
	}
	return bytes;
}

static void add_last_line(struct trace *trace)
{
	unsigned count = atomic_load(&trace->lane_count);
	uint64_t dropped = 0;

	for (unsigned i = 0; i < count; i++)
		dropped += atomic_load(&atomic_load(&trace->lanes[i])->dropped);
	jsonline_literal(&trace->line, "{\"what\":\"end\",\"ns\":");
	jsonline_number(&trace->line, clock_ns());
	jsonline_literal(&trace->line, ",\"records\":");
	jsonline_number(&trace->line, trace->written);
	jsonline_literal(&trace->line, ",\"dropped\":");
	jsonline_number(&trace->line, dropped);
	jsonline_literal(&trace->line, ",\"lanes_refused\":");
	jsonline_number(&trace->line, trace->lanes_refused);
	jsonline_literal(&trace->line, ",\"lanes\":[");
	for (unsigned i = 0; i < count; i++) {
		const struct trace_lane *lane = atomic_load(&trace->lanes[i]);
		reserve_line(trace);
		if (i)
			jsonline_literal(&trace->line, ",");
		jsonline_literal(&trace->line, "{\"name\":");
		jsonline_string(&trace->line, lane->name);
		jsonline_literal(&trace->line, ",\"dropped\":");
		jsonline_number(&trace->line, atomic_load(&lane->dropped));
		jsonline_literal(&trace->line, "}");
	}
	jsonline_literal(&trace->line, "]}\n");
}

int trace_close(struct trace *trace, struct jaunt_error *error)
{
	if (!trace)
		return 0;
	atomic_store_explicit(&trace->stop, true, memory_order_release);
	call_writer(trace);
	pthread_join(trace->writer, NULL);
	add_last_line(trace);
	flush(trace);
	int code = atomic_load(&trace->error);
	/* Some file systems tell only here that there was no room. */
	if (close(trace->fd) && !code)
		code = errno;
	trace->fd = -1;
	if (code)
		error_set(error, code, "trace-write",
			  "trace %s: %s; the trace ends there, the migration was not disturbed",
			  trace->path, strerror(code));
	release(trace);
	return -code;
}
