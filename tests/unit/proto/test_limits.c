/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/proto/messages.h"

/* --- What a message may hold -------------------------------------------------------------- */

Test(control_limits, a_message_of_an_unknown_kind_is_refused_by_its_number)
{
	const uint8_t newer[] = {3, 0, 0, 0, 0xca, 0x03, 0x00}; /* field 57, empty */
	const uint8_t nothing[] = {2, 0, 0, 0, 0x08, 0x01};     /* a sequence number alone */
	struct jaunt_error error = {0};
	Jaunt__Control *out;

	cr_expect(eq(int, unpack_bytes(newer, sizeof(newer), &out, &error), -EPROTO));
	cr_expect(strstr(error.text, "57") != NULL, "%s", error.text);
	cr_expect(eq(int, unpack_bytes(nothing, sizeof(nothing), &out, &error), -EPROTO));
	cr_expect(eq(int, unpack_bytes((const uint8_t[4]){0}, 4, &out, &error), -EPROTO));
}

Test(control_limits, an_unknown_field_of_a_known_kind_is_skipped)
{
	const uint8_t cut[] = {6, 0, 0, 0, 0xd2, 0x01, 3, 0x08, 5, 0};
	const uint8_t ping[] = {9, 0, 0, 0, 0xd2, 0x01, 6, 0x08, 5, 0xca, 0x03, 1, 'x'};
	Jaunt__Control *out;

	/* A sub-message that ends within a field is not a message. */
	cr_expect(eq(int, unpack_bytes(cut, sizeof(cut), &out, NULL), -EPROTO));
	cr_assert(eq(int, unpack_bytes(ping, sizeof(ping), &out, NULL), 1));
	cr_expect_str_eq(control_name(out), "PING");
	cr_expect(eq(u64, out->ping->sent_ns, 5));
	control_free(out);
}

Test(control_limits, the_last_of_several_kinds_in_one_message_counts)
{
	const uint8_t two[] = {8, 0, 0, 0, 0xda, 0x01, 2, 0x08, 1, 0x92, 0x01, 0};
	Jaunt__Control *out;

	cr_assert(eq(int, unpack_bytes(two, sizeof(two), &out, NULL), 1));
	cr_expect_str_eq(control_name(out), "COMMIT");
	control_free(out);
}

Test(control_limits, a_session_or_secret_of_another_length_is_refused)
{
	struct configuration c;

	configuration_init(&c);
	cr_assert(accepted(&c.control));
	c.configure.session.len = SESSION_ID_BYTES + 1;
	cr_expect(refused(&c.control));
	c.configure.session.len = SESSION_ID_BYTES - 1;
	cr_expect(refused(&c.control));
	c.configure.session.len = 0;
	cr_expect(refused(&c.control));

	configuration_init(&c);
	c.configure.secret.len = SESSION_SECRET_BYTES + 1;
	cr_expect(refused(&c.control));
	c.configure.secret.len = SESSION_SECRET_BYTES - 1;
	cr_expect(refused(&c.control));
}

Test(control_limits, streams_are_bounded)
{
	struct configuration c;

	configuration_init(&c);
	c.configure.streams = 0;
	cr_expect(refused(&c.control));
	c.configure.streams = 64;
	cr_expect(accepted(&c.control));
	c.configure.streams = 65;
	cr_expect(refused(&c.control));
}

Test(control_limits, counts_of_regions_and_properties_are_bounded)
{
	struct configuration c;

	configuration_init(&c);
	c.configure.n_regions = 0;
	cr_expect(refused(&c.control));
	c.configure.n_regions = JAUNT_MAX_REGIONS;
	cr_expect(accepted(&c.control));
	c.configure.n_regions = JAUNT_MAX_REGIONS + 1;
	cr_expect(refused(&c.control));

	configuration_init(&c);
	c.configure.n_properties = 0;
	cr_expect(accepted(&c.control));
	c.configure.n_properties = JAUNT_MAX_PROPERTIES;
	cr_expect(accepted(&c.control));
	c.configure.n_properties = JAUNT_MAX_PROPERTIES + 1;
	cr_expect(refused(&c.control));
}

Test(control_limits, allowed_and_told_differences_are_bounded)
{
	static Jaunt__Difference one, *list[CONTROL_ITEMS_MAX + 1];
	static char *items[JAUNT_MAX_ALLOWED + 1], large[CONTROL_STRING_MAX + 2];
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__Refused refusal = JAUNT__REFUSED__INIT;
	struct configuration c;

	memset(large, 'x', sizeof(large) - 1);
	configuration_init(&c);
	for (size_t i = 0; i <= JAUNT_MAX_ALLOWED; i++)
		items[i] = TEXT("uuid");
	c.configure.allowed = items;
	c.configure.n_allowed = JAUNT_MAX_ALLOWED;
	cr_expect(accepted(&c.control));
	c.configure.n_allowed = JAUNT_MAX_ALLOWED + 1;
	cr_expect(refused(&c.control));
	c.configure.n_allowed = 1;
	items[0] = large;
	cr_expect(refused(&c.control));

	jaunt__difference__init(&one);
	for (size_t i = 0; i <= CONTROL_ITEMS_MAX; i++)
		list[i] = &one;
	in.message_case = JAUNT__CONTROL__MESSAGE_REFUSED;
	in.refused = &refusal;
	refusal.differences = list;
	refusal.n_differences = CONTROL_ITEMS_MAX;
	cr_expect(accepted(&in));
	refusal.n_differences = CONTROL_ITEMS_MAX + 1;
	cr_expect(refused(&in));
	refusal.n_differences = 1;
	char **const members[] = {&one.item, &one.source, &one.target, &one.advice};
	for (size_t i = 0; i < 4; i++) {
		*members[i] = TEXT("\x1b[2J");
		cr_expect(refused(&in), "member %zu", i);
		*members[i] = large;
		cr_expect(refused(&in), "member %zu", i);
		*members[i] = TEXT("fine");
		cr_expect(accepted(&in), "member %zu", i);
	}
}

Test(control_limits, a_region_of_an_impossible_shape_is_refused)
{
	static const struct {
		uint64_t guest_address, bytes, page_bytes;
		bool good;
	} shapes[] = {
		{0, 4096, 4096, true},
		{0, 2 << 20, 2 << 20, true},
		{UINT64_MAX - 8191, 4096, 4096, true},
		{0, 4096, 0, false},
		{0, 2048, 2048, false},
		{0, 12288, 12288, false},
		{0, UINT64_C(1) << 30, UINT64_C(1) << 30, false},
		{0, UINT64_C(1) << 63, UINT64_C(1) << 63, false},
		{0, 0, 4096, false},
		{0, 4097, 4096, false},
		{0, 4096, 2 << 20, false},
		{2048, 4096, 4096, false},
		{UINT64_MAX - 4095, 4096, 4096, false},
		{UINT64_MAX - 4095, 8192, 4096, false},
		{4096, UINT64_MAX - 4095, 4096, false},
	};
	struct configuration c;

	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		configuration_init(&c);
		c.region.guest_address = shapes[i].guest_address;
		c.region.bytes = shapes[i].bytes;
		c.region.page_bytes = shapes[i].page_bytes;
		if (shapes[i].good)
			cr_expect(accepted(&c.control), "shape %zu", i);
		else
			cr_expect(refused(&c.control), "shape %zu", i);
	}
}

Test(control_limits, a_bad_region_behind_a_good_one_is_refused)
{
	struct configuration c;
	Jaunt__Region second = JAUNT__REGION__INIT;

	configuration_init(&c);
	c.regions[1] = &second;
	c.configure.n_regions = 2;
	cr_expect(refused(&c.control));
}

Test(control_limits, strings_are_bounded_and_may_not_steer_a_terminal)
{
	static char longest[CONTROL_VALUE_MAX + 2];
	struct configuration c;

	configuration_init(&c);
	memset(longest, 'x', sizeof(longest) - 1);
	c.property.value = longest + 1; /* CONTROL_VALUE_MAX of them */
	cr_expect(accepted(&c.control));
	c.property.value = longest;
	cr_expect(refused(&c.control));

	char **others[] = {&c.configure.vm_name, &c.configure.driver, &c.configure.mode,
			   &c.region.name, &c.property.key};
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		configuration_init(&c);
		*others[i] = longest + CONTROL_VALUE_MAX + 1 - CONTROL_STRING_MAX;
		cr_expect(accepted(&c.control), "string %zu", i);
		*others[i] = longest + CONTROL_VALUE_MAX - CONTROL_STRING_MAX;
		cr_expect(refused(&c.control), "string %zu", i);
		*others[i] = TEXT("\033[2J");
		cr_expect(refused(&c.control), "string %zu", i);
		*others[i] = TEXT("a\tb\nc \xe2\x86\x92 d");
		cr_expect(accepted(&c.control), "string %zu", i);
	}
}

Test(control_limits, a_hello_must_make_sense)
{
	static char *features[CONTROL_TEXTS_MAX + 1];
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__Hello hello = JAUNT__HELLO__INIT;

	in.message_case = JAUNT__CONTROL__MESSAGE_HELLO;
	in.hello = &hello;
	cr_expect(refused(&in), "no versions");
	hello.protocol_min = 2;
	hello.protocol_max = 1;
	cr_expect(refused(&in), "a range turned round");
	hello.protocol_min = 1;
	hello.protocol_max = UINT32_MAX;
	cr_expect(accepted(&in));

	for (size_t i = 0; i <= CONTROL_TEXTS_MAX; i++)
		features[i] = TEXT("verify");
	hello.features = features;
	hello.n_features = CONTROL_TEXTS_MAX;
	cr_expect(accepted(&in));
	hello.n_features = CONTROL_TEXTS_MAX + 1;
	cr_expect(refused(&in));
	hello.n_features = 0;
	hello.required = features;
	hello.n_required = CONTROL_TEXTS_MAX + 1;
	cr_expect(refused(&in));
	hello.n_required = 0;
	hello.kernel = TEXT("6.1\a");
	cr_expect(refused(&in));
}

Test(control_limits, the_largest_freeze_fits_and_one_run_more_is_refused)
{
	const size_t room = CONTROL_RUNS_MAX + 1;
	Jaunt__Run *runs = calloc(room, sizeof(*runs)),
		   **pointers = calloc(room, sizeof(*pointers));
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__Freeze freeze = JAUNT__FREEZE__INIT;

	for (size_t i = 0; i < room; i++) {
		jaunt__run__init(&runs[i]);
		/* The longest encodings there are. */
		runs[i].region = JAUNT_MAX_REGIONS - 1;
		runs[i].first_page = UINT64_C(1) << 63;
		runs[i].page_count = (UINT64_C(1) << 63) - 1;
		pointers[i] = &runs[i];
	}
	freeze.dirty = pointers;
	in.message_case = JAUNT__CONTROL__MESSAGE_FREEZE;
	in.freeze = &freeze;
	cr_expect(accepted(&in), "none in pure post-copy");
	freeze.n_dirty = CONTROL_RUNS_MAX;
	cr_expect(accepted(&in));
	freeze.n_dirty = CONTROL_RUNS_MAX + 1;
	cr_expect(refused(&in));

	freeze.n_dirty = 2;
	runs[1].page_count = UINT64_C(1) << 63;
	cr_expect(refused(&in), "a run that overflows");
	runs[1].page_count = 0;
	cr_expect(refused(&in), "a run without pages");
	runs[1].page_count = 1;
	cr_expect(accepted(&in));
	runs[1].region = JAUNT_MAX_REGIONS;
	cr_expect(refused(&in), "a region that cannot be");
	free(pointers);
	free(runs);
}

Test(control_limits, runs_that_are_not_exposed_any_more_are_bounded_like_dirty_ones)
{
	const size_t room = CONTROL_RUNS_MAX + 1;
	Jaunt__Run *runs = calloc(room, sizeof(*runs)),
		   **pointers = calloc(room, sizeof(*pointers));
	Jaunt__Control in = JAUNT__CONTROL__INIT, *out;
	Jaunt__Freeze freeze = JAUNT__FREEZE__INIT;
	struct jaunt_error error = {0};

	for (size_t i = 0; i < room; i++) {
		jaunt__run__init(&runs[i]);
		runs[i].region = JAUNT_MAX_REGIONS - 1;
		runs[i].first_page = UINT64_C(1) << 63;
		runs[i].page_count = (UINT64_C(1) << 63) - 1;
		pointers[i] = &runs[i];
	}
	in.message_case = JAUNT__CONTROL__MESSAGE_FREEZE;
	in.freeze = &freeze;
	freeze.unexposed = freeze.dirty = pointers;
	freeze.n_unexposed = freeze.n_dirty = CONTROL_RUNS_MAX;
	cr_expect(accepted(&in), "as many of both as there can be fit into one message");
	freeze.n_dirty = 0;
	freeze.n_unexposed = CONTROL_RUNS_MAX + 1;
	cr_expect(refused(&in));

	freeze.n_unexposed = 2;
	runs[1].page_count = UINT64_C(1) << 63;
	cr_expect(refused(&in), "a run that overflows");
	runs[1].page_count = 0;
	cr_expect(refused(&in), "a run without pages");
	runs[1].page_count = 5;
	runs[1].region = JAUNT_MAX_REGIONS;
	cr_expect(refused(&in), "a region that cannot be");
	runs[1].region = 3;
	cr_assert(eq(int, repack(&in, &out, &error), 1));
	cr_assert(eq(sz, out->freeze->n_unexposed, 2));
	cr_expect(eq(u32, out->freeze->unexposed[1]->region, 3));
	cr_expect(eq(u64, out->freeze->unexposed[1]->page_count, 5));
	control_free(out);
	free(pointers);
	free(runs);
}

Test(control_limits, a_chunk_that_is_told_lies_in_the_address_space)
{
	static Jaunt__Chunk chunks[CONTROL_CHUNKS_MAX + 1];
	static Jaunt__Chunk *pointers[CONTROL_CHUNKS_MAX + 1];
	Jaunt__Control in = JAUNT__CONTROL__INIT, *out;
	Jaunt__Exposed exposed = JAUNT__EXPOSED__INIT;
	struct jaunt_error error = {0};

	for (size_t i = 0; i <= CONTROL_CHUNKS_MAX; i++) {
		jaunt__chunk__init(&chunks[i]);
		chunks[i].region = JAUNT_MAX_REGIONS - 1;
		chunks[i].first_page = UINT64_C(1) << 48;
		chunks[i].page_count = 4096;
		chunks[i].address = UINT64_C(0x7fff12345000);
		chunks[i].key = UINT32_MAX;
		pointers[i] = &chunks[i];
	}
	in.message_case = JAUNT__CONTROL__MESSAGE_EXPOSED;
	in.exposed = &exposed;
	exposed.chunks = pointers;
	exposed.n_chunks = CONTROL_CHUNKS_MAX;
	cr_assert(eq(int, repack(&in, &out, &error), 1));
	cr_expect_str_eq(control_name(out), "EXPOSED");
	cr_expect(eq(u64, out->exposed->chunks[7]->address, UINT64_C(0x7fff12345000)));
	cr_expect(eq(u32, out->exposed->chunks[7]->key, UINT32_MAX));
	control_free(out);
	exposed.n_chunks = CONTROL_CHUNKS_MAX + 1;
	cr_expect(refused(&in));

	exposed.n_chunks = 2;
	chunks[1].page_count = 0;
	cr_expect(refused(&in), "a chunk without pages");
	chunks[1].page_count = UINT64_MAX;
	cr_expect(refused(&in), "pages that overflow");
	chunks[1].first_page = 0;
	cr_expect(refused(&in), "more bytes than there are addresses");
	chunks[1].page_count = 4096;
	chunks[1].address = UINT64_MAX - 4096;
	cr_expect(refused(&in), "a chunk that ends beyond the address space");
	chunks[1].address = 0;
	chunks[1].region = JAUNT_MAX_REGIONS;
	cr_expect(refused(&in), "a region that cannot be");
}

Test(control_limits, a_chunk_of_state_is_bounded)
{
	static uint8_t state[CONTROL_STATE_CHUNK + 1];
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__State chunk = JAUNT__STATE__INIT;

	in.message_case = JAUNT__CONTROL__MESSAGE_STATE;
	in.state = &chunk;
	chunk.bytes = (ProtobufCBinaryData){CONTROL_STATE_CHUNK, state};
	cr_expect(accepted(&in));
	chunk.bytes.len++;
	cr_expect(refused(&in));
}

Test(control_limits, fault_threads_are_bounded)
{
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__Ready ready = JAUNT__READY__INIT;

	in.message_case = JAUNT__CONTROL__MESSAGE_READY;
	in.ready = &ready;
	cr_expect(refused(&in));
	ready.fault_threads = 64;
	cr_expect(accepted(&in));
	ready.fault_threads = 65;
	cr_expect(refused(&in));
}

Test(control_limits, words_of_failure_are_bounded)
{
	static char text[CONTROL_STRING_MAX + 2], *texts[CONTROL_TEXTS_MAX + 1];
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__Refused refusal = JAUNT__REFUSED__INIT;
	Jaunt__Abort abortion = JAUNT__ABORT__INIT;
	Jaunt__Failed failed = JAUNT__FAILED__INIT;
	Jaunt__Progress progress = JAUNT__PROGRESS__INIT;
	Jaunt__Complete complete = JAUNT__COMPLETE__INIT;

	memset(text, 'x', sizeof(text) - 1);
	for (size_t i = 0; i <= CONTROL_TEXTS_MAX; i++)
		texts[i] = TEXT("no");

	in.message_case = JAUNT__CONTROL__MESSAGE_REFUSED;
	in.refused = &refusal;
	refusal.texts = texts;
	refusal.n_texts = CONTROL_TEXTS_MAX;
	cr_expect(accepted(&in));
	refusal.n_texts++;
	cr_expect(refused(&in));
	refusal.n_texts = 1;
	texts[0] = text;
	cr_expect(refused(&in));

	in.message_case = JAUNT__CONTROL__MESSAGE_ABORT;
	in.abort = &abortion;
	cr_expect(accepted(&in));
	abortion.text = text;
	cr_expect(refused(&in));

	in.message_case = JAUNT__CONTROL__MESSAGE_FAILED;
	in.failed = &failed;
	cr_expect(accepted(&in));
	failed.reason = text;
	cr_expect(refused(&in));

	in.message_case = JAUNT__CONTROL__MESSAGE_PROGRESS;
	in.progress = &progress;
	cr_expect(accepted(&in));
	progress.blocked = text;
	cr_expect(refused(&in));

	in.message_case = JAUNT__CONTROL__MESSAGE_COMPLETE;
	in.complete = &complete;
	cr_expect(refused(&in), "without figures");
	complete.progress = &progress;
	cr_expect(refused(&in));
	progress.blocked = TEXT("verify");
	cr_expect(accepted(&in));
}

Test(control_limits, every_kind_has_a_name_of_its_own)
{
	const ProtobufCMessageDescriptor *descriptor = &jaunt__control__descriptor;
	Jaunt__Control a = JAUNT__CONTROL__INIT, b = JAUNT__CONTROL__INIT;
	unsigned kinds = 0;

	for (unsigned i = 0; i < descriptor->n_fields; i++) {
		if (!(descriptor->fields[i].flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
			continue;
		kinds++;
		a.message_case = (Jaunt__Control__MessageCase)descriptor->fields[i].id;
		cr_expect_str_neq(control_name(&a), "UNKNOWN", "%s", descriptor->fields[i].name);
		for (unsigned k = 0; k < i; k++) {
			b.message_case = (Jaunt__Control__MessageCase)descriptor->fields[k].id;
			cr_expect_str_neq(control_name(&a), control_name(&b));
		}
	}
	cr_expect(ge(uint, kinds, 19));
	a.message_case = JAUNT__CONTROL__MESSAGE__NOT_SET;
	cr_expect_str_eq(control_name(&a), "UNKNOWN");
}
