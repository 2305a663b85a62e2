/* SPDX-License-Identifier: Apache-2.0 */
/* What the owner of a VM says of it. */
#include "cli/host.h"

#include <inttypes.h>
#include <unistd.h>

#include "cli/snapshot.h"
#include "cli/text.h"

/* Under the lock, because the engine may have the VM destroyed on its own thread. */
bool host_take_account(struct host *host)
{
	pthread_mutex_lock(&host->lock);
	bool there = host->vm != NULL;
	if (there && !host->kind->separate)
		guest_account(host->vm, &host->account, NULL);
	pthread_mutex_unlock(&host->lock);
	return there;
}

static const char *state_word(const struct host *host, const struct jaunt_status *status)
{
	if (!host->job)
		return host->stop_wanted ? "stopping" : "running";
	switch (status->phase) {
	case JAUNT_PHASE_IDLE:
	case JAUNT_PHASE_WAITING:
		return job_outgoing(host->job) ? "running" : "waiting";
	case JAUNT_PHASE_PREPARING:
	case JAUNT_PHASE_PRECOPY:
		return job_outgoing(host->job) ? "running" : "arriving";
	case JAUNT_PHASE_SWITCHOVER:
		return "paused";
	case JAUNT_PHASE_POSTCOPY:
		return job_outgoing(host->job) ? "leaving" : "running";
	case JAUNT_PHASE_BLOCKED:
		return "blocked";
	case JAUNT_PHASE_IN_DOUBT:
		return "in-doubt";
	case JAUNT_PHASE_COMPLETED:
		return job_outgoing(host->job) ? "left" : "running";
	case JAUNT_PHASE_CANCELLED:
	case JAUNT_PHASE_FAILED:
		break;
	}
	return job_outgoing(host->job) ? "running" : "ending";
}

json_t *host_describe_migration(struct job *job, const struct jaunt_status *status)
{
	json_t *object = snapshot_json(status);
	json_object_set_new(object, "direction",
			    json_string(job_outgoing(job) ? "outgoing" : "incoming"));
	json_object_set_new(object, "push", json_boolean(job_push(job)));
	json_object_set_new(object, "percent", text_real(snapshot_percent(status)));
	return object;
}

json_t *host_describe(struct host *host)
{
	struct jaunt_status status = {.phase = JAUNT_PHASE_IDLE};
	bool there = host_take_account(host);

	if (host->job)
		job_status(host->job, &status);
	json_t *object = json_pack("{s:s, s:I, s:s, s:s}", "name", host_name(host), "pid",
				   (json_int_t)getpid(), "command", host->command, "state",
				   state_word(host, &status));
	json_object_set_new(object, "memory_bytes",
			    json_integer(there ? (json_int_t)host->facts.memory_bytes : 0));
	json_object_set_new(object, "page_bytes",
			    json_integer(there ? (json_int_t)host->facts.page_bytes : 0));
	json_object_set_new(object, "vcpus", json_integer(there ? host->facts.vcpus : 0));
	json_object_set_new(object, "workload", text_json(there ? host->facts.workload : ""));
	json_object_set_new(object, "thread_backed",
			    json_boolean(there && host->facts.thread_backed));
	json_object_set_new(object, "guest",
			    there && !host->kind->separate
				    ? guest_account_json(&host->account,
							 host->has_touches ? &host->touches : NULL,
							 host->check)
				    : json_null());
	json_object_set_new(object, "migration",
			    host->job ? host_describe_migration(host->job, &status) : json_null());
	json_object_set_new(object, "last_migration",
			    host->has_left ? snapshot_json(&host->left) : json_null());
	return object;
}

void host_print_account(const struct host *host, FILE *out)
{
	static const char *const words[] = {
		[GUEST_NOT_CHECKED] = "not checked",
		[GUEST_CLEAN] = "all its memory checked, clean",
		[GUEST_ERRORS] = "its memory is WRONG",
		[GUEST_UNFINISHED] = "the last check of all its memory was NOT FINISHED in time: "
				     "what it had not "
				     "reached is unchecked",
	};
	const struct guest_account *account = &host->account;
	char stall[TEXT_ROOM], error[512];

	fprintf(out,
		"  guest       %" PRIu64 " operations, %" PRIu64 " memory errors, longest stall "
		"%s; %s\n",
		account->operations, account->memory_errors,
		text_microseconds(stall, sizeof(stall), account->longest_stall_us),
		words[host->check]);
	text_clean(error, sizeof(error), account->first_error);
	if (error[0])
		fprintf(out, "  first error %s\n", error);
}
