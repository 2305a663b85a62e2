/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * jaunt_migration_run() blocks until the outcome is final, which may be hours after a lost link,
 * and jaunt_source_open() may block while it connects; both run on the job's thread, so that the
 * process goes on answering. The lock covers the little that both threads write: the migration once
 * it is open, the outcome, and a cancel that came before there was anything to cancel.
 */
#include "cli/job.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/outcome.h"

struct job {
	bool outgoing;
	const struct jaunt_vm_ops *ops;
	void *vm;
	struct jaunt_options options; /* strings are the job's own */
	char *allowed[JAUNT_MAX_ALLOWED];
	bool push; /* as set last */
	int wake_fd;
	uint64_t started_ns;
	pthread_t thread;

	pthread_mutex_t lock;
	/* Under the lock: */
	struct jaunt_migration *migration;
	bool cancel_wanted; /* before the migration was open */
	bool done;
	enum jaunt_outcome outcome;
	struct jaunt_error error;
};

static void wake(struct job *job)
{
	uint64_t one = 1;
	if (write(job->wake_fd, &one, sizeof(one)) < 0)
		return; /* EAGAIN: it is awake already */
}

static void phase_changed(void *context, int phase)
{
	wake(context);
}

static void finish(struct job *job, enum jaunt_outcome outcome, const struct jaunt_error *error)
{
	pthread_mutex_lock(&job->lock);
	job->outcome = outcome;
	job->error = *error;
	job->done = true;
	pthread_mutex_unlock(&job->lock);
	wake(job);
}

static void *run(void *argument)
{
	struct job *job = argument;
	struct jaunt_error error = {.code = 0};
	struct jaunt_migration *migration = job->migration; /* set before the thread for targets */
	bool cancelled;

	if (job->outgoing) {
		if (jaunt_source_open(&migration, job->ops, job->vm, &job->options, &error)) {
			finish(job, outcome_of_error(&error), &error);
			return NULL;
		}
		pthread_mutex_lock(&job->lock);
		job->migration = migration;
		cancelled = job->cancel_wanted;
		pthread_mutex_unlock(&job->lock);
		if (cancelled) {
			error_set(&error, ECANCELED, "cancelled", "cancelled while connecting");
			finish(job, JAUNT_CANCELLED, &error);
			return NULL;
		}
	}
	int outcome = jaunt_migration_run(migration, &error);
	if (outcome < 0 || outcome == JAUNT_FAILED)
		outcome = job->outgoing ? outcome_of_run(&error) : JAUNT_FAILED;
	finish(job, (enum jaunt_outcome)outcome, &error);
	return NULL;
}

static char *copy(const char *text)
{
	return text ? strdup(text) : NULL;
}

static void destroy(struct job *job)
{
	pthread_mutex_destroy(&job->lock);
	free((char *)job->options.peer);
	free((char *)job->options.mode);
	free((char *)job->options.trace_path);
	free((char *)job->options.tracker);
	for (size_t i = 0; i < job->options.allowed_count; i++)
		free(job->allowed[i]);
	free(job);
}

static int create(struct job **out, const struct jaunt_options *options, int wake_fd,
		  struct jaunt_error *error)
{
	struct job *job = calloc(1, sizeof(*job));
	if (!job) {
		error_set(error, ENOMEM, "no-memory", "not enough memory to start a migration");
		return -ENOMEM;
	}
	pthread_mutex_init(&job->lock, NULL);
	job->options = *options;
	job->options.peer = copy(options->peer);
	job->options.mode = copy(options->mode);
	job->options.trace_path = copy(options->trace_path);
	job->options.tracker = copy(options->tracker);
	/* Without memory less is allowed. */
	job->options.allowed = (const char *const *)job->allowed;
	job->options.allowed_count = 0;
	for (size_t i = 0; i < options->allowed_count; i++)
		if ((job->allowed[job->options.allowed_count] = copy(options->allowed[i])))
			job->options.allowed_count++;
	job->options.phase_changed = phase_changed;
	job->options.context = job;
	job->push = options->push;
	job->wake_fd = wake_fd;
	job->started_ns = clock_ns();
	if (!job->options.peer || (options->mode && !job->options.mode) ||
	    (options->tracker && !job->options.tracker) ||
	    (options->trace_path && !job->options.trace_path)) {
		destroy(job);
		error_set(error, ENOMEM, "no-memory", "not enough memory to start a migration");
		return -ENOMEM;
	}
	*out = job;
	return 0;
}

static int start(struct job *job, struct jaunt_error *error)
{
	int code = pthread_create(&job->thread, NULL, run, job);
	return code ? error_set(error, code, "no-threads",
				"cannot start a thread for the migration: %s; look at the limits "
				"on processes",
				strerror(code))
		    : 0;
}

int job_start_source(struct job **out, const struct jaunt_vm_ops *ops, void *vm,
		     const struct jaunt_options *options, int wake_fd, struct jaunt_error *error)
{
	struct job *job;
	int result = create(&job, options, wake_fd, error);

	if (result)
		return result;
	job->outgoing = true;
	job->ops = ops;
	job->vm = vm;
	result = start(job, error);
	if (result)
		destroy(job);
	else
		*out = job;
	return result;
}

typedef int open_target(struct jaunt_migration **out, const struct jaunt_vm_factory *factory,
			void *context, const struct jaunt_options *options,
			struct jaunt_error *error);

static int start_target(struct job **out, open_target *open, const struct jaunt_vm_factory *factory,
			void *context, const struct jaunt_options *options, int wake_fd,
			struct jaunt_error *error)
{
	struct job *job;
	int result = create(&job, options, wake_fd, error);

	if (result)
		return result;
	result = open(&job->migration, factory, context, &job->options, error);
	if (!result) {
		result = start(job, error);
		if (result)
			jaunt_migration_close(job->migration);
	}
	if (result)
		destroy(job);
	else
		*out = job;
	return result;
}

int job_start_target(struct job **out, const struct jaunt_vm_factory *factory, void *context,
		     const struct jaunt_options *options, int wake_fd, struct jaunt_error *error)
{
	return start_target(out, jaunt_target_open, factory, context, options, wake_fd, error);
}

int job_start_take_up(struct job **out, const struct jaunt_vm_factory *factory, void *context,
		      const struct jaunt_options *options, int wake_fd, struct jaunt_error *error)
{
	return start_target(out, jaunt_target_take_up, factory, context, options, wake_fd, error);
}

bool job_outgoing(const struct job *job)
{
	return job->outgoing;
}

bool job_push(const struct job *job)
{
	return job->push;
}

const char *job_peer(const struct job *job)
{
	return job->options.peer;
}

bool job_done(struct job *job, enum jaunt_outcome *outcome)
{
	pthread_mutex_lock(&job->lock);
	bool done = job->done;
	*outcome = job->outcome;
	pthread_mutex_unlock(&job->lock);
	return done;
}

struct jaunt_migration *job_migration(struct job *job)
{
	pthread_mutex_lock(&job->lock);
	struct jaunt_migration *migration = job->migration;
	pthread_mutex_unlock(&job->lock);
	return migration;
}

static void set_text(char *to, size_t room, const char *from)
{
	snprintf(to, room, "%.*s", (int)room - 1, from ? from : "");
}

void job_status(struct job *job, struct jaunt_status *status)
{
	struct jaunt_migration *migration = job_migration(job);
	enum jaunt_outcome outcome;
	bool done = job_done(job, &outcome);

	memset(status, 0, sizeof(*status));
	if (migration) {
		jaunt_migration_status(migration, status);
	} else {
		status->phase = JAUNT_PHASE_PREPARING;
		status->vm_is_at = JAUNT_AT_SOURCE;
		status->total_ms = (double)(clock_ns() - job->started_ns) / 1e6;
	}
	if (!status->peer[0])
		set_text(status->peer, sizeof(status->peer), job->options.peer);
	if (!status->mode[0] && job->outgoing)
		set_text(status->mode, sizeof(status->mode),
			 job->options.mode ? job->options.mode : JAUNT_MODE_DEFAULT);
	if (!done)
		return;
	/* Written once, before `done`: no lock needed any more. */
	if (outcome == JAUNT_FAILED || outcome == JAUNT_USAGE)
		status->phase = JAUNT_PHASE_FAILED;
	else if (outcome == JAUNT_CANCELLED)
		status->phase = JAUNT_PHASE_CANCELLED;
	if (outcome != JAUNT_DONE && !status->error[0])
		set_text(status->error, sizeof(status->error), job->error.text);
	if (outcome != JAUNT_DONE && !status->reason[0])
		set_text(status->reason, sizeof(status->reason), job->error.reason);
}

static int ended(struct jaunt_error *error)
{
	return error_set(error, EALREADY, "already-ended",
			 "the migration has just come to its end; see `jaunt status`");
}

/* The migration to act on; NULL with *result set if there is none (any more). */
static struct jaunt_migration *running(struct job *job, int *result, struct jaunt_error *error)
{
	enum jaunt_outcome outcome;
	if (job_done(job, &outcome)) {
		*result = ended(error);
		return NULL;
	}
	*result = 0;
	return job_migration(job);
}

int job_cancel(struct job *job, struct jaunt_error *error)
{
	pthread_mutex_lock(&job->lock);
	struct jaunt_migration *migration = job->migration;
	bool done = job->done;
	if (!migration)
		job->cancel_wanted = true;
	pthread_mutex_unlock(&job->lock);
	if (done)
		return ended(error);
	return migration ? jaunt_migration_cancel(migration, error) : 0;
}

int job_abandon(struct job *job, struct jaunt_error *error)
{
	int result;
	struct jaunt_migration *migration = running(job, &result, error);
	if (!migration)
		return result ? result : job_cancel(job, error);
	return jaunt_migration_abandon(migration, error);
}

int job_resume_fenced(struct job *job, struct jaunt_error *error)
{
	int result;
	struct jaunt_migration *migration = running(job, &result, error);
	if (!migration)
		return result ? result
			      : error_set(error, EBUSY, "not-in-doubt",
					  "the migration is still connecting: the VM runs at the "
					  "source; cancel it instead");
	return jaunt_migration_resume_fenced(migration, error);
}

/* The migration, or NULL and why there is none to change. */
static struct jaunt_migration *changeable(struct job *job, int *result, struct jaunt_error *error)
{
	struct jaunt_migration *migration = running(job, result, error);

	if (!migration && !*result)
		*result = error_set(error, EBUSY, "busy",
				    "the migration is still connecting; try again");
	return migration;
}

int job_may_set(struct job *job, bool at_source, struct jaunt_error *error)
{
	int result;

	if (!changeable(job, &result, error))
		return result;
	if (at_source && !job->outgoing)
		return error_set(error, EINVAL, "not-source",
				 "bandwidth and limits are set where the VM comes from");
	return 0;
}

int job_set_bandwidth(struct job *job, uint64_t bytes_per_s, struct jaunt_error *error)
{
	int result;
	struct jaunt_migration *migration = changeable(job, &result, error);

	if (!migration)
		return result;
	return jaunt_migration_set_bandwidth(migration, bytes_per_s, error);
}

int job_set_downtime_limit(struct job *job, uint32_t limit_ms, struct jaunt_error *error)
{
	int result;
	struct jaunt_migration *migration = changeable(job, &result, error);

	if (!migration)
		return result;
	if (!job->outgoing)
		return error_set(error, EINVAL, "not-source",
				 "when to switch is decided where the VM comes from: set it there");
	if (jaunt_migration_set_downtime_limit(migration, limit_ms) < 0)
		return error_set(error, EINVAL, "bad-option",
				 "a limit of the downtime is 1 ms to an hour");
	return 0;
}

int job_switch(struct job *job, struct jaunt_error *error)
{
	int result;
	struct jaunt_migration *migration = changeable(job, &result, error);

	return migration ? jaunt_migration_switch(migration, error) : result;
}

int job_set_push(struct job *job, bool push, struct jaunt_error *error)
{
	int result;
	struct jaunt_migration *migration = running(job, &result, error);
	if (!migration)
		return result ? result
			      : error_set(error, EBUSY, "busy",
					  "the migration is still connecting; try again");
	result = jaunt_migration_set_push(migration, push);
	if (result)
		return error_set(error, -result, "set-push", "cannot turn push %s: %s",
				 push ? "on" : "off", strerror(-result));
	job->push = push;
	return 0;
}

void job_close(struct job *job)
{
	if (!job)
		return;
	pthread_join(job->thread, NULL);
	if (job->migration)
		jaunt_migration_close(job->migration);
	destroy(job);
}
