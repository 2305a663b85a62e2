/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that owns a VM: `vm run` and `receive` alike. It holds the VM's name, answers the
 * other commands, runs one migration at a time, and decides what a signal may end. One thread (that
 * of host_run) does all this; migrations and vCPUs have threads of their own.
 */
#ifndef CLI_HOST_H
#define CLI_HOST_H

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "cli/guest.h"
#include "cli/job.h"
#include "cli/runtime.h"
#include "cli/server.h"
#include "jaunt.h"

struct host {
	const char *command;        /* "vm run", "receive": begins every line it prints */
	bool quiet;                 /* it prints none: somebody else in this process does */
	const char *label;          /* the VM's name as it is told, NULL: that of the claim */
	struct runtime_claim claim; /* written under `lock` */
	char waiting_name[RUNTIME_NAME_MAX + 1]; /* of a receive to which no VM has come */
	struct server *server;
	int signal_fd, wake_fd;

	const struct guest_kind *kind;
	struct guest_host guests; /* context of the target's factory */
	struct job *job;          /* the migration under way, NULL: none */
	struct job *arrival;      /* the one that brought the VM, once complete, until it leaves */
	bool vm_here;             /* complete, and this side runs it */
	bool starting;            /* the guest still fills its memory for the first time */
	enum jaunt_phase shown;   /* the phase that was told last */
	uint64_t told_ns;
	char told_error[1024];

	/* The last migration that ended here. */
	bool has_arrived, has_left;
	struct jaunt_status arrived, left;
	enum jaunt_outcome left_outcome;
	bool has_touches;
	struct jaunt_percentiles touches;
	double waited_us; /* their sum */

	const char *throughput_path; /* where its throughput is written at the end, or NULL */
	bool stop_wanted, finished;
	uint64_t stop_ns;    /* when a signal asked for it */
	uint64_t abandon_ns; /* when the source's farewell is waited for no longer; 0: it is */
	bool told_poll;      /* that clients cannot be listened to */
	_Atomic bool leave;  /* see host_leave() */
	enum jaunt_outcome outcome;
	enum guest_check check;       /* the guest's last check of its memory */
	struct guest_account account; /* the last one taken */
	struct guest_facts facts;

	pthread_mutex_t lock; /* for what the target's factory does on the migration's thread: */
	void *vm;
	struct runtime_claim pending; /* the name of the VM that arrives, to be taken over */
	bool go_back;                 /* it did not come after all: the former name again */
};

/* Blocks the signals that it handles: call it before any thread is made. Without `signals` they are
 * somebody else's affair. */
int host_open(struct host *host, const char *command, bool signals, struct jaunt_error *error);
/* The name to answer to. */
int host_claim(struct host *host, const char *name, struct jaunt_error *error);
/* Hands over a VM that was started; host_run() says when it is at work. */
void host_adopt(struct host *host, const struct guest_kind *kind, void *vm,
		const struct guest_facts *facts);
/* Listens for a VM. `name`: what it is to be called here, NULL: as at the source. `qemu`: which
 * QEMU takes it in, NULL: a built-in one is made. Keeps `options` no longer than the call. */
int host_receive(struct host *host, const char *name, const struct guest_qemu *qemu,
		 bool thread_backed, const struct jaunt_options *options,
		 struct jaunt_error *error);
/* The same of a guest that `qemu` has got, whose receiver died. */
int host_take_up(struct host *host, const char *name, const struct guest_qemu *qemu,
		 const struct jaunt_options *options, struct jaunt_error *error);
/* From another thread: host_run() returns as soon as no migration is under way. */
void host_leave(struct host *host);
/* Until the VM is gone or stopped, or never came. The exit code. */
enum jaunt_outcome host_run(struct host *host);
void host_close(struct host *host);

/* The VM's name as it is told. */
static inline const char *host_name(const struct host *host)
{
	return host->label ? host->label : host->claim.name;
}

/* Takes from the migration that brought the VM what is still of use, and closes it: before the VM
 * is moved on, or destroyed. */
void host_settle_arrival(struct host *host);

/* host_arrival.c: takes over, on the loop's thread, what the migration's has done about names. */
void host_settle_name(struct host *host);

/* host_describe.c: what `status` shows of it; new references. */
json_t *host_describe(struct host *host);
json_t *host_describe_migration(struct job *job, const struct jaunt_status *status);
/* The guest's account into host->account, if there is a guest. */
bool host_take_account(struct host *host);
/* Tells one line on stderr: "vm run: …". */
void host_say(struct host *host, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What the guest said of itself when it was stopped, for people. */
void host_print_account(const struct host *host, FILE *out);

/* host_requests.c: one request of another command. */
void host_request(void *user, struct server_client *client, json_t *request);

#endif
