/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger: what a target must know of a migration to go on with it after the death of its
 * process, in a memory file that whoever keeps the VM alive keeps open. In it lie the page map and
 * what install.h notes of the memory file, as they are used, so nothing is written down twice; and
 * a header that says whose they are and how far the migration has come.
 *
 * It is for a VM that outlives the process, of pages of 4 KiB. One process at a time has it: it is
 * locked, and the kernel takes the lock away when every thread of its owner is gone.
 */
#ifndef ENGINE_TARGET_LEDGER_H
#define ENGINE_TARGET_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/guestmem.h"
#include "proto/frame.h"

#define LEDGER_MAGIC   UINT64_C(0x52454744454c4a51) /* "QJLEDGER" */
#define LEDGER_VERSION 2u

/* How far the migration has come; only ever grows. */
enum ledger_state {
	LEDGER_PREPARING, /* before LOADED is sent: the VM is the source's, nothing to go on with */
	LEDGER_LOADED,    /* in doubt: COMMIT or ABORT are to come */
	LEDGER_COMMITTED, /* COMMIT was heard; whether a vCPU has run is not known */
	LEDGER_RAN,       /* a vCPU has run here */
};

struct ledger_region {
	char name[64];
	uint64_t guest_address, pages, page_bytes;
};

/* Integers are the host's own. All of it but the atomics is written before anybody keeps it. */
struct ledger_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes; /* sizeof: another build may see it otherwise */
	uint64_t region_count;
	struct ledger_region regions[JAUNT_MAX_REGIONS];
	uint8_t session[SESSION_ID_BYTES];
	uint8_t secret[SESSION_SECRET_BYTES];
	uint32_t streams, shards;
	uint32_t verify, insecure, source_rejoins, peer_timeout_ms;
	uint32_t port;  /* that it listened on */
	char peer[508]; /* the address, as it was given */
	char vm[64], mode[16];

	/* Each stored (release) by the thread that works through the phases, what belongs to a
	 * state before the state. */
	_Atomic uint32_t state; /* enum ledger_state */
	_Atomic uint32_t epoch; /* of the last attachment */
	_Atomic uint32_t complete_first, push;
	_Atomic uint64_t copied; /* pages present when the epoch began */
	_Atomic uint64_t last_instruction_ns, first_entry_ns, commit_to_entry_ns;
	/* By any thread: a page could not be made visible (install.h), and why. 0: none. */
	_Atomic int32_t broken_errno;
};

struct ledger {
	int fd, lock_fd; /* -1: there is none */
	/* Whoever keeps the file can write to it, too: but for the atomics, of which every value
	 * has a meaning or is looked at anew, what was found counts as it was checked. */
	struct ledger_header *header;
	struct ledger_header found;
	uint64_t bytes, pages[JAUNT_MAX_REGIONS];
	size_t region_count;
	/* A bit a page, as in pagemap.h. */
	_Atomic uint64_t *claimed[JAUNT_MAX_REGIONS], *present[JAUNT_MAX_REGIONS];
	/* As in install.h: a bit a chunk, and a bit a page. */
	_Atomic uint64_t *in_file[JAUNT_MAX_REGIONS], *written[JAUNT_MAX_REGIONS];
};
#define LEDGER_NONE ((struct ledger){.fd = -1, .lock_fd = -1})

/* Whether one can be kept of such memory. */
bool ledger_fits(const struct guestmem *memory);

/* A new one for such memory, locked; the caller fills in what else is in the header. -errno; with
 * -ENOMEM there is no room for it ("no-memory", "cgroup-memory"), and `error` is set. `root` is
 * where to look for how much room there is (room.h); NULL: this host. */
int ledger_create(struct ledger *ledger, const struct guestmem *memory, const char *root,
		  struct jaunt_error *error);
/* One that was kept (`fd` is taken over, on an error, too): checked, locked and mapped. Reasons:
 * "name-taken" (a living process has it), "bad-ledger" (it makes no sense, or not to this version).
 */
int ledger_open(struct ledger *ledger, int fd, struct jaunt_error *error);
void ledger_close(struct ledger *ledger);

/* What is wrong with a header, in a file of so many bytes; NULL: nothing. */
const char *ledger_fault(const struct ledger_header *header, uint64_t file_bytes);
/* Whether it is about that memory. */
bool ledger_matches(const struct ledger *ledger, const struct guestmem *memory);

/* Pages that are not present. */
uint64_t ledger_missing(const struct ledger *ledger);

static inline bool ledger_is_open(const struct ledger *ledger)
{
	return ledger->header;
}

#endif
