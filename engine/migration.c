/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/migration.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/inject.h"
#include "engine/source/tracker.h"
#include "engine/trace.h"
#include "engine/worker.h"

#define DOWNTIME_LIMIT_MS     300
#define DOWNTIME_LIMIT_MAX_MS 3600000u
#define TOTAL_WEIGHT          0.01
#define PEER_TIMEOUT_MS       10000
/* That a stream gets on is seen each time that so much of it is on its way, or a larger page. */
#define SEEN_BYTES MIB(1)
/* So often within the peer timeout, at least. */
#define SEEN_OFTEN 4u

void jaunt_options_init(struct jaunt_options *options)
{
	memset(options, 0, sizeof(*options));
	options->push = true;
	options->streams = 1;
	options->fault_threads = 1;
	options->peer_timeout_ms = PEER_TIMEOUT_MS;
	options->downtime_limit_ms = DOWNTIME_LIMIT_MS;
	options->total_weight = TOTAL_WEIGHT;
}

static const char *const modes[] = {"stop-and-copy", "pre-copy", "post-copy", "hybrid", "auto"};

bool migration_has_rounds(const char *mode)
{
	return strcmp(mode, "post-copy") != 0 && strcmp(mode, "stop-and-copy") != 0;
}

const char *jaunt_version(void)
{
	return JAUNT_VERSION;
}

const char *jaunt_phase_name(enum jaunt_phase phase)
{
	static const char *const names[] = {
		[JAUNT_PHASE_IDLE] = "idle",           [JAUNT_PHASE_WAITING] = "waiting",
		[JAUNT_PHASE_PREPARING] = "preparing", [JAUNT_PHASE_SWITCHOVER] = "switchover",
		[JAUNT_PHASE_POSTCOPY] = "post-copy",  [JAUNT_PHASE_BLOCKED] = "blocked",
		[JAUNT_PHASE_IN_DOUBT] = "in-doubt",   [JAUNT_PHASE_COMPLETED] = "completed",
		[JAUNT_PHASE_PRECOPY] = "pre-copy",    [JAUNT_PHASE_CANCELLED] = "cancelled",
		[JAUNT_PHASE_FAILED] = "failed",
	};
	return (unsigned)phase < sizeof(names) / sizeof(names[0]) ? names[phase] : "unknown";
}

const char *jaunt_place_name(enum jaunt_place place)
{
	static const char *const names[] = {[JAUNT_AT_SOURCE] = "source",
					    [JAUNT_AT_TARGET] = "target",
					    [JAUNT_AT_BLOCKED] = "blocked",
					    [JAUNT_AT_UNKNOWN] = "unknown"};
	return (unsigned)place < sizeof(names) / sizeof(names[0]) ? names[place] : "unknown";
}

/* What a mode cannot keep, and limits that say nothing. */
static int check_mode(const struct jaunt_options *options, struct jaunt_error *error)
{
	const char *mode = options->mode ? options->mode : JAUNT_MODE_DEFAULT;
	const char *wrong = NULL;
	enum tracker_kind tracker;
	size_t known = 0;

	while (known < sizeof(modes) / sizeof(modes[0]) && strcmp(modes[known], mode) != 0)
		known++;
	if (known == sizeof(modes) / sizeof(modes[0]))
		return error_set(error, EINVAL, "bad-option",
				 "unknown mode \"%s\": there are stop-and-copy, pre-copy, "
				 "post-copy, hybrid and auto",
				 mode);
	bool runs_short = strcmp(mode, "post-copy") == 0 || strcmp(mode, "hybrid") == 0;
	bool slows = strcmp(mode, "pre-copy") == 0 || strcmp(mode, "auto") == 0;
	if (options->no_post_copy && runs_short)
		wrong = "runs the VM with pages missing, which no-post-copy forbids";
	else if (!options->push && !runs_short)
		wrong = "needs the push, which is turned off: nothing else would complete the "
			"memory; modes post-copy and hybrid do without";
	else if (options->throttle && !slows)
		wrong = "does not wait for the VM to write less: there is nothing to throttle";
	else if (!migration_has_rounds(mode) && options->max_rounds)
		wrong = "has no rounds, so there is nothing to limit the number of";
	else if (!migration_has_rounds(mode) && options->timeout_ms)
		wrong = "has no rounds, so there is nothing to end after a time";
	else if (!migration_has_rounds(mode) && options->tracker)
		wrong = "has no rounds, so it tracks no writes";
	if (wrong)
		return error_set(error, EINVAL, "bad-option", "mode %s %s", mode, wrong);
	if (!tracker_kind_parse(options->tracker, &tracker))
		return error_set(error, EINVAL, "bad-option",
				 "there is no way to track writes that is called \"%s\"",
				 options->tracker);
	if (options->downtime_limit_ms > DOWNTIME_LIMIT_MAX_MS)
		return error_set(error, EINVAL, "bad-option",
				 "a limit of the downtime of %u ms: it can be 1 ms to an hour",
				 options->downtime_limit_ms);
	if (options->total_limit_ms && options->total_limit_ms < options->downtime_limit_ms)
		return error_set(error, EINVAL, "bad-option",
				 "a limit of the total time (%u ms) below that of the downtime "
				 "(%u ms)",
				 options->total_limit_ms, options->downtime_limit_ms);
	if (!(options->total_weight >= 0 && options->total_weight <= 1e3))
		return error_set(error, EINVAL, "bad-option",
				 "the weight of total time is from 0 to 1000");
	return 0;
}

int migration_check_bandwidth(const struct jaunt_options *options, uint64_t bytes_per_s,
			      uint64_t page_bytes, struct jaunt_error *error)
{
	uint32_t timeout_ms = options->peer_timeout_ms ? options->peer_timeout_ms : PEER_TIMEOUT_MS;
	uint64_t seen = page_bytes > SEEN_BYTES ? page_bytes : SEEN_BYTES;
	double least = (double)(options->streams * SEEN_OFTEN * seen) * 1e3 / timeout_ms;

	if (!bytes_per_s || (double)bytes_per_s >= least)
		return 0;
	return error_set(error, EINVAL, "bad-option",
			 "a bandwidth of %.3g MB/s is too little for %u stream%s: the other side "
			 "could not be told from one that says nothing for %u ms. It can be %.3g "
			 "MB/s and more; less with fewer streams or a longer peer timeout",
			 (double)bytes_per_s / 1e6, options->streams,
			 options->streams == 1 ? "" : "s", timeout_ms, least / 1e6 + 0.005);
}

int jaunt_options_check(const struct jaunt_options *options, struct jaunt_error *error)
{
	if (!options->peer)
		return error_set(error, EINVAL, "bad-option", "no peer address was given");
	if (options->streams < 1 || options->streams > 64)
		return error_set(error, EINVAL, "bad-option", "%u streams: there can be 1 to 64",
				 options->streams);
	if (options->fault_threads > 16)
		return error_set(error, EINVAL, "bad-option",
				 "%u fault threads: there can be 1 to 16", options->fault_threads);
	if (options->allowed_count > JAUNT_MAX_ALLOWED)
		return error_set(error, EINVAL, "bad-option",
				 "%zu differences are allowed: there can be %d",
				 options->allowed_count, JAUNT_MAX_ALLOWED);
	int result = check_mode(options, error);
	return result < 0 ? result
			  : migration_check_bandwidth(options, options->bandwidth_bytes_per_s, 0,
						      error);
}

int migration_init(struct jaunt_migration *migration, const struct side_ops *side,
		   struct session *session, const struct jaunt_options *options,
		   struct jaunt_error *error)
{
	int result = jaunt_options_check(options, error);
	if (result == 0)
		result = inject_init(error);
	if (result == 0)
		result = trace_open(&migration->trace, options->trace_path, error);
	if (result < 0)
		return result;
	migration->side = side;
	migration->session = session;
	migration->options = *options;
	migration->options.peer = strdup(options->peer);
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		if (strcmp(options->mode ? options->mode : JAUNT_MODE_DEFAULT, modes[i]) == 0)
			migration->options.mode = modes[i];
	if (options->tracker)
		migration->options.tracker = strdup(options->tracker);
	/* Without memory less is allowed. */
	migration->options.allowed_count = 0;
	for (size_t i = 0; i < options->allowed_count; i++)
		if ((migration->allowed[migration->options.allowed_count] =
			     strdup(options->allowed[i])))
			migration->options.allowed_count++;
	migration->options.allowed = (const char *const *)migration->allowed;
	if (!migration->options.downtime_limit_ms)
		migration->options.downtime_limit_ms = DOWNTIME_LIMIT_MS;
	if (migration->options.total_weight == 0)
		migration->options.total_weight = TOTAL_WEIGHT;
	atomic_store(&migration->bandwidth, options->bandwidth_bytes_per_s);
	atomic_store(&migration->downtime_limit_ms, migration->options.downtime_limit_ms);
	migration->options.trace_path = NULL; /* opened already */
	if (!migration->options.fault_threads)
		migration->options.fault_threads = 1;
	if (!migration->options.peer_timeout_ms)
		migration->options.peer_timeout_ms = PEER_TIMEOUT_MS;
	pthread_mutex_init(&migration->mutex, NULL);
	pthread_mutex_init(&session->mutex, NULL);
	migration->started_ns = clock_ns();
	for (size_t i = 0; i < sizeof(migration->status.eta_error_percent) / sizeof(double); i++)
		migration->status.eta_error_percent[i] = NAN;
	atomic_store(&migration->set_push, -1);
	snprintf(migration->status.peer, sizeof(migration->status.peer), "%s", options->peer);
	snprintf(migration->status.mode, sizeof(migration->status.mode), "%s",
		 migration->options.mode);
	return 0;
}

void migration_fini(struct jaunt_migration *migration)
{
	trace_close(migration->trace, NULL);
	free((char *)migration->options.peer);
	free((char *)migration->options.tracker);
	free(migration->decisions);
	differences_close(&migration->differences);
	for (size_t i = 0; i < migration->options.allowed_count; i++)
		free(migration->allowed[i]);
	pthread_mutex_destroy(&migration->mutex);
}

void migration_phase(struct jaunt_migration *migration, enum jaunt_phase phase)
{
	pthread_mutex_lock(&migration->mutex);
	bool changed = migration->status.phase != phase;
	migration->status.phase = phase;
	bool moves = phase == JAUNT_PHASE_PRECOPY || phase == JAUNT_PHASE_SWITCHOVER;
	if (moves && !migration->moving_ns)
		migration->moving_ns = clock_ns();
	pthread_mutex_unlock(&migration->mutex);
	if (!changed)
		return;
	trace_event(migration->lane, "phase", "%s", jaunt_phase_name(phase));
	if (migration->options.phase_changed)
		migration->options.phase_changed(migration->options.context, phase);
}

void migration_device(struct jaunt_migration *migration, const char *device)
{
	pthread_mutex_lock(&migration->mutex);
	snprintf(migration->status.device, sizeof(migration->status.device), "%s", device);
	pthread_mutex_unlock(&migration->mutex);
	if (device[0])
		trace_event(migration->lane, "device", "%s", device);
}

void migration_place(struct jaunt_migration *migration, enum jaunt_place place)
{
	pthread_mutex_lock(&migration->mutex);
	migration->status.vm_is_at = place;
	pthread_mutex_unlock(&migration->mutex);
}

static void set_reason(struct jaunt_migration *migration, const struct jaunt_error *why)
{
	struct jaunt_status *status = &migration->status;

	snprintf(status->reason, sizeof(status->reason), "%s", why ? why->reason : "");
	snprintf(status->error, sizeof(status->error), "%s", why ? why->text : "");
}

void migration_reason(struct jaunt_migration *migration, const struct jaunt_error *why)
{
	pthread_mutex_lock(&migration->mutex);
	set_reason(migration, why);
	pthread_mutex_unlock(&migration->mutex);
}

void migration_blocked(struct jaunt_migration *migration, const struct jaunt_error *why)
{
	pthread_mutex_lock(&migration->mutex);
	set_reason(migration, why);
	migration->status.vm_is_at = JAUNT_AT_BLOCKED;
	pthread_mutex_unlock(&migration->mutex);
	migration_phase(migration, JAUNT_PHASE_BLOCKED);
}

void migration_unblocked(struct jaunt_migration *migration)
{
	pthread_mutex_lock(&migration->mutex);
	set_reason(migration, NULL);
	migration->status.vm_is_at = JAUNT_AT_TARGET;
	pthread_mutex_unlock(&migration->mutex);
	migration_phase(migration, JAUNT_PHASE_POSTCOPY);
}

int migration_end(struct jaunt_migration *migration, enum jaunt_outcome outcome,
		  enum jaunt_place place, const struct jaunt_error *error)
{
	pthread_mutex_lock(&migration->mutex);
	migration->status.vm_is_at = place;
	set_reason(migration, outcome == JAUNT_DONE ? NULL : error);
	migration->ended = true;
	migration->ended_ns = clock_ns();
	pthread_mutex_unlock(&migration->mutex);
	migration_phase(migration, outcome == JAUNT_DONE        ? JAUNT_PHASE_COMPLETED
				   : outcome == JAUNT_CANCELLED ? JAUNT_PHASE_CANCELLED
								: JAUNT_PHASE_FAILED);
	return outcome;
}

int migration_check_address(struct jaunt_options *options, struct address *address, bool listening,
			    struct jaunt_error *error)
{
	int result = address_parse(address, options->peer, error);

	if (result == 0 && !options->connect_timeout_ms)
		options->connect_timeout_ms = transport_connect_ms(address);
	if (result == 0)
		result = address_resolve(address, error);
	if (result < 0 || options->insecure)
		return result;
	if (!address_is_loopback(address))
		return error_set(error, EPERM, "insecure",
				 "%s is beyond this host, and channels are not encrypted: whoever "
				 "can read or change traffic on the way can read or change the "
				 "guest's memory. On a network where nobody can, say --insecure",
				 listening ? "listening there" : "the peer");
	return 0;
}

int jaunt_migration_run(struct jaunt_migration *migration, struct jaunt_error *error)
{
	struct jaunt_error local = {0};

	if (!error)
		error = &local;
	migration->lane = trace_lane(migration->trace, "control");
	/* The guest stands still while this thread takes its steps at the switchover. */
	struct worker_rank_saved before = worker_rank_raise();
	int outcome = migration->side->run(migration, error);
	worker_rank_restore(&before);
	return outcome;
}

void jaunt_migration_status(struct jaunt_migration *migration, struct jaunt_status *status)
{
	pthread_mutex_lock(&migration->mutex);
	uint64_t now = migration->ended ? migration->ended_ns : clock_ns();
	*status = migration->status;
	status->total_ms = (double)(now - migration->started_ns) / 1e6;
	migration->side->status(migration, status);
	int trace_error = trace_failed(migration->trace);
	if (trace_error)
		snprintf(status->trace_error, sizeof(status->trace_error),
			 "the trace ended early: %s", strerror(-trace_error));
	if (migration->moving_ns && now > migration->moving_ns)
		status->throughput_bytes_per_s =
			(double)status->payload_bytes * 1e9 / (double)(now - migration->moving_ns);
	pthread_mutex_unlock(&migration->mutex);
}

void migration_decided(struct jaunt_migration *migration, const struct jaunt_decision *decision)
{
	pthread_mutex_lock(&migration->mutex);
	if (!migration->decisions)
		migration->decisions = calloc(JAUNT_DECISIONS_MAX, sizeof(*migration->decisions));
	if (migration->decisions) {
		if (migration->decision_count < JAUNT_DECISIONS_MAX)
			migration->decision_count++;
		migration->decisions[migration->decision_count - 1] = *decision;
	}
	pthread_mutex_unlock(&migration->mutex);
}

size_t jaunt_migration_decisions(struct jaunt_migration *migration, size_t from,
				 struct jaunt_decision *out, size_t room)
{
	size_t count = 0;

	pthread_mutex_lock(&migration->mutex);
	while (from + count < migration->decision_count && count < room) {
		out[count] = migration->decisions[from + count];
		count++;
	}
	pthread_mutex_unlock(&migration->mutex);
	return count;
}

size_t jaunt_migration_differences(struct jaunt_migration *migration, struct jaunt_difference *out,
				   size_t room)
{
	size_t count = 0;

	pthread_mutex_lock(&migration->mutex);
	for (; count < migration->differences.count && count < room; count++)
		out[count] = migration->differences.all[count];
	pthread_mutex_unlock(&migration->mutex);
	return count;
}

int jaunt_migration_cancel(struct jaunt_migration *migration, struct jaunt_error *error)
{
	pthread_mutex_lock(&migration->mutex);
	bool committed = migration->committed, ended = migration->ended;
	bool in_doubt = migration->status.phase == JAUNT_PHASE_IN_DOUBT;
	/* Under the mutex, so that either COMMIT or the cancel comes first. */
	if (!committed && !ended && !in_doubt)
		atomic_store(&migration->cancel, true);
	pthread_mutex_unlock(&migration->mutex);
	if (ended)
		return error_set(error, EBUSY, "ended",
				 "the migration has ended: there is nothing to cancel");
	if (in_doubt)
		return error_set(error, EBUSY, "in-doubt",
				 "the link was lost before COMMIT or ABORT was heard: only the "
				 "source knows whose the VM is. `jaunt cancel VM --abandon` gives "
				 "this copy up");
	if (committed)
		return error_set(
			error, EBUSY, "committed",
			"the migration is past COMMIT and cannot be cancelled: the guest's "
			"memory is on both hosts until it completes");
	session_wake(migration->session);
	return 0;
}

int jaunt_migration_abandon(struct jaunt_migration *migration, struct jaunt_error *error)
{
	(void)error;
	atomic_store(&migration->abandon, true);
	session_wake(migration->session);
	return 0;
}

int jaunt_migration_resume_fenced(struct jaunt_migration *migration, struct jaunt_error *error)
{
	int result;

	pthread_mutex_lock(&migration->mutex);
	enum jaunt_phase phase = migration->status.phase;
	if (phase != JAUNT_PHASE_BLOCKED && phase != JAUNT_PHASE_IN_DOUBT)
		result = error_set(error, EINVAL, "not-blocked",
				   "the migration is not blocked (%s): there is nothing to resume",
				   jaunt_phase_name(phase));
	else
		result = migration->side->check_resume(migration, error);
	if (result == 0)
		atomic_store(&migration->resume_fenced, true);
	pthread_mutex_unlock(&migration->mutex);
	if (result == 0)
		session_wake(migration->session);
	return result;
}

int jaunt_migration_switch(struct jaunt_migration *migration, struct jaunt_error *error)
{
	pthread_mutex_lock(&migration->mutex);
	enum jaunt_phase phase = migration->status.phase;
	bool early = phase == JAUNT_PHASE_IDLE || phase == JAUNT_PHASE_PREPARING ||
		     phase == JAUNT_PHASE_PRECOPY;
	pthread_mutex_unlock(&migration->mutex);
	if (!migration->side->set_bandwidth)
		return error_set(error, EINVAL, "not-source",
				 "only the source can say when to switch: ask there");
	if (!migration_has_rounds(migration->options.mode))
		return error_set(error, EINVAL, "no-rounds",
				 "mode %s switches by itself, as soon as it can",
				 migration->options.mode);
	if (migration->options.no_post_copy)
		return error_set(error, EINVAL, "no-post-copy",
				 "a switch would run the VM with pages missing, which no-post-copy "
				 "forbids");
	if (!early)
		return error_set(error, EINVAL, "not-in-rounds",
				 "there is nothing to switch: the migration is at \"%s\"",
				 jaunt_phase_name(phase));
	atomic_store(&migration->switch_wanted, true);
	session_wake(migration->session);
	return 0;
}

int jaunt_migration_set_bandwidth(struct jaunt_migration *migration, uint64_t bytes_per_s,
				  struct jaunt_error *error)
{
	if (!migration->side->set_bandwidth)
		return error_set(error, EINVAL, "not-source",
				 "the bandwidth is limited where the VM comes from: set it there");
	int result = migration_check_bandwidth(&migration->options, bytes_per_s,
					       migration->page_bytes, error);
	if (result < 0)
		return result;
	atomic_store(&migration->bandwidth, bytes_per_s);
	pthread_mutex_lock(&migration->mutex);
	migration->side->set_bandwidth(migration);
	pthread_mutex_unlock(&migration->mutex);
	return 0;
}

int jaunt_migration_set_downtime_limit(struct jaunt_migration *migration, uint32_t limit_ms)
{
	if (!migration->side->set_bandwidth || !limit_ms || limit_ms > DOWNTIME_LIMIT_MAX_MS)
		return -EINVAL;
	atomic_store(&migration->downtime_limit_ms, limit_ms);
	session_wake(migration->session);
	return 0;
}

int jaunt_migration_set_push(struct jaunt_migration *migration, bool push)
{
	atomic_store(&migration->set_push, push);
	session_wake(migration->session);
	return 0;
}

void jaunt_migration_discarded(struct jaunt_migration *migration, size_t region,
			       uint64_t first_page, uint64_t count)
{
	if (migration->side->changed)
		migration->side->changed(migration, region, first_page, count, true);
}

void jaunt_migration_wrote(struct jaunt_migration *migration, size_t region, uint64_t first_page,
			   uint64_t count)
{
	if (migration->side->changed)
		migration->side->changed(migration, region, first_page, count, false);
}

void jaunt_migration_close(struct jaunt_migration *migration)
{
	if (migration)
		migration->side->close(migration);
}
