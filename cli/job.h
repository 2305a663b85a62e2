/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One side of one migration, on a thread of its own. All functions are called from the thread that
 * started the job. `wake_fd` is an eventfd that becomes readable on every change of phase and at
 * the end.
 */
#ifndef CLI_JOB_H
#define CLI_JOB_H

#include <stdbool.h>

#include "jaunt.h"

struct job;

/* Connects on the job's thread. Copies `options` and the strings in it. */
int job_start_source(struct job **out, const struct jaunt_vm_ops *ops, void *vm,
		     const struct jaunt_options *options, int wake_fd, struct jaunt_error *error);

/* Listens when it returns. The factory is kept, not copied. */
int job_start_target(struct job **out, const struct jaunt_vm_factory *factory, void *context,
		     const struct jaunt_options *options, int wake_fd, struct jaunt_error *error);

/* The same for a VM whose process of before died: see jaunt_target_take_up(). */
int job_start_take_up(struct job **out, const struct jaunt_vm_factory *factory, void *context,
		      const struct jaunt_options *options, int wake_fd, struct jaunt_error *error);

bool job_outgoing(const struct job *job);
bool job_push(const struct job *job);
const char *job_peer(const struct job *job);

/* True once the outcome is final. */
bool job_done(struct job *job, enum jaunt_outcome *outcome);
void job_status(struct job *job, struct jaunt_status *status);

/* The migration, NULL while it is being opened or could not be. */
struct jaunt_migration *job_migration(struct job *job);

/* As their namesakes in jaunt.h; all hold for a job that is still connecting, too. */
int job_cancel(struct job *job, struct jaunt_error *error);
int job_abandon(struct job *job, struct jaunt_error *error);
int job_resume_fenced(struct job *job, struct jaunt_error *error);
/* Whether one of the following would be taken; `at_source`: one of the two that the source takes.
 */
int job_may_set(struct job *job, bool at_source, struct jaunt_error *error);
int job_set_push(struct job *job, bool push, struct jaunt_error *error);
int job_set_bandwidth(struct job *job, uint64_t bytes_per_s, struct jaunt_error *error);
int job_set_downtime_limit(struct job *job, uint32_t limit_ms, struct jaunt_error *error);
int job_switch(struct job *job, struct jaunt_error *error);

/* Waits for the end, which must be near, and closes the migration. */
void job_close(struct job *job);

#endif
