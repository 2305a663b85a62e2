/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trace of a migration: every fault, grant and decision, one JSON object a line.
 *
 * A thread that has something to tell owns a lane (one producer each). Telling costs a few stores
 * and no system call; a thread of the trace's own formats and writes. Nothing here ever makes the
 * migration wait or fail: a full lane drops (the last line counts what was dropped), and a file
 * that cannot be written any more ends the trace, with the error kept for the report. Where there
 * is no trace, its pointer and those of its lanes are NULL, and telling is a test for that.
 *
 * Times are nanoseconds of CLOCK_MONOTONIC. Lines of one lane are in order; lanes are interleaved
 * as they are drained.
 */
#ifndef ENGINE_TRACE_H
#define ENGINE_TRACE_H

#include <stdint.h>

#include "jaunt.h"

#define TRACE_SCHEMA       "jaunt-trace/1"
#define TRACE_LANES_MAX    96u
#define TRACE_LANE_RECORDS (1u << 16) /* 3 MiB a lane, made at its first record */
#define TRACE_TEXT_MAX     1024u      /* bytes of an event's text; the rest is cut */
#define TRACE_MEMBERS_MAX  6144u      /* bytes of an object's members */

struct trace;
struct trace_lane;

/* What came of a fault. */
enum trace_answer {
	TRACE_FETCHED,   /* asked of the source; done: when the page was made visible */
	TRACE_JOINED,    /* a request for the page was in flight already */
	TRACE_FILLING,   /* somebody was filling the page, who wakes the guest */
	TRACE_MAPPED,    /* present, mapped again */
	TRACE_DISCARDED, /* present, the guest had given it back: zeros */
	TRACE_HOLE,      /* known to be a hole: zeros, nothing asked */
	TRACE_ANSWERS,
};

/* What became of a run of pages that arrived, or was sent. */
enum trace_fate {
	TRACE_RUN_ZERO,
	TRACE_RUN_HOLE,
	TRACE_RUN_PUSHED,
	TRACE_RUN_DEMANDED,
	TRACE_RUN_DUPLICATE, /* dropped */
	TRACE_RUN_REFUSED,   /* dropped: wrong digest, wrong epoch */
	/* At the source, which sent them: */
	TRACE_RUN_FETCHED,  /* answered on an urgent channel */
	TRACE_RUN_GRANTED,  /* streamed: the grant was answered in full */
	TRACE_RUN_TOLD,     /* told to be a hole */
	TRACE_RUN_DIGESTED, /* a question about their digests was answered */
	TRACE_FATES,
};

/* Creates the file. path NULL: *out is NULL, and all is well. -errno with `error`: cannot be
 * created, or is neither a regular file nor a device (a pipe could make the end wait for ever). */
int trace_open(struct trace **out, const char *path, struct jaunt_error *error);

/* A lane for the calling thread, for the next of its name when it has ended. NULL without a trace,
 * and when there are too many (the last line counts the lanes refused). Lanes live as long as the
 * trace. Any thread. */
struct trace_lane *trace_lane(struct trace *trace, const char *name);

/* Writes what is left and the last line, and frees all; no producer may be active any more. Returns
 * 0, or -errno of the write that ended the trace early, with `error` filled. */
int trace_close(struct trace *trace, struct jaunt_error *error);

/* The error that ended the trace early, or 0; any thread. */
int trace_failed(const struct trace *trace);
/* Memory that it holds; any thread. */
uint64_t trace_bytes(struct trace *trace);

/* --- Telling: by the lane's own thread
 * -------------------------------------------------------------- */

void trace_put_fault(struct trace_lane *lane, unsigned region, uint64_t page, uint64_t read_ns,
		     uint64_t done_ns, enum trace_answer answer);
void trace_put_grant(struct trace_lane *lane, unsigned region, uint64_t first, uint64_t count,
		     unsigned stream);
void trace_put_run(struct trace_lane *lane, unsigned region, uint64_t first, uint64_t count,
		   enum trace_fate fate);
void trace_put_event(struct trace_lane *lane, const char *name, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* A line of its own kind: `members` are those of a JSON object, without its braces, which the
 * caller has made well. Longer than TRACE_MEMBERS_MAX: dropped. */
void trace_put_object(struct trace_lane *lane, const char *what, const char *members);

/* A fault read at read_ns and answered at done_ns. */
static inline void trace_fault(struct trace_lane *lane, unsigned region, uint64_t page,
			       uint64_t read_ns, uint64_t done_ns, enum trace_answer answer)
{
	if (__builtin_expect(!!lane, 0))
		trace_put_fault(lane, region, page, read_ns, done_ns, answer);
}

/* A range asked for on a stream. */
static inline void trace_grant(struct trace_lane *lane, unsigned region, uint64_t first,
			       uint64_t count, unsigned stream)
{
	if (__builtin_expect(!!lane, 0))
		trace_put_grant(lane, region, first, count, stream);
}

/* Pages that arrived or were sent, and what became of them. */
static inline void trace_run(struct trace_lane *lane, unsigned region, uint64_t first,
			     uint64_t count, enum trace_fate fate)
{
	if (__builtin_expect(!!lane, 0))
		trace_put_run(lane, region, first, count, fate);
}

/* A decision or a change of phase: a stable name, and text for a person. Allocates: for rare
 * things. The text is not even formatted where there is no trace. */
#define trace_event(lane, name, ...)                                                               \
	do {                                                                                       \
		struct trace_lane *trace_event_lane = (lane);                                      \
		if (__builtin_expect(!!trace_event_lane, 0))                                       \
			trace_put_event(trace_event_lane, (name), __VA_ARGS__);                    \
	} while (0)

#endif
