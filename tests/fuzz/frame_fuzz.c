/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes frame_decode(), frame_in_region() and attach_decode().
 *
 * The first byte of an input is the mode: odd makes magic, version and checksum good first, since
 * no fuzzer finds a checksum, and what is behind it is what matters.
 */
#include <string.h>

#include <xxhash.h>

#include "proto/frame.h"
#include "tests/fuzz/fuzz.h"

static void make_good(uint8_t header[FRAME_BYTES])
{
	const uint8_t front[] = {FRAME_MAGIC & 0xff, FRAME_MAGIC >> 8, FRAME_VERSION};

	memcpy(header, front, sizeof(front));
	uint32_t checksum = (uint32_t)XXH3_64bits(header, FRAME_BYTES - 4);
	for (unsigned i = 0; i < 4; i++)
		header[FRAME_BYTES - 4 + i] = (uint8_t)(checksum >> 8 * i);
}

static void check_region(const struct frame *frame, uint64_t pages, uint64_t page_bytes)
{
	if (!frame_in_region(frame, pages, page_bytes))
		return;
	FUZZ_CHECK(frame->first_page <= pages);
	FUZZ_CHECK(frame->page_count <= pages - frame->first_page);
	if (frame->type == FRAME_DATA)
		FUZZ_CHECK(frame->payload_bytes == (__uint128_t)frame->page_count * page_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	uint8_t header[FRAME_BYTES], again[FRAME_BYTES], payload[ATTACH_BYTES];
	struct frame frame;
	struct attach attach;

	if (bytes < 1 + FRAME_BYTES)
		return 0;
	memcpy(header, data + 1, FRAME_BYTES);
	if (data[0] & 1)
		make_good(header);
	enum frame_fault fault = frame_decode(&frame, header);
	FUZZ_CHECK(frame_fault_text(fault) && *frame_fault_text(fault));
	if (fault)
		return 0;

	/* There is one way to write a frame. */
	frame_encode(&frame, again);
	FUZZ_CHECK(!memcmp(header, again, FRAME_BYTES));
	FUZZ_CHECK(strcmp(frame_type_name(frame.type), "UNKNOWN") != 0);
	FUZZ_CHECK(frame.payload_bytes <= FRAME_PAYLOAD_MAX);
	FUZZ_CHECK(!(frame.flags & ~FRAME_FLAGS_KNOWN));
	FUZZ_CHECK(frame.first_page + frame.page_count >= frame.first_page);
	check_region(&frame, 0, 4096);
	check_region(&frame, UINT64_C(1) << 28, 4096);
	check_region(&frame, 512, 2 << 20);
	check_region(&frame, UINT64_MAX, UINT64_C(1) << 63);

	if (frame.type != FRAME_ATTACH || bytes < 1 + FRAME_BYTES + ATTACH_BYTES)
		return 0;
	const uint8_t *body = data + 1 + FRAME_BYTES;
	if (attach_decode(&attach, body)) {
		FUZZ_CHECK(attach.role < ATTACH_ROLES);
		attach_encode(&attach, payload);
		FUZZ_CHECK(!memcmp(payload, body, ATTACH_BYTES));
	}
	return 0;
}
