/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libjaunt: post-copy live migration on userfaultfd.
 *
 * A VMM embeds the engine through this header alone. It describes its VM with a table of functions
 * (struct jaunt_vm_ops), opens one side of a migration, and runs it on a thread of its own:
 *
 *     source:  jaunt_source_open(&m, ops, vm, &options, &err);  jaunt_migration_run(m, &err);
 *     target:  jaunt_target_open(&m, factory, ctx, &options, &err);  jaunt_migration_run(m, &err);
 *
 * While it runs, any thread may ask jaunt_migration_status(), jaunt_migration_cancel() and their
 * like. Nothing here prints, exits or installs signal handlers.
 *
 * Conventions: functions return 0 or a negative errno and fill a struct jaunt_error; sizes are in
 * bytes, times in nanoseconds of CLOCK_MONOTONIC unless a name says otherwise.
 */
#ifndef JAUNT_H
#define JAUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define JAUNT_VERSION      "0.1.0"
#define JAUNT_DEFAULT_PORT 7420

/* --- Errors ----------------------------------------------------------------------------------- */

/* What went wrong, collecting context on its way up: "migrate web: connect to 10.0.0.2:7420:
 * connection refused". `reason` is a stable word for programs, e.g. "connect-refused". */
struct jaunt_error {
	int code; /* positive errno, 0: no error */
	char reason[40];
	char text[1024];
};

/* --- The VM, as the engine sees it ------------------------------------------------------------ */

/* One region of guest memory, backed by a shared memory file. The caller owns everything in it and
 * keeps it alive while a migration is open. */
struct jaunt_region {
	const char *name;
	uint64_t guest_address; /* guest-physical, a multiple of page_bytes */
	uint64_t bytes;         /* a multiple of page_bytes */
	uint64_t page_bytes;    /* 4096, or 2 MiB for a hugetlb file */
	int fd;                 /* memfd, hugetlb memfd or named tmpfs file */
	uint64_t fd_offset;     /* where the region starts in the file, a multiple of page_bytes */
	void *view; /* the VM's own mapping; its address in the process that ops->process names */
};

/* A fact about the VM that both sides must agree on, or that the target needs to build it. */
struct jaunt_property {
	const char *key;
	const char *value;
};

#define JAUNT_MAX_REGIONS    64
#define JAUNT_MAX_PROPERTIES 1024

struct jaunt_description {
	const char *name; /* the VM's name at the source */
	const struct jaunt_property *properties;
	size_t property_count;
	const struct jaunt_region *regions; /* on the target's side of create(): fd -1, view NULL */
	size_t region_count;
	/* On the target's side of create() only: items of a jaunt_difference that the source's
	 * operator takes upon himself, and whether memory is copied while the VM runs there, so
	 * that every write to it must be seen. */
	const char *const *allowed;
	size_t allowed_count;
	bool rounds;
};

/* One item in which the VM that create() could make differs from the source's, or for which that
 * one cannot move at all. */
struct jaunt_difference {
	const char *item;            /* "cpu model" */
	const char *source, *target; /* "": not there */
	const char *advice;
	bool allowable; /* by jaunt_options.allowed */
};
#define JAUNT_MAX_ALLOWED     64
#define JAUNT_MAX_DIFFERENCES 256

struct jaunt_migration;

/* Tells of pages of a region, counted in pages of the region's own size. */
typedef void jaunt_dirty_run(void *context, size_t region, uint64_t first_page, uint64_t count);

/* What the engine needs of a VMM. Calls come from the thread in jaunt_migration_run(), one at a
 * time, in the order of the phases. Each returns 0 or -errno with `error` filled. */
struct jaunt_vm_ops {
	const char *driver; /* both sides must name the same */
	/* Fills `out`; what it points to stays valid until the migration is closed. */
	int (*describe)(void *vm, struct jaunt_description *out, struct jaunt_error *error);
	/* Stops every vCPU. *last_instruction_ns: when the last of them left guest mode. */
	int (*pause)(void *vm, uint64_t *last_instruction_ns, struct jaunt_error *error);
	/* All state but memory, in malloc()ed bytes that the engine frees. The VM is paused. */
	int (*save)(void *vm, void **state, size_t *bytes, struct jaunt_error *error);
	/* Loads that state into a VM that has not run yet. May touch guest memory: faults are
	 * served. If the pages stop coming (the link is lost, the migration cancelled, the peer
	 * silent), what is missing reads as zeros so that the call can return; the VM is then
	 * destroyed whatever it returns. */
	int (*load)(void *vm, const void *state, size_t bytes, struct jaunt_error *error);
	/* Runs the vCPUs, at the target for the first time, at the source after a failure.
	 * *first_entry_ns: when the first of them entered guest mode. */
	int (*resume)(void *vm, uint64_t *first_entry_ns, struct jaunt_error *error);
	/* Optional, source: the VM is about to be handed over to `peer`, so a driver that must know
	 * even after the death of this process writes it down. With an error it is not handed over.
	 */
	int (*committed)(void *vm, const char *peer, struct jaunt_error *error);
	/* Optional. A userfaultfd of the address space that holds the VM's view, which has nothing
	 * registered; the engine closes it. It may have been negotiated before, if by the engine:
	 * one that came with the VM. Each call during a migration gives another one: the target
	 * calls it once for each fault thread, the source once at most. NULL: the view is in this
	 * process. */
	int (*userfaultfd)(void *vm, struct jaunt_error *error);
	/* Optional, target, both or neither, for a VM that lives on without this process, and whose
	 * userfaultfds do: keeps a copy of `fd` open with it, in place of what it had kept; -1:
	 * nothing any more. And a descriptor of what is kept, or -ENOENT. */
	int (*keep)(void *vm, int fd, struct jaunt_error *error);
	int (*kept)(void *vm, struct jaunt_error *error);
	/* Optional, beside it: the process whose address space that is. NULL or 0: this one. */
	int (*process)(void *vm);
	/* Optional. Whether devices may write to a page long after they looked it up, past the page
	 * tables (direct I/O): then who tracks from outside looks only while the VM is paused, and
	 * pause() must wait for what is under way. NULL: none does. */
	bool (*writes_late)(void *vm);

	/* Dirty tracking, for modes that copy memory while the VM runs. Optional, all three or
	 * none: the engine can track from outside where the kernel has what that takes. */

	/* From now on the driver notes every page that the guest writes. -ENOTSUP: this VM cannot.
	 */
	int (*track_start)(void *vm, struct jaunt_error *error);
	/* Calls `emit` for every run of pages written since the start or the last collect, and
	 * notes anew from here on: a write after the call of `emit` for its page is for the next
	 * collect. The VM may run, or be paused. While it runs, a write may be told one collect
	 * late. `emit` may be called from several threads at once. */
	int (*track_collect)(void *vm, jaunt_dirty_run *emit, void *context,
			     struct jaunt_error *error);
	/* The VM runs at full speed again: 0. Else it may not, -errno with `error`: to be called
	 * once more, until which track_start() and track_sample() may fail, too. Also called when
	 * one of these has failed, and when nothing is on. */
	int (*track_stop)(void *vm, struct jaunt_error *error);
	/* Optional, beside them; both or none. Before track_start(): from now on the driver notes
	 * whether a page is written for about one page in `every` (a power of two), drawn at
	 * random, so that the VM feels as little of it. -errno: it cannot. track_start() or
	 * track_stop() ends it. */
	int (*track_sample)(void *vm, unsigned every);
	/* How many of these pages were written since, or -errno. */
	int64_t (*track_sampled)(void *vm);

	/* Optional. Whom to tell what no tracking sees: discards, with
	 * jaunt_migration_discarded(), and the VMM's own writes to guest memory, with
	 * jaunt_migration_wrote(). A discard is reported before pause() returns, and while the VM
	 * is paused there is none: one that is reported after the switch ends the session. A driver
	 * without it has its memory registered with an RDMA device only after the switch. Called
	 * with NULL before the migration is closed: when that returns nobody is being told any
	 * more.
	 */
	void (*report_to)(void *vm, struct jaunt_migration *migration);

	/* Optional: holds every vCPU for that share of the time, 0 to 99 %; 0: no more. */
	int (*throttle)(void *vm, unsigned percent, struct jaunt_error *error);

	/* Optional, source, both or neither: a state of which a large part can be saved while the
	 * VM runs. save_begin() says that the switch has come: pause() and save() follow, or
	 * resume(), which takes it back. From then on the driver may stop the VM itself. */
	int (*save_begin)(void *vm, struct jaunt_error *error);
	/* Bytes of the state, *bytes of them, at most `room`; none if none come within a moment.
	 * 1: there may be more; 2: the same, and the VM stands still by now, so nobody is to be
	 * waited for. 0: it is time for pause(). What of the state has not been told by then
	 * save() gives. None of these bytes needs guest memory to be loaded. */
	int (*save_ahead)(void *vm, void *buffer, size_t room, size_t *bytes,
			  struct jaunt_error *error);
	/* Optional, target: loads the next bytes of what save_ahead() gave; the VM runs at the
	 * source, and guest memory cannot be read. load() gets the rest. NULL: it gets it all. */
	int (*load_ahead)(void *vm, const void *state, size_t bytes, struct jaunt_error *error);
};

/* Whether the vCPUs of a VM that was found run. */
enum jaunt_runs {
	JAUNT_STANDS,
	JAUNT_RUNS,
	JAUNT_MAY_RUN, /* nobody can say for now */
};

/* The target's side: builds the VM that the source describes. */
struct jaunt_vm_factory {
	const struct jaunt_vm_ops *ops;
	/* Creates a VM that matches `wanted` (memory files, mappings, vCPUs; nothing touched,
	 * nothing run), or refuses by name. describe() then gives its regions, in the same order.
	 */
	int (*create)(void *context, const struct jaunt_description *wanted, void **vm,
		      struct jaunt_error *error);
	/* The migration failed before the VM ran: forget it. */
	void (*destroy)(void *context, void *vm);
	/* Optional. Why the last create() refused, item by item: points *out at a list that stays
	 * until the next create(), and returns how many there are. */
	size_t (*differences)(void *context, const struct jaunt_difference **out);
	/* Optional, where the VM keeps things (ops->keep). Takes hold of a VM that create() made in
	 * a process that is dead, as it is. */
	int (*take_up)(void *context, void **vm, enum jaunt_runs *runs, struct jaunt_error *error);
	/* Beside it: lets go of it again, as it is. */
	void (*let_go)(void *context, void *vm);
};

/* --- Options ---------------------------------------------------------------------------------- */

enum jaunt_timeout_action { JAUNT_TIMEOUT_SWITCH, JAUNT_TIMEOUT_ABORT };

#define JAUNT_MODE_DEFAULT "auto"

struct jaunt_options {
	const char *peer; /* "tcp:HOST[:PORT]", IPv6 in brackets: to connect to, or to listen on */
	/* source: "stop-and-copy", "pre-copy", "post-copy", "hybrid" or "auto"; NULL:
	 * JAUNT_MODE_DEFAULT */
	const char *mode;
	bool push;                      /* source: stream missing pages in the background */
	unsigned streams;               /* source: 1 to 64 */
	unsigned fault_threads;         /* target: 1 to 16, 0: one */
	uint64_t bandwidth_bytes_per_s; /* source: limit of the streams, 0: none */
	bool verify;   /* source: check a digest of every page before the guest sees it */
	bool dry_run;  /* source: stop after the target has agreed */
	bool insecure; /* allow addresses beyond loopback */
	/* The limits of what is decided while the VM still runs at the source. */
	uint32_t downtime_limit_ms; /* of modes that switch by it, 0: 300 */
	uint32_t total_limit_ms;    /* of all of it, a wish; 0: none */
	unsigned max_rounds;        /* of pre-copy, 0: no limit of their number */
	uint32_t timeout_ms;        /* until the switch; then timeout_action; 0: none */
	enum jaunt_timeout_action timeout_action;
	bool no_post_copy;   /* the VM never runs with pages missing */
	double total_weight; /* auto: what a second of total time counts in stall, 0: 0.01 */
	bool throttle;       /* pre-copy: slow the vCPUs down when it does not converge */
	const char *tracker; /* of written pages, by name; NULL: the best there is */
	/* Source: differences that are no reason to refuse, by their item, as far as the driver
	 * thinks that this can be safe. */
	const char *const *allowed;
	size_t allowed_count;
	const char *trace_path; /* JSON lines of every fault, grant and decision; NULL: none */
	bool note_demanded;     /* target: remember which pages were demanded, one bit a page */
	uint32_t connect_timeout_ms; /* 0: 5000, over RDMA 10000 */
	uint32_t peer_timeout_ms;    /* silence after which a peer counts as lost, 0: 10000 */
	/* Called on the running thread, or on one of the engine's, on every change of phase. */
	void (*phase_changed)(void *context, int phase);
	void *context;
};

void jaunt_options_init(struct jaunt_options *options);
/* Whether they make sense, by themselves and together; else -EINVAL, reason "bad-option". Opening
 * a side checks it, too. */
int jaunt_options_check(const struct jaunt_options *options, struct jaunt_error *error);

/* --- What is happening, and what happened ----------------------------------------------------- */

enum jaunt_phase {
	JAUNT_PHASE_IDLE,
	JAUNT_PHASE_WAITING,    /* target: listening */
	JAUNT_PHASE_PREPARING,  /* connecting, checking, reserving; the VM runs at the source */
	JAUNT_PHASE_PRECOPY,    /* its memory is copied while the VM runs at the source */
	JAUNT_PHASE_SWITCHOVER, /* paused at the source, not yet running at the target */
	JAUNT_PHASE_POSTCOPY,   /* committed; runs at the target, pages are missing */
	JAUNT_PHASE_BLOCKED,    /* committed, but missing pages do not arrive; see reason */
	JAUNT_PHASE_IN_DOUBT,   /* target: loaded, link lost before COMMIT or ABORT was heard */
	JAUNT_PHASE_COMPLETED,
	JAUNT_PHASE_CANCELLED,
	JAUNT_PHASE_FAILED,
};

enum jaunt_place { JAUNT_AT_SOURCE, JAUNT_AT_TARGET, JAUNT_AT_BLOCKED, JAUNT_AT_UNKNOWN };

/* What jaunt_migration_run() and the commands' exit codes say about where the VM is. */
enum jaunt_outcome {
	JAUNT_DONE = 0,
	JAUNT_FAILED = 1, /* the VM runs at the source, safe to retry */
	JAUNT_USAGE = 2,
	JAUNT_CANCELLED = 3,
	JAUNT_INCOMPLETE = 4, /* committed but incomplete: do not start it elsewhere */
	JAUNT_UNKNOWN = 5,    /* ownership unknown: fence first */
};

struct jaunt_percentiles {
	uint64_t count;
	double p50, p90, p99, p999, max; /* microseconds */
};

struct jaunt_pages {
	uint64_t total, missing;
	uint64_t zero, hole, pushed, demanded; /* pages installed, by what brought them */
	uint64_t copied;    /* brought before the switch, and not written since */
	uint64_t kept;      /* brought by a process of the target's that died, after the switch */
	uint64_t duplicate; /* arrived when already claimed or present */
	uint64_t discarded; /* faults on present pages that are not in the file: given back by the
			     * guest, or holes and zeros that it had not touched yet */
	uint64_t read;      /* of pushed, demanded and duplicate: came by one-sided READ */
};

struct jaunt_status {
	enum jaunt_phase phase;
	enum jaunt_place vm_is_at;
	char reason[40]; /* stable word: why failed or blocked; empty if neither */
	char error[1024];
	char vm[64];
	char peer[128];
	char mode[16];
	uint64_t ram_bytes;
	double total_ms; /* command accepted → now, or the end */
	double switchover_us;
	double downtime_us; /* last guest instruction there → first entry here; 0: not yet known */
	double downtime_floor_us; /* source: save + restore + 2 round trips, measured in this run */
	struct jaunt_pages pages;
	/* Source, while rounds are sent; the last of each stay. */
	uint64_t round;               /* from 0 on */
	uint64_t remaining_bytes;     /* known to be dirty and not sent */
	double dirty_bytes_per_s;     /* what the VM writes, each page counted once a look */
	double bandwidth_bytes_per_s; /* achieved by the streams together */
	double predicted_downtime_ms; /* if it were switched now; 0: not known */
	char decision[160];           /* what was decided last, and why */
	double eta_ms;                /* source: until the end, as expected now; 0: not known */
	/* Source, at the end: how far off what was expected at 25, 50 and 75 % of the time was, in
	 * percent of it, above 0: later than it came; NAN: nothing was expected then. */
	double eta_error_percent[3];
	/* Source, at the end: "dirty-rate", "bandwidth-limit", "link", "source-cpu", "target-cpu"
	 * or "demand"; and how long the mean stream's thread ran or waited for a CPU, of the time
	 * in which memory was moved. */
	char limited_by[20];
	double source_busy_percent, target_busy_percent;
	uint64_t again_bytes; /* of payload_bytes: pages that had been sent before */
	uint64_t wire_bytes, payload_bytes;
	double throughput_bytes_per_s; /* of payload, since the switch */
	uint64_t verified_pages, mismatched_pages;
	uint64_t install_conflicts; /* pages that somebody else mapped behind the engine's back */
	struct jaunt_percentiles fault_latency_us; /* event read → made visible */
	uint64_t read_bytes; /* that came by one-sided READ; of payload_bytes, and of wire_bytes */
	/* "mlx5_0 port 1, GID fe80:…, MTU 4096, …": this side's RDMA device, as the control link
	 * uses it; empty over TCP, and before there is one. */
	char device[160];
	/* Source, with a transport that can READ: guest memory registered with the device, and what
	 * of it were holes that got memory by that. */
	uint64_t registered_bytes, registered_hole_bytes;
	uint64_t registered_wanted_bytes; /* data that there was to register when it began */
	uint64_t registered_stale; /* chunks registered again: the guest gave back pages of them */
	double register_ms, register_estimate_ms; /* so far; as estimated before it began */
	char register_error[256]; /* why less was registered than there is; empty: it was not */
	uint64_t reconnections;   /* times that all channels were replaced after a loss */
	char trace_error[128];    /* why the trace ended early; empty: it did not */
	uint64_t engine_bytes;    /* memory of the engine beyond guest RAM */
};

/* One way to go on, as it was predicted while the VM still ran at the source. */
struct jaunt_prediction {
	const char *way;              /* "finish", "rounds+finish", "switch", "rounds+switch" */
	bool allowed;                 /* by the mode */
	bool in_limits;               /* and it keeps the limits */
	unsigned rounds;              /* how many more */
	double downtime_ms, stall_ms; /* from then on; stall includes downtime */
	double total_ms;              /* since the command */
	double cost_ms;
};
#define JAUNT_WAYS 4

/* What was decided, and from what. */
struct jaunt_decision {
	double at_ms; /* since the command */
	unsigned round;
	bool round_ended;
	uint64_t left_bytes;                        /* of the round */
	uint64_t dirty_bytes;                       /* beside those, known to be dirty */
	double dirty_bytes_per_s, dirty_confidence; /* estimated, like the next two */
	double working_set_bytes;
	double bandwidth_bytes_per_s;
	struct jaunt_prediction ways[JAUNT_WAYS];
	const char *action; /* "continue", "switch", "finish", "abort" */
	const char *way;    /* the chosen one; "": none keeps the limits */
	unsigned throttle;  /* percent of the time that vCPUs are held */
	char reason[240];
};
#define JAUNT_DECISIONS_MAX 64

/* --- One side of one migration -----------------------------------------------------------------
 */

int jaunt_source_open(struct jaunt_migration **out, const struct jaunt_vm_ops *ops, void *vm,
		      const struct jaunt_options *options, struct jaunt_error *error);

/* Listens when it returns. */
int jaunt_target_open(struct jaunt_migration **out, const struct jaunt_vm_factory *factory,
		      void *context, const struct jaunt_options *options,
		      struct jaunt_error *error);

/* Goes on with a migration into a VM that lives on after the process of its target died: once it
 * was loaded, with pages missing or not. Listens where that process listened, when it returns; the
 * source comes back by itself. Of the options only trace_path, phase_changed and context count, and
 * peer_timeout_ms if it is not 0. Reasons beside those of the driver: "nothing-to-resume",
 * "name-taken" (that process lives), "bad-ledger" (what was kept makes no sense to this version).
 */
int jaunt_target_take_up(struct jaunt_migration **out, const struct jaunt_vm_factory *factory,
			 void *context, const struct jaunt_options *options,
			 struct jaunt_error *error);

/* The port that a target listens on (of use when port 0 was asked for). */
unsigned jaunt_target_port(const struct jaunt_migration *migration);

/* Blocks until the outcome is final and returns an enum jaunt_outcome. A lost link after COMMIT is
 * not final: the call goes on, and status says `blocked`. Call once. */
int jaunt_migration_run(struct jaunt_migration *migration, struct jaunt_error *error);

/* The target's VM, once created; NULL before, and after a failure. */
void *jaunt_migration_vm(struct jaunt_migration *migration);

/* These may be called from any thread while it runs. */
void jaunt_migration_status(struct jaunt_migration *migration, struct jaunt_status *status);
/* Source: the decisions so far, from the from-th on: the first, the one at the end of each round,
 * and those that changed something; of more than JAUNT_DECISIONS_MAX the last replaces its
 * predecessor. Returns how many were written to `out`. */
size_t jaunt_migration_decisions(struct jaunt_migration *migration, size_t from,
				 struct jaunt_decision *out, size_t room);
/* Why the target refused to make the VM, item by item; the strings stay until the migration is
 * closed. Returns how many were written to `out`. */
size_t jaunt_migration_differences(struct jaunt_migration *migration, struct jaunt_difference *out,
				   size_t room);
/* Until COMMIT; afterwards -EBUSY, with the reason in `error`. */
int jaunt_migration_cancel(struct jaunt_migration *migration, struct jaunt_error *error);
/* Gives the migration up whatever its state, losing what only it holds. */
int jaunt_migration_abandon(struct jaunt_migration *migration, struct jaunt_error *error);
/* The operator warrants that the other host does not run the VM and never will: run it here. */
int jaunt_migration_resume_fenced(struct jaunt_migration *migration, struct jaunt_error *error);
/* Turns the pushing of pages on or off, on either side, after COMMIT too. */
int jaunt_migration_set_push(struct jaunt_migration *migration, bool push);
/* The driver's report, from any thread while the migration is open, after it happened: the guest
 * gave pages back, they are no longer in the memory file. At a target it means nothing. */
void jaunt_migration_discarded(struct jaunt_migration *migration, size_t region,
			       uint64_t first_page, uint64_t count);
/* The same: the VMM itself wrote to guest memory, past the tracker. At the latest before pause()
 * returns: what is told later may be taken for what was sent. */
void jaunt_migration_wrote(struct jaunt_migration *migration, size_t region, uint64_t first_page,
			   uint64_t count);
/* Source, in rounds: switches as soon as what is under way has arrived. -EBUSY: there is nothing to
 * switch, with the reason in `error`. */
int jaunt_migration_switch(struct jaunt_migration *migration, struct jaunt_error *error);
/* Source: the limit of the streams, 0: none; after COMMIT too. -EINVAL: so little that the other
 * side could not be told from a silent one. */
int jaunt_migration_set_bandwidth(struct jaunt_migration *migration, uint64_t bytes_per_s,
				  struct jaunt_error *error);
/* Source: 1 ms to an hour; holds from the next decision on. */
int jaunt_migration_set_downtime_limit(struct jaunt_migration *migration, uint32_t limit_ms);
/* Target, with note_demanded: was this page of the region fetched because the guest touched it? */
bool jaunt_migration_was_demanded(const struct jaunt_migration *migration, size_t region,
				  uint64_t page);

/* Frees it all, its userfaultfds with it. A target whose VM was committed with pages missing
 * (outcome JAUNT_INCOMPLETE) must be closed only after its VM is destroyed: a guest without a
 * handler reads zeros where a page is missing. */
void jaunt_migration_close(struct jaunt_migration *migration);

/* Names as they stand in JSON and in messages. */
const char *jaunt_phase_name(enum jaunt_phase phase);
const char *jaunt_place_name(enum jaunt_place place);
const char *jaunt_version(void);

/* --- Can this host do it? -----------------------------------------------------------------------
 */

/* One finding of the check of this host. */
struct jaunt_check {
	const char *name; /* "userfaultfd", "io_uring", "memory", … */
	bool ok;
	bool required;
	char found[256];
	char advice[512]; /* empty if ok */
};

/* Fills up to `room` findings about this host's kernel and limits; returns how many. */
size_t jaunt_doctor(struct jaunt_check *checks, size_t room);

#ifdef __cplusplus
}
#endif
#endif
