/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/progress.h"

#include <math.h>
#include <string.h>

#include "cli/snapshot.h"
#include "cli/text.h"

#define PROGRESS_PLAIN_NS  UINT64_C(1000000000)
#define PROGRESS_SMOOTH_S  2.0
#define PROGRESS_ETA_MAX_S 86400.0

const char *progress_phase_words(enum jaunt_phase phase)
{
	switch (phase) {
	case JAUNT_PHASE_IDLE:
		return "starting";
	case JAUNT_PHASE_WAITING:
		return "waiting for a VM";
	case JAUNT_PHASE_PREPARING:
		return "preparing, the VM runs at the source";
	case JAUNT_PHASE_PRECOPY:
		return "runs at the source, memory is copied";
	case JAUNT_PHASE_SWITCHOVER:
		return "switching over";
	case JAUNT_PHASE_POSTCOPY:
		return "runs at the target, pages follow";
	case JAUNT_PHASE_BLOCKED:
		return "blocked";
	case JAUNT_PHASE_IN_DOUBT:
		return "in doubt, waiting to hear whether it may run";
	case JAUNT_PHASE_COMPLETED:
		return "complete";
	case JAUNT_PHASE_CANCELLED:
		return "cancelled";
	case JAUNT_PHASE_FAILED:
		return "failed";
	}
	return "unknown";
}

void progress_init(struct progress *progress, FILE *out, bool terminal, unsigned columns)
{
	*progress = (struct progress){.out = out,
				      .terminal = terminal,
				      .columns = columns < 40    ? 40
						 : columns > 160 ? 160
								 : columns};
}

static bool moves_memory(const struct jaunt_status *status)
{
	return status->phase == JAUNT_PHASE_PRECOPY || snapshot_committed(status);
}

static void smooth(struct progress *progress, const struct jaunt_status *status, uint64_t now_ns)
{
	if (!moves_memory(status)) {
		progress->sample_ns = 0;
		return;
	}
	if (progress->sample_ns && now_ns > progress->sample_ns) {
		double seconds = (double)(now_ns - progress->sample_ns) / 1e9;
		/* Exponential smoothing whose memory does not depend on how often we are called;
		 * the first interval counts whole. */
		double weight =
			progress->bytes_per_s > 0 ? 1 - exp(-seconds / PROGRESS_SMOOTH_S) : 1;
		double bytes =
			status->payload_bytes > progress->sample_bytes
				? (double)(status->payload_bytes - progress->sample_bytes) / seconds
				: 0;
		progress->bytes_per_s += weight * (bytes - progress->bytes_per_s);
	}
	progress->sample_ns = now_ns;
	progress->sample_bytes = status->payload_bytes;
}

void progress_eta(char *text, size_t room, double eta_ms)
{
	double seconds = eta_ms / 1000;

	text[0] = '\0';
	if (!(seconds > 0) || seconds >= PROGRESS_ETA_MAX_S)
		return;
	if (seconds < 1)
		snprintf(text, room, "under 1 s left");
	else if (seconds < 90)
		snprintf(text, room, "about %.0f s left", ceil(seconds));
	else
		snprintf(text, room, "about %.0f min left", ceil(seconds / 60));
}

static void describe_eta(char *text, size_t room, const struct jaunt_status *status, bool push)
{
	char eta[40];

	progress_eta(eta, sizeof(eta), status->eta_ms);
	if (status->phase == JAUNT_PHASE_POSTCOPY && status->pages.missing && !push)
		snprintf(eta, sizeof(eta), "on demand only");
	snprintf(text, room, "%s%s", eta[0] ? ", " : "", eta);
}

static void describe_rounds(char *text, size_t room, const struct progress *progress,
			    const struct jaunt_status *status)
{
	char rate[TEXT_ROOM], left[TEXT_ROOM], eta[48];

	describe_eta(eta, sizeof(eta), status, true);
	snprintf(text, room, "%s: round %llu, %s left of it, %s%s",
		 progress_phase_words(status->phase), (unsigned long long)status->round,
		 text_bytes(left, sizeof(left), status->remaining_bytes),
		 text_rate(rate, sizeof(rate), progress->bytes_per_s), eta);
}

/* Of memory that is registered with a device while the VM is not waited for; "" when it is not. */
static void describe_registration(char *text, size_t room, const struct jaunt_status *status)
{
	char done[TEXT_ROOM], all[TEXT_ROOM];
	uint64_t bytes = status->registered_bytes, wanted = status->registered_wanted_bytes;
	double ms = bytes ? status->register_ms / (double)bytes * (double)wanted
			  : status->register_estimate_ms;

	text[0] = '\0';
	if (status->phase != JAUNT_PHASE_PREPARING || bytes >= wanted || ms <= status->register_ms)
		return;
	snprintf(text, room, ", registering memory: %s of %s, about %.0f s left",
		 text_bytes(done, sizeof(done), bytes), text_bytes(all, sizeof(all), wanted),
		 ceil((ms - status->register_ms) / 1000));
}

static void describe(char *text, size_t room, const struct progress *progress,
		     const struct jaunt_status *status, bool push)
{
	char rate[TEXT_ROOM], left[TEXT_ROOM], eta[48];
	uint64_t page_bytes = status->pages.total ? status->ram_bytes / status->pages.total : 0;

	if (status->phase == JAUNT_PHASE_PRECOPY && progress->bytes_per_s > 0) {
		describe_rounds(text, room, progress, status);
		return;
	}
	if (!snapshot_committed(status)) {
		char registration[128];
		describe_registration(registration, sizeof(registration), status);
		snprintf(text, room, "%s%s%s%.200s", progress_phase_words(status->phase),
			 registration, status->reason[0] ? ": " : "", status->reason);
		return;
	}
	describe_eta(eta, sizeof(eta), status, push);
	int used = snprintf(text, room, "%llu pages (%s) missing, %s%s",
			    (unsigned long long)status->pages.missing,
			    text_bytes(left, sizeof(left), status->pages.missing * page_bytes),
			    text_rate(rate, sizeof(rate), progress->bytes_per_s), eta);
	if (status->phase == JAUNT_PHASE_BLOCKED && used > 0 && (size_t)used < room)
		snprintf(text, room, "blocked, %llu pages missing: %s",
			 (unsigned long long)status->pages.missing,
			 status->reason[0] ? status->reason : "they do not arrive");
}

static void draw(struct progress *progress, const struct jaunt_status *status, const char *words)
{
	enum { BAR = 24 };
	char line[400], bar[BAR + 1];
	double percent = snapshot_percent(status);
	int filled = (int)(percent / 100 * BAR);

	memset(bar, ' ', BAR);
	memset(bar, '#', (size_t)filled);
	bar[BAR] = '\0';
	/* 100 % only when nothing is missing. */
	int used = snprintf(line, sizeof(line), "[%s] %3.0f %% %s", bar, floor(percent), words);
	if (used >= (int)progress->columns)
		line[progress->columns - 1] = '\0'; /* a line that wraps cannot be redrawn */
	fprintf(progress->out, "\r%s\033[K", line);
	progress->drawn = true;
}

void progress_update(struct progress *progress, const struct jaunt_status *status, bool push,
		     uint64_t now_ns)
{
	char words[320];
	bool phase_changed = !progress->shown || progress->phase != status->phase;

	smooth(progress, status, now_ns);
	/* Its end is told by whoever knows the outcome. */
	if (!progress->terminal &&
	    (status->phase == JAUNT_PHASE_CANCELLED || status->phase == JAUNT_PHASE_FAILED))
		return;
	if (!progress->terminal && !phase_changed &&
	    (now_ns - progress->shown_ns < PROGRESS_PLAIN_NS ||
	     (status->phase != JAUNT_PHASE_POSTCOPY && status->phase != JAUNT_PHASE_PRECOPY)))
		return;
	describe(words, sizeof(words), progress, status, push);
	if (progress->terminal)
		draw(progress, status, words);
	else if (snapshot_committed(status) && status->phase != JAUNT_PHASE_BLOCKED)
		fprintf(progress->out, "%3.0f %% %s: %s\n", floor(snapshot_percent(status)),
			progress_phase_words(status->phase), words);
	else if (snapshot_committed(status))
		fprintf(progress->out, "%3.0f %% %s\n", floor(snapshot_percent(status)), words);
	else
		fprintf(progress->out, "%s\n", words);
	fflush(progress->out);
	progress->phase = status->phase;
	progress->shown = true;
	progress->shown_ns = now_ns;
}

void progress_finish(struct progress *progress)
{
	if (progress->drawn)
		fputc('\n', progress->out);
	fflush(progress->out);
	progress->drawn = false;
}
