/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the page channels.
 *
 * Theory of operation
 *
 * A header is decoded in the order in which a stranger would fail: magic (not ours at all), version
 * (ours, but of another age), checksum (ours, but damaged), and only then its fields. So a person
 * who points the command at a web server reads "speaks something else" and not "bad length", and a
 * later version may lay out everything behind the version byte anew.
 *
 * What each type may carry is one row of the table `rules`: the flags it may have, whether it must
 * name pages, and what its payload may be. A type that is added adds a row. Everything that a
 * header can say about itself is checked here; what needs the region (is the range inside it, is
 * DATA as long as its pages) in frame_in_region(). Behind both, no field of a frame can make the
 * reader step outside a buffer or a region.
 *
 * The checksum covers the header alone. It is against damage and lost synchronisation, not against
 * an enemy: that is what the channel's encryption is for.
 */
#include "proto/frame.h"

#include <endian.h>
#include <string.h>

#include <xxhash.h>

/* Where the fields stand. */
enum {
	AT_MAGIC = 0,
	AT_VERSION = 2,
	AT_TYPE = 3,
	AT_FLAGS = 4,
	AT_REGION = 6,
	AT_EPOCH = 8,
	AT_PAGE_COUNT = 12,
	AT_FIRST_PAGE = 16,
	AT_PAYLOAD_BYTES = 24,
	AT_CHECKSUM = 28,
};

enum {
	ATTACH_AT_SESSION = 0,
	ATTACH_AT_SECRET = ATTACH_AT_SESSION + SESSION_ID_BYTES,
	ATTACH_AT_ROLE = ATTACH_AT_SECRET + SESSION_SECRET_BYTES,
	ATTACH_AT_INDEX = ATTACH_AT_ROLE + 2,
	ATTACH_AT_EPOCH = ATTACH_AT_INDEX + 2,
	ATTACH_AT_RESERVED = ATTACH_AT_EPOCH + 4,
};

#define PAGE_BYTES_MIN 4096u

static void put16(uint8_t *at, uint16_t value)
{
	value = htole16(value);
	memcpy(at, &value, sizeof(value));
}

static void put32(uint8_t *at, uint32_t value)
{
	value = htole32(value);
	memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
	value = htole64(value);
	memcpy(at, &value, sizeof(value));
}

static uint16_t get16(const uint8_t *at)
{
	uint16_t value;
	memcpy(&value, at, sizeof(value));
	return le16toh(value);
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t value;
	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}

static uint64_t get64(const uint8_t *at)
{
	uint64_t value;
	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}

/* --- What each type may carry ------------------------------------------------------------- */

enum payload_rule {
	PAYLOAD_NONE,
	PAYLOAD_ATTACH,  /* exactly ATTACH_BYTES */
	PAYLOAD_PAGES,   /* page_count pages of one size */
	PAYLOAD_DIGESTS, /* nothing (a question, or about zeros), or 8 bytes a page */
	PAYLOAD_TEXT,    /* up to FRAME_TEXT_MAX */
};

struct rule {
	const char *name;
	uint16_t flags; /* that this type may have */
	bool pages;     /* must name at least one */
	enum payload_rule payload;
};

static const struct rule rules[FRAME_TYPES] = {
	[FRAME_ATTACH] = {"ATTACH", 0, false, PAYLOAD_ATTACH},
	[FRAME_FETCH] = {"FETCH", 0, true, PAYLOAD_NONE},
	[FRAME_GRANT] = {"GRANT", FRAME_FLAG_TOLD | FRAME_FLAG_DESCRIBE, true, PAYLOAD_NONE},
	[FRAME_DATA] = {"DATA", 0, true, PAYLOAD_PAGES},
	[FRAME_ZERO] = {"ZERO", FRAME_FLAG_HOLE, true, PAYLOAD_NONE},
	[FRAME_GRANT_END] = {"GRANT-END", 0, true, PAYLOAD_NONE},
	[FRAME_DIGEST] = {"DIGEST", FRAME_FLAG_ALL_ZERO, true, PAYLOAD_DIGESTS},
	[FRAME_ROUND] = {"ROUND", 0, false, PAYLOAD_NONE},
	[FRAME_ROUND_ACK] = {"ROUND-ACK", 0, false, PAYLOAD_NONE},
	[FRAME_TOLD] = {"TOLD", 0, false, PAYLOAD_NONE},
	[FRAME_ERROR] = {"ERROR", 0, false, PAYLOAD_TEXT},
};

static bool payload_possible(const struct frame *frame, enum payload_rule rule)
{
	switch (rule) {
	case PAYLOAD_NONE:
		return frame->payload_bytes == 0;
	case PAYLOAD_ATTACH:
		return frame->payload_bytes == ATTACH_BYTES;
	case PAYLOAD_PAGES: {
		/* The page size is the region's affair; but some size it must be. */
		if (frame->payload_bytes % frame->page_count)
			return false;
		uint32_t page = frame->payload_bytes / frame->page_count;
		return page >= PAGE_BYTES_MIN && !(page & (page - 1));
	}
	case PAYLOAD_DIGESTS:
		if (!frame->payload_bytes)
			return true;
		return !(frame->flags & FRAME_FLAG_ALL_ZERO) &&
		       frame->page_count <= FRAME_DIGEST_PAGES &&
		       frame->payload_bytes == 8 * frame->page_count;
	case PAYLOAD_TEXT:
		return frame->payload_bytes <= FRAME_TEXT_MAX;
	}
	return false;
}

/* --- Headers ------------------------------------------------------------------------------ */

static uint32_t header_checksum(const uint8_t *bytes)
{
	return (uint32_t)XXH3_64bits(bytes, AT_CHECKSUM);
}

void frame_encode(const struct frame *frame, uint8_t bytes[FRAME_BYTES])
{
	put16(bytes + AT_MAGIC, FRAME_MAGIC);
	bytes[AT_VERSION] = FRAME_VERSION;
	bytes[AT_TYPE] = frame->type;
	put16(bytes + AT_FLAGS, frame->flags);
	put16(bytes + AT_REGION, frame->region);
	put32(bytes + AT_EPOCH, frame->epoch);
	put32(bytes + AT_PAGE_COUNT, frame->page_count);
	put64(bytes + AT_FIRST_PAGE, frame->first_page);
	put32(bytes + AT_PAYLOAD_BYTES, frame->payload_bytes);
	put32(bytes + AT_CHECKSUM, header_checksum(bytes));
}

enum frame_fault frame_decode(struct frame *frame, const uint8_t bytes[FRAME_BYTES])
{
	if (get16(bytes + AT_MAGIC) != FRAME_MAGIC)
		return FRAME_BAD_MAGIC;
	if (bytes[AT_VERSION] != FRAME_VERSION)
		return FRAME_BAD_VERSION;
	if (get32(bytes + AT_CHECKSUM) != header_checksum(bytes))
		return FRAME_BAD_CHECKSUM;

	frame->type = bytes[AT_TYPE];
	frame->flags = get16(bytes + AT_FLAGS);
	frame->region = get16(bytes + AT_REGION);
	frame->epoch = get32(bytes + AT_EPOCH);
	frame->page_count = get32(bytes + AT_PAGE_COUNT);
	frame->first_page = get64(bytes + AT_FIRST_PAGE);
	frame->payload_bytes = get32(bytes + AT_PAYLOAD_BYTES);

	if (frame->type >= FRAME_TYPES || !rules[frame->type].name)
		return FRAME_BAD_TYPE;
	const struct rule *rule = &rules[frame->type];
	if (frame->flags & ~rule->flags)
		return FRAME_BAD_FLAGS;
	if (rule->pages && !frame->page_count)
		return FRAME_BAD_COUNT;
	if (frame->first_page > UINT64_MAX - frame->page_count)
		return FRAME_BAD_COUNT;
	if (frame->payload_bytes > FRAME_PAYLOAD_MAX || !payload_possible(frame, rule->payload))
		return FRAME_BAD_LENGTH;
	return FRAME_OK;
}

bool frame_in_region(const struct frame *frame, uint64_t region_pages, uint64_t page_bytes)
{
	if (frame->first_page > region_pages ||
	    frame->page_count > region_pages - frame->first_page)
		return false;
	/* Divided, not multiplied: page_bytes times a hostile count may overflow. */
	if (frame->type == FRAME_DATA)
		return page_bytes && frame->page_count &&
		       frame->payload_bytes % frame->page_count == 0 &&
		       frame->payload_bytes / frame->page_count == page_bytes;
	return true;
}

const char *frame_fault_text(enum frame_fault fault)
{
	switch (fault) {
	case FRAME_OK:
		return "the frame is good";
	case FRAME_BAD_MAGIC:
		return "the peer speaks something else than jaunt's protocol";
	case FRAME_BAD_VERSION:
		return "the peer speaks another version of the page protocol";
	case FRAME_BAD_CHECKSUM:
		return "the checksum of a frame's header does not match: bytes were damaged or "
		       "lost on "
		       "the way";
	case FRAME_BAD_TYPE:
		return "the peer sent a frame of an unknown type";
	case FRAME_BAD_FLAGS:
		return "the peer sent a frame with flags that its type cannot have";
	case FRAME_BAD_LENGTH:
		return "the peer sent a frame with a payload that its type cannot have";
	case FRAME_BAD_COUNT:
		return "the peer sent a frame with an impossible range of pages";
	}
	return "an unknown fault of a frame";
}

const char *frame_type_name(uint8_t type)
{
	return type < FRAME_TYPES && rules[type].name ? rules[type].name : "UNKNOWN";
}

/* --- ATTACH ------------------------------------------------------------------------------- */

void attach_encode(const struct attach *attach, uint8_t bytes[ATTACH_BYTES])
{
	memcpy(bytes + ATTACH_AT_SESSION, attach->session, SESSION_ID_BYTES);
	memcpy(bytes + ATTACH_AT_SECRET, attach->secret, SESSION_SECRET_BYTES);
	put16(bytes + ATTACH_AT_ROLE, attach->role);
	put16(bytes + ATTACH_AT_INDEX, attach->index);
	put32(bytes + ATTACH_AT_EPOCH, attach->epoch);
	memset(bytes + ATTACH_AT_RESERVED, 0, ATTACH_BYTES - ATTACH_AT_RESERVED);
}

bool attach_decode(struct attach *attach, const uint8_t bytes[ATTACH_BYTES])
{
	uint8_t reserved = 0;

	memcpy(attach->session, bytes + ATTACH_AT_SESSION, SESSION_ID_BYTES);
	memcpy(attach->secret, bytes + ATTACH_AT_SECRET, SESSION_SECRET_BYTES);
	attach->role = get16(bytes + ATTACH_AT_ROLE);
	attach->index = get16(bytes + ATTACH_AT_INDEX);
	attach->epoch = get32(bytes + ATTACH_AT_EPOCH);
	for (size_t i = ATTACH_AT_RESERVED; i < ATTACH_BYTES; i++)
		reserved |= bytes[i];
	return attach->role < ATTACH_ROLES && !reserved;
}

bool session_equal(const uint8_t *a, const uint8_t *b, size_t bytes)
{
	/* volatile: the compiler must not leave the loop early, or the time would tell how much of
	 * a guessed secret was right. */
	volatile uint8_t difference = 0;

	for (size_t i = 0; i < bytes; i++)
		difference = (uint8_t)(difference | (a[i] ^ b[i]));
	return difference == 0;
}
