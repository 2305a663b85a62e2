/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress for people, on a stream (stderr): one line redrawn in place on a terminal, plain lines
 * otherwise. A pure function of the snapshots and of the times that they are given with.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "jaunt.h"

struct progress {
	FILE *out;
	bool terminal;
	unsigned columns;
	enum jaunt_phase phase; /* that was last shown */
	bool shown;
	bool drawn; /* the cursor stands behind a line of ours */
	uint64_t shown_ns;
	/* Smoothed over about two seconds. */
	uint64_t sample_ns, sample_bytes;
	double bytes_per_s;
};

void progress_init(struct progress *progress, FILE *out, bool terminal, unsigned columns);

/* `push`: missing pages are streamed; otherwise there is no telling when the last one is touched,
 * and no ETA. */
void progress_update(struct progress *progress, const struct jaunt_status *status, bool push,
		     uint64_t now_ns);

/* Leaves the line in place on a terminal, so that something else can be printed below it. */
void progress_finish(struct progress *progress);

/* Into `text`: "about 8 s left", or nothing where no end is in sight. */
void progress_eta(char *text, size_t room, double eta_ms);

/* The phase in plain English. */
const char *progress_phase_words(enum jaunt_phase phase);

#endif
