/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes control_unpack().
 *
 * The first byte of an input is the mode: odd puts the right length in front, even takes the bytes
 * as they are.
 */
#include <errno.h>
#include <string.h>

#include "proto/control.h"
#include "proto/frame.h"
#include "tests/fuzz/fuzz.h"

/* What the engine relies on after unpacking; said here a second time, in other words. */
static void check_promises(const Jaunt__Control *message)
{
	FUZZ_CHECK(strcmp(control_name(message), "UNKNOWN") != 0);
	if (message->message_case == JAUNT__CONTROL__MESSAGE_HELLO) {
		struct jaunt_error error = {0};
		int version = control_negotiate(message->hello, message->hello, &error);
		FUZZ_CHECK(version >= 1 || *error.text || message->hello->protocol_max > INT32_MAX);
	}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_CONFIGURE) {
		const Jaunt__Configure *configure = message->configure;
		FUZZ_CHECK(configure->session.len == SESSION_ID_BYTES);
		FUZZ_CHECK(configure->secret.len == SESSION_SECRET_BYTES);
		FUZZ_CHECK(configure->streams - 1 < 64);
		FUZZ_CHECK(configure->n_regions - 1 < JAUNT_MAX_REGIONS);
		FUZZ_CHECK(configure->n_properties <= JAUNT_MAX_PROPERTIES);
		for (size_t i = 0; i < configure->n_regions; i++) {
			const Jaunt__Region *region = configure->regions[i];
			FUZZ_CHECK(__builtin_popcountll(region->page_bytes) == 1);
			FUZZ_CHECK(region->page_bytes >= 4096);
			FUZZ_CHECK(region->bytes && region->bytes % region->page_bytes == 0);
			FUZZ_CHECK(region->guest_address + region->bytes > region->guest_address);
		}
	}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_FREEZE)
		for (size_t i = 0; i < message->freeze->n_dirty; i++) {
			const Jaunt__Run *run = message->freeze->dirty[i];
			FUZZ_CHECK(run->first_page + run->page_count > run->first_page);
		}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_FREEZE)
		for (size_t i = 0; i < message->freeze->n_unexposed; i++) {
			const Jaunt__Run *run = message->freeze->unexposed[i];
			FUZZ_CHECK(run->region < JAUNT_MAX_REGIONS);
			FUZZ_CHECK(run->first_page + run->page_count > run->first_page);
		}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_EXPOSED)
		for (size_t i = 0; i < message->exposed->n_chunks; i++) {
			const Jaunt__Chunk *chunk = message->exposed->chunks[i];
			FUZZ_CHECK(chunk->region < JAUNT_MAX_REGIONS);
			FUZZ_CHECK(chunk->first_page + chunk->page_count > chunk->first_page);
			FUZZ_CHECK(chunk->address + chunk->page_count * (2u << 20) >=
				   chunk->address);
		}
	if (message->message_case == JAUNT__CONTROL__MESSAGE_COMPLETE)
		FUZZ_CHECK(message->complete->progress && message->complete->progress->blocked);
}

/* Whether fields were skipped anywhere in it. protobuf-c keeps them, even one of the number 0
 * (which its decoder lets pass in a long-winded encoding and its encoder then writes in the short
 * one). */
static bool has_skipped(const ProtobufCMessage *message)
{
	const ProtobufCMessageDescriptor *descriptor = message->descriptor;

	if (message->n_unknown_fields)
		return true;
	for (unsigned i = 0; i < descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
		const char *base = (const char *)message;
		ProtobufCMessage *const *one = (const void *)(base + field->offset);
		uint32_t which;
		size_t count = 1;

		if (field->type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		memcpy(&which, base + field->quantifier_offset, sizeof(which));
		if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF && which != field->id)
			continue;
		if (field->label == PROTOBUF_C_LABEL_REPEATED) {
			memcpy(&count, base + field->quantifier_offset, sizeof(count));
			one = *(ProtobufCMessage * *const *)(const void *)one;
		}
		for (size_t k = 0; k < count; k++)
			if (one[k] && has_skipped(one[k]))
				return true;
	}
	return false;
}

static void fuzz(const uint8_t *data, size_t bytes)
{
	struct jaunt_error error = {0};
	Jaunt__Control *message = NULL, *again = NULL;
	size_t consumed = 0, needed = 0, count;
	uint8_t *packed;

	int rc = control_unpack(data, bytes, &message, &consumed, &needed, &error);
	if (rc == 0) {
		FUZZ_CHECK(needed > bytes && needed <= 4 + CONTROL_MESSAGE_MAX);
		return;
	}
	if (rc < 0) {
		FUZZ_CHECK(rc == -EPROTO || rc == -EMSGSIZE || rc == -ENOMEM);
		FUZZ_CHECK(error.code == -rc && *error.reason && *error.text);
		return;
	}
	FUZZ_CHECK(consumed >= 4 && consumed <= bytes);
	check_promises(message);

	/* What was understood can be said again, and is understood the same. */
	FUZZ_CHECK(control_pack(message, &packed, &count) == 0);
	rc = control_unpack(packed, count, &again, &consumed, &needed, &error);
	if (rc == 1) {
		FUZZ_CHECK(again->message_case == message->message_case);
		FUZZ_CHECK(consumed == count);
		control_free(again);
	} else {
		FUZZ_CHECK(has_skipped(&message->base));
	}
	free(packed);
	control_free(message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	if (!bytes)
		return 0;
	if (!(data[0] & 1)) {
		fuzz(data + 1, bytes - 1);
		return 0;
	}
	size_t length = bytes - 1;
	uint8_t *whole = malloc(4 + length);
	if (!whole)
		return 0;
	for (unsigned i = 0; i < 4; i++)
		whole[i] = (uint8_t)(length >> 8 * i);
	memcpy(whole + 4, data + 1, length);
	fuzz(whole, 4 + length);
	free(whole);
	return 0;
}
