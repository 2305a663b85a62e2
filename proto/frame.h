/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the page channels: a fixed 32-byte little-endian header, then payload_bytes of payload.
 *
 *   0  u16 magic     "JF"             12  u32 page_count
 *   2  u8  version   1                16  u64 first_page
 *   3  u8  type                       24  u32 payload_bytes
 *   4  u16 flags                      28  u32 checksum of bytes 0 to 27
 *   6  u16 region                                (low half of XXH3-64)
 *   8  u32 epoch
 *
 * A page is the region's page size. Decoding never trusts a field: frame_decode() checks what the
 * header alone can tell, frame_in_region() what the region can.
 */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_BYTES        32
#define FRAME_MAGIC        0x464a /* "JF" */
#define FRAME_VERSION      1
#define FRAME_PAYLOAD_MAX  (4u << 20)
#define FRAME_DIGEST_PAGES 512u /* digests in one answer, at most */
/* Bytes of memory that one question may be about whether they are zero: its answer is read. */
#define FRAME_DIGEST_ZERO_BYTES (UINT64_C(1) << 30)
#define FRAME_TEXT_MAX          1024u /* bytes of ERROR's text */

enum frame_type {
	FRAME_ATTACH = 1, /* first on every connection, and its echo; payload: struct attach */
	FRAME_FETCH,      /* target → source, urgent: send these pages now; no payload */
	FRAME_GRANT,      /* target → source, stream: stream this range; no payload */
	FRAME_DATA,       /* source → target: a run of pages, payload page_count pages */
	FRAME_ZERO,       /* source → target: a run of zero pages, no payload */
	FRAME_GRANT_END,  /* source → target: all of that grant (its range, repeated) was sent */
	FRAME_DIGEST, /* target → source: no payload, asks for digests of up to FRAME_DIGEST_PAGES
		       * pages, or with FRAME_FLAG_ALL_ZERO whether the range, of up to
		       * FRAME_DIGEST_ZERO_BYTES, is zero; source →
		       * target: the digests, 8 bytes a page, or none, and the flag if it is zero */
	FRAME_ROUND,  /* source → target: end of a pre-copy round on this stream */
	FRAME_ROUND_ACK, /* target → source */
	FRAME_TOLD,  /* source → target: holes of [0, first_page) of the region were all told */
	FRAME_ERROR, /* either way: payload is text for a person, the channel ends */
	FRAME_TYPES,
};

enum frame_flag {
	FRAME_FLAG_HOLE = 1 << 0,     /* ZERO: a hole in the source's file, not a page of zeros */
	FRAME_FLAG_TOLD = 1 << 1,     /* GRANT: the target has been told all holes in this range */
	FRAME_FLAG_ALL_ZERO = 1 << 2, /* DIGEST: every page of the range is zero */
	/* GRANT: the target may READ this range itself: say which pages are zero, and no more. */
	FRAME_FLAG_DESCRIBE = 1 << 3,
	FRAME_FLAGS_KNOWN = (1 << 4) - 1,
};

struct frame {
	uint8_t type;
	uint16_t flags;
	uint16_t region;
	uint32_t epoch;
	uint32_t page_count;
	uint64_t first_page;
	uint32_t payload_bytes;
};

enum frame_fault {
	FRAME_OK = 0,
	FRAME_BAD_MAGIC, /* the peer speaks something else */
	FRAME_BAD_VERSION,
	FRAME_BAD_CHECKSUM,
	FRAME_BAD_TYPE,
	FRAME_BAD_FLAGS,
	FRAME_BAD_LENGTH, /* payload too long, or impossible for the type */
	FRAME_BAD_COUNT,  /* no pages where there must be some, or first + count overflows */
};

void frame_encode(const struct frame *frame, uint8_t bytes[FRAME_BYTES]);
enum frame_fault frame_decode(struct frame *frame, const uint8_t bytes[FRAME_BYTES]);
/* A sentence about a fault, for a person. */
const char *frame_fault_text(enum frame_fault fault);
const char *frame_type_name(uint8_t type);

/* Whether the range lies in a region of so many pages of that size, and DATA's payload is exactly
 * its pages. */
bool frame_in_region(const struct frame *frame, uint64_t region_pages, uint64_t page_bytes);

/* Payload of ATTACH. */
enum attach_role { ATTACH_CONTROL, ATTACH_URGENT, ATTACH_STREAM, ATTACH_VERIFY, ATTACH_ROLES };

#define SESSION_ID_BYTES     16
#define SESSION_SECRET_BYTES 32
#define ATTACH_BYTES         64 /* of payload; the rest is reserved and zero */

struct attach {
	uint8_t session[SESSION_ID_BYTES];
	/* Zeros on control, where the session begins; a part of it there, where it goes on. */
	uint8_t secret[SESSION_SECRET_BYTES];
	uint16_t role;
	uint16_t index;
	uint32_t epoch; /* of the attachment; 0: the session's first */
};

void attach_encode(const struct attach *attach, uint8_t bytes[ATTACH_BYTES]);
/* false: role unknown or reserved bytes not zero. */
bool attach_decode(struct attach *attach, const uint8_t bytes[ATTACH_BYTES]);
/* In constant time. */
bool session_equal(const uint8_t *a, const uint8_t *b, size_t bytes);

#endif
