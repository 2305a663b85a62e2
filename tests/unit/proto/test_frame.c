/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <stdint.h>
#include <string.h>

#include "proto/frame.h"

static enum frame_fault recode(struct frame frame, struct frame *out)
{
	uint8_t bytes[FRAME_BYTES];
	frame_encode(&frame, bytes);
	return frame_decode(out, bytes);
}

static enum frame_fault fault_of(struct frame frame)
{
	struct frame out;
	return recode(frame, &out);
}

Test(frame, every_type_comes_back_as_it_was_sent)
{
	const struct frame frames[] = {
		{.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES},
		{.type = FRAME_FETCH, .region = 3, .epoch = 7, .page_count = 1, .first_page = 99},
		{.type = FRAME_GRANT, .flags = FRAME_FLAG_TOLD, .page_count = UINT32_MAX},
		{.type = FRAME_DATA, .page_count = 32, .first_page = 1, .payload_bytes = 32 * 4096},
		{.type = FRAME_DATA, .page_count = 2, .payload_bytes = FRAME_PAYLOAD_MAX},
		{.type = FRAME_ZERO, .flags = FRAME_FLAG_HOLE, .page_count = 512},
		{.type = FRAME_GRANT_END, .page_count = 5, .first_page = UINT64_MAX - 5},
		{.type = FRAME_DIGEST, .page_count = 4},
		{.type = FRAME_DIGEST, .page_count = 4, .payload_bytes = 32},
		{.type = FRAME_DIGEST, .page_count = 1 << 20},
		{.type = FRAME_DIGEST, .page_count = 1 << 20, .flags = FRAME_FLAG_ALL_ZERO},
		{.type = FRAME_ROUND, .epoch = UINT32_MAX},
		{.type = FRAME_ROUND_ACK},
		{.type = FRAME_TOLD, .region = UINT16_MAX, .first_page = UINT64_MAX},
		{.type = FRAME_ERROR, .payload_bytes = 17},
	};
	for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
		const struct frame *in = &frames[i];
		struct frame out;
		cr_assert(eq(int, recode(*in, &out), FRAME_OK), "frame %zu", i);
		cr_expect(eq(u8, out.type, in->type));
		cr_expect(eq(u16, out.flags, in->flags));
		cr_expect(eq(u16, out.region, in->region));
		cr_expect(eq(u32, out.epoch, in->epoch));
		cr_expect(eq(u32, out.page_count, in->page_count));
		cr_expect(eq(u64, out.first_page, in->first_page));
		cr_expect(eq(u32, out.payload_bytes, in->payload_bytes));
	}
}

Test(frame, the_fields_stand_where_the_header_says_in_little_endian)
{
	const struct frame frame = {.type = FRAME_DATA,
				    .region = 0x0102,
				    .epoch = 0x03040506,
				    .page_count = 0x20,
				    .first_page = 0x1122334455667788,
				    .payload_bytes = 0x20000};
	const uint8_t expected[28] = {0x4a, 0x46, 1,    FRAME_DATA, 0,    0,    0x02,
				      0x01, 6,    5,    4,          3,    0x20, 0,
				      0,    0,    0x88, 0x77,       0x66, 0x55, 0x44,
				      0x33, 0x22, 0x11, 0x00,       0x00, 0x02, 0x00};
	uint8_t bytes[FRAME_BYTES];

	frame_encode(&frame, bytes);
	cr_expect(zero(int, memcmp(bytes, expected, sizeof(expected))));
	/* "JF" in the order of bytes would be big-endian; the magic is the number 0x464a. */
	cr_expect(eq(u16, (uint16_t)(bytes[0] | bytes[1] << 8), FRAME_MAGIC));
}

Test(frame, a_flipped_bit_anywhere_is_noticed)
{
	const struct frame frame = {
		.type = FRAME_DATA, .page_count = 1, .first_page = 5, .payload_bytes = 4096};
	uint8_t bytes[FRAME_BYTES];
	struct frame out;

	frame_encode(&frame, bytes);
	for (unsigned bit = 0; bit < FRAME_BYTES * 8; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		enum frame_fault expected = bit < 16   ? FRAME_BAD_MAGIC
					    : bit < 24 ? FRAME_BAD_VERSION
						       : FRAME_BAD_CHECKSUM;
		cr_expect(eq(int, frame_decode(&out, bytes), expected), "bit %u", bit);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	cr_expect(eq(int, frame_decode(&out, bytes), FRAME_OK));
}

Test(frame, another_protocol_is_told_apart_from_another_version)
{
	uint8_t http[FRAME_BYTES] = "HTTP/1.1 400 Bad Request\r\n";
	uint8_t newer[FRAME_BYTES] = {0x4a, 0x46, FRAME_VERSION + 1};
	struct frame out;

	cr_expect(eq(int, frame_decode(&out, http), FRAME_BAD_MAGIC));
	/* Its checksum may be anything: a later version may compute it otherwise. */
	cr_expect(eq(int, frame_decode(&out, newer), FRAME_BAD_VERSION));
}

Test(frame, unknown_types_are_refused)
{
	cr_expect(eq(int, fault_of((struct frame){.type = 0}), FRAME_BAD_TYPE));
	cr_expect(eq(int, fault_of((struct frame){.type = FRAME_TYPES}), FRAME_BAD_TYPE));
	cr_expect(eq(int, fault_of((struct frame){.type = 255}), FRAME_BAD_TYPE));
}

Test(frame, flags_of_other_types_and_unknown_flags_are_refused)
{
	struct frame zero = {.type = FRAME_ZERO, .page_count = 1};
	struct frame data = {.type = FRAME_DATA, .page_count = 1, .payload_bytes = 4096};

	zero.flags = FRAME_FLAG_TOLD;
	cr_expect(eq(int, fault_of(zero), FRAME_BAD_FLAGS));
	zero.flags = FRAME_FLAGS_KNOWN + 1;
	cr_expect(eq(int, fault_of(zero), FRAME_BAD_FLAGS));
	data.flags = FRAME_FLAG_HOLE;
	cr_expect(eq(int, fault_of(data), FRAME_BAD_FLAGS));
	data.flags = FRAME_FLAG_DESCRIBE;
	cr_expect(eq(int, fault_of(data), FRAME_BAD_FLAGS));
}

Test(frame, a_grant_may_ask_for_a_description_of_what_is_told)
{
	struct frame grant = {.type = FRAME_GRANT, .page_count = 1};

	grant.flags = FRAME_FLAG_DESCRIBE;
	cr_expect(eq(int, fault_of(grant), FRAME_OK));
	grant.flags = FRAME_FLAG_DESCRIBE | FRAME_FLAG_TOLD;
	cr_expect(eq(int, fault_of(grant), FRAME_OK));
	grant.flags = FRAME_FLAG_DESCRIBE | FRAME_FLAG_HOLE;
	cr_expect(eq(int, fault_of(grant), FRAME_BAD_FLAGS));
}

Test(frame, a_range_without_pages_or_beyond_all_pages_is_refused)
{
	const uint8_t types[] = {FRAME_FETCH, FRAME_GRANT,     FRAME_DATA,
				 FRAME_ZERO,  FRAME_GRANT_END, FRAME_DIGEST};
	for (size_t i = 0; i < sizeof(types); i++) {
		struct frame frame = {.type = types[i]};
		cr_expect(eq(int, fault_of(frame), FRAME_BAD_COUNT), "%s without pages",
			  frame_type_name(types[i]));
		frame.page_count = 2;
		frame.first_page = UINT64_MAX - 1;
		cr_expect(eq(int, fault_of(frame), FRAME_BAD_COUNT), "%s that overflows",
			  frame_type_name(types[i]));
	}
}

Test(frame, a_payload_that_the_type_cannot_have_is_refused)
{
	const struct frame frames[] = {
		{.type = FRAME_ATTACH},
		{.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES + 1},
		{.type = FRAME_FETCH, .page_count = 1, .payload_bytes = 1},
		{.type = FRAME_GRANT, .page_count = 1, .payload_bytes = 4096},
		{.type = FRAME_DATA, .page_count = 1},
		{.type = FRAME_DATA, .page_count = 1, .payload_bytes = 4095},
		{.type = FRAME_DATA, .page_count = 1, .payload_bytes = 2048},
		{.type = FRAME_DATA, .page_count = 1, .payload_bytes = 3 * 4096},
		{.type = FRAME_DATA, .page_count = 2, .payload_bytes = 8193},
		{.type = FRAME_DATA, .page_count = 4, .payload_bytes = 2 * FRAME_PAYLOAD_MAX},
		{.type = FRAME_DATA, .page_count = UINT32_MAX, .payload_bytes = UINT32_MAX},
		{.type = FRAME_ZERO, .page_count = 1, .payload_bytes = 8},
		{.type = FRAME_GRANT_END, .page_count = 1, .payload_bytes = 8},
		{.type = FRAME_DIGEST, .page_count = 2, .payload_bytes = 8},
		{.type = FRAME_DIGEST,
		 .page_count = FRAME_DIGEST_PAGES + 1,
		 .payload_bytes = 8 * (FRAME_DIGEST_PAGES + 1)},
		{.type = FRAME_DIGEST, .page_count = 1u << 29 | 1, .payload_bytes = 8},
		{.type = FRAME_DIGEST,
		 .flags = FRAME_FLAG_ALL_ZERO,
		 .page_count = 2,
		 .payload_bytes = 16},
		{.type = FRAME_ROUND, .payload_bytes = 1},
		{.type = FRAME_ROUND_ACK, .payload_bytes = 1},
		{.type = FRAME_TOLD, .payload_bytes = 1},
		{.type = FRAME_ERROR, .payload_bytes = FRAME_TEXT_MAX + 1},
	};
	for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++)
		cr_expect(eq(int, fault_of(frames[i]), FRAME_BAD_LENGTH), "frame %zu", i);
}

Test(frame, a_range_is_in_a_region_only_if_all_of_it_is)
{
	struct frame frame = {.type = FRAME_FETCH, .page_count = 4, .first_page = 12};

	cr_expect(frame_in_region(&frame, 16, 4096));
	cr_expect(not(frame_in_region(&frame, 15, 4096)));
	frame.first_page = 17;
	cr_expect(not(frame_in_region(&frame, 16, 4096)));
	frame.first_page = UINT64_MAX - 1;
	cr_expect(not(frame_in_region(&frame, 16, 4096)));
	cr_expect(not(frame_in_region(&frame, 0, 4096)));

	struct frame told = {.type = FRAME_TOLD, .first_page = 16};
	cr_expect(frame_in_region(&told, 16, 4096), "told up to the end");
	told.first_page = 17;
	cr_expect(not(frame_in_region(&told, 16, 4096)));
}

Test(frame, data_is_in_a_region_only_with_the_pages_size_of_that_region)
{
	struct frame frame = {.type = FRAME_DATA, .page_count = 2, .payload_bytes = 8192};

	cr_expect(frame_in_region(&frame, 2, 4096));
	cr_expect(not(frame_in_region(&frame, 2, 8192)));
	cr_expect(not(frame_in_region(&frame, 2, 2 << 20)));
	/* 2 * (2^63 + 4096) is 8192 in 64 bits. */
	cr_expect(not(frame_in_region(&frame, 2, (UINT64_C(1) << 63) + 4096)));
	frame.page_count = 0;
	frame.payload_bytes = 0;
	cr_expect(not(frame_in_region(&frame, 2, 4096)), "and never without pages");
}

Test(frame, every_fault_and_every_type_has_a_name_of_its_own)
{
	for (int a = FRAME_OK; a <= FRAME_BAD_COUNT; a++)
		for (int b = FRAME_OK; b < a; b++)
			cr_expect_str_neq(frame_fault_text((enum frame_fault)a),
					  frame_fault_text((enum frame_fault)b));
	for (uint8_t a = FRAME_ATTACH; a < FRAME_TYPES; a++)
		for (uint8_t b = 0; b < a; b++)
			cr_expect_str_neq(frame_type_name(a), frame_type_name(b));
	cr_expect_str_eq(frame_type_name(FRAME_TYPES), "UNKNOWN");
}

Test(attach, comes_back_as_it_was_sent)
{
	struct attach in = {.role = ATTACH_STREAM, .index = 63, .epoch = 0x01020304}, out;
	uint8_t bytes[ATTACH_BYTES];

	for (unsigned i = 0; i < SESSION_ID_BYTES; i++)
		in.session[i] = (uint8_t)(i + 1);
	for (unsigned i = 0; i < SESSION_SECRET_BYTES; i++)
		in.secret[i] = (uint8_t)(0x80 + i);
	memset(bytes, 0xff, sizeof(bytes));
	attach_encode(&in, bytes);
	cr_assert(attach_decode(&out, bytes));
	cr_expect(zero(int, memcmp(out.session, in.session, SESSION_ID_BYTES)));
	cr_expect(zero(int, memcmp(out.secret, in.secret, SESSION_SECRET_BYTES)));
	cr_expect(eq(u16, out.role, in.role));
	cr_expect(eq(u16, out.index, in.index));
}

Test(attach, an_unknown_role_or_anything_in_the_reserved_bytes_is_refused)
{
	struct attach attach = {.role = ATTACH_ROLES}, out;
	uint8_t bytes[ATTACH_BYTES];

	attach_encode(&attach, bytes);
	cr_expect(not(attach_decode(&out, bytes)));
	attach.role = ATTACH_VERIFY;
	attach_encode(&attach, bytes);
	cr_expect(attach_decode(&out, bytes));
	for (unsigned i = 56; i < ATTACH_BYTES; i++) {
		bytes[i] = 1;
		cr_expect(not(attach_decode(&out, bytes)), "byte %u", i);
		bytes[i] = 0;
	}
}

Test(session, is_equal_only_if_every_byte_is)
{
	uint8_t a[SESSION_SECRET_BYTES], b[SESSION_SECRET_BYTES];

	memset(a, 0x5a, sizeof(a));
	memcpy(b, a, sizeof(b));
	cr_expect(session_equal(a, b, sizeof(a)));
	for (unsigned i = 0; i < sizeof(b); i++) {
		b[i] ^= 0x01;
		cr_expect(not(session_equal(a, b, sizeof(a))), "byte %u", i);
		b[i] ^= 0x01;
	}
}
