/* SPDX-License-Identifier: MIT */
/*
 * What Jaunt and the agent inside QEMU say to each other: packets of fixed layout over a unix
 * socket (SOCK_SEQPACKET), one reply a request, descriptors beside them (SCM_RIGHTS), at most one a
 * packet. Both ends are of one host, so integers are the host's own.
 *
 * The agent listens at DIRECTORY/PID.agent and hears root and QEMU's own user.
 */
#ifndef VMM_QEMU_AGENT_PROTOCOL_H
#define VMM_QEMU_AGENT_PROTOCOL_H

#include <stdint.h>

#define AGENT_MAGIC       0x54414a51u
#define AGENT_PROTOCOL    1
#define AGENT_DIRECTORY   "JAUNT_AGENT" /* in the environment: the folder of the sockets */
#define AGENT_SUFFIX      ".agent"
#define AGENT_REGIONS_MAX 64

/* Descriptors that stay open for the life of QEMU lie on a shelf, each in a slot of its own: first
 * userfaultfds, then whatever files Jaunt wants to find again after its own death. */
#define AGENT_SLOTS             32
#define AGENT_USERFAULTFD_SLOTS 16
/* Of a guest that is on its way here: its ledger, what its QEMU is, its memory files. */
#define AGENT_LEDGER_SLOT AGENT_USERFAULTFD_SLOTS
#define AGENT_NOTE_SLOT   (AGENT_LEDGER_SLOT + 1)
#define AGENT_FILE_SLOT   (AGENT_NOTE_SLOT + 1) /* and those behind it */

enum agent_request {
	AGENT_HELLO = 1, /* reply: value is the agent's process */
	/* Makes a userfaultfd in `slot`, which must be empty (-EBUSY), and sends a copy. With a
	 * descriptor of /dev/userfaultfd it is made by that, for a QEMU that may not itself. */
	AGENT_MAKE,
	AGENT_KEEP, /* lays the descriptor that comes with it into `slot`, which must be empty */
	AGENT_TAKE, /* sends a copy of what lies in `slot`; -ENOENT: nothing */
	AGENT_DROP, /* closes what lies in `slot` */
	/* A struct agent_watch, with a memfd sealed against shrinking that holds a record, see
	 * below: from now on discards in these regions are noted there. Until AGENT_UNWATCH, the
	 * next AGENT_WATCH, or the end of the connection. */
	AGENT_WATCH,
	AGENT_UNWATCH,
};

struct agent_message {
	uint32_t magic;
	uint16_t protocol;
	uint16_t request;
	int32_t result; /* in a reply: 0 or a negative errno */
	uint32_t slot;
	uint64_t value;
};

/* A piece of guest RAM: where it lies in QEMU's address space, and in which file. */
struct agent_region {
	uint64_t address;
	uint64_t bytes; /* a multiple of AGENT_PAGE */
	uint64_t device, inode;
	uint64_t offset;    /* in the file */
	uint64_t first_bit; /* of the record */
};

struct agent_watch {
	struct agent_message head;
	uint64_t count;
	struct agent_region regions[AGENT_REGIONS_MAX];
};

/*
 * The record of discards: a bit a page, and a summary of a bit for each 32768 of them, so that an
 * idle record of 1 TiB is read in a kilobyte. The file: this header in a page of its own, the
 * summary from there, then the bits. Who notes sets bits first and their summary after that
 * (release); who collects takes the summary first (acquire) and then the bits.
 */
#define AGENT_PAGE         4096u
#define AGENT_SUMMARY_BITS 32768u
#define AGENT_BITS_MAX     (UINT64_C(1) << 34) /* 64 TiB */

struct agent_record {
	uint32_t magic;
	uint32_t protocol;
	uint64_t bits;
};

static inline uint64_t agent_pages(uint64_t bytes)
{
	return (bytes + AGENT_PAGE - 1) / AGENT_PAGE;
}

static inline uint64_t agent_summary_bits(uint64_t bits)
{
	return (bits + AGENT_SUMMARY_BITS - 1) / AGENT_SUMMARY_BITS;
}

static inline uint64_t agent_summary_offset(void)
{
	return AGENT_PAGE;
}

static inline uint64_t agent_bits_offset(uint64_t bits)
{
	return AGENT_PAGE + agent_pages(agent_summary_bits(bits) / 8 + 8) * AGENT_PAGE;
}

static inline uint64_t agent_record_bytes(uint64_t bits)
{
	return agent_bits_offset(bits) + agent_pages(bits / 8 + 8) * AGENT_PAGE;
}

#endif
