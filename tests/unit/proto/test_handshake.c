/* SPDX-License-Identifier: Apache-2.0 */
/* What an earlier version said must stay understood: the recordings beside this file are decoded.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/control.h"
#include "proto/frame.h"

#define LINES_MAX 128
#define BYTES_MAX 1024

struct line {
	char side[8], channel[8], name[24];
	uint8_t bytes[BYTES_MAX];
	size_t count;
};

static struct line lines[LINES_MAX];
static size_t line_count;

static void read_recording(const char *name)
{
	static char text[4 * BYTES_MAX], hex[2 * BYTES_MAX + 1];
	const char *folder = getenv("JAUNT_TEST_DATA");
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", folder ? folder : "tests/unit/proto", name);
	FILE *file = fopen(path, "r");
	cr_assert(file != NULL, "%s; set JAUNT_TEST_DATA to the folder of this test", path);
	while (fgets(text, sizeof(text), file)) {
		struct line *line = &lines[line_count];
		if (*text == '#')
			continue;
		cr_assert(lt(sz, line_count, LINES_MAX));
		cr_assert(eq(int,
			     sscanf(text, "%7s %7s %23s %2048s", line->side, line->channel,
				    line->name, hex),
			     4));
		for (line->count = 0; hex[2 * line->count]; line->count++) {
			unsigned byte;
			cr_assert(eq(int, sscanf(hex + 2 * line->count, "%2x", &byte), 1));
			line->bytes[line->count] = (uint8_t)byte;
		}
		line_count++;
	}
	fclose(file);
}

/* The n-th line (from 0) of that side and name. */
static const struct line *find(const char *side, const char *name, unsigned n)
{
	for (size_t i = 0; i < line_count; i++)
		if (!strcmp(lines[i].side, side) && !strcmp(lines[i].name, name) && !n--)
			return &lines[i];
	cr_assert(false, "no %s of the %s in the recording", name, side);
	return NULL;
}

static Jaunt__Control *find_control(const char *side, const char *name)
{
	const struct line *line = find(side, name, 0);
	struct jaunt_error error = {0};
	Jaunt__Control *message;
	size_t consumed, needed;

	cr_assert(eq(int,
		     control_unpack(line->bytes, line->count, &message, &consumed, &needed, &error),
		     1),
		  "%s: %s", name, error.text);
	return message;
}

static struct frame find_frame(const char *side, const char *name, unsigned n)
{
	const struct line *line = find(side, name, n);
	struct frame frame;

	cr_assert(ge(sz, line->count, FRAME_BYTES));
	cr_assert(eq(int, frame_decode(&frame, line->bytes), FRAME_OK), "%s", name);
	return frame;
}

static void read_version_1(void)
{
	read_recording("handshake-1.hex");
}

TestSuite(version_1, .init = read_version_1);

Test(version_1, everything_that_was_said_is_decoded_whole_and_under_its_name)
{
	cr_assert(gt(sz, line_count, 40));
	for (size_t i = 0; i < line_count; i++) {
		const struct line *line = &lines[i];
		if (!strcmp(line->channel, "control")) {
			struct jaunt_error error = {0};
			Jaunt__Control *message;
			size_t consumed, needed;
			cr_assert(eq(int,
				     control_unpack(line->bytes, line->count, &message, &consumed,
						    &needed, &error),
				     1),
				  "%s: %s", line->name, error.text);
			cr_expect(eq(sz, consumed, line->count), "%s", line->name);
			cr_expect_str_eq(control_name(message), line->name);
			/* Nothing of it has become unknown. */
			cr_expect(zero(uint, message->base.n_unknown_fields), "%s", line->name);
			control_free(message);
		} else {
			struct frame frame;
			cr_assert(eq(int, frame_decode(&frame, line->bytes), FRAME_OK), "%s",
				  line->name);
			cr_expect_str_eq(frame_type_name(frame.type), line->name);
		}
	}
}

Test(version_1, is_still_spoken)
{
	Jaunt__Control *source = find_control("source", "HELLO");
	Jaunt__Control *target = find_control("target", "HELLO");
	Jaunt__Hello now = JAUNT__HELLO__INIT;

	cr_expect(eq(u32, source->hello->protocol_min, 1));
	cr_expect(eq(u32, source->hello->protocol_max, 1));
	cr_expect_str_eq(source->hello->software, "jaunt 0.1.0");
	cr_expect_str_eq(source->hello->build, "recorded");
	cr_expect_str_eq(source->hello->host, "alpha");
	cr_expect_str_eq(source->hello->kernel, "6.1.0");
	cr_expect_str_eq(source->hello->boot_id, target->hello->boot_id);
	cr_expect_str_eq(target->hello->host, "beta");
	cr_assert(eq(sz, source->hello->n_features, 2));
	cr_expect_str_eq(source->hello->features[1], "verify");
	cr_assert(eq(sz, source->hello->n_required, 1));
	cr_expect_str_eq(source->hello->required[0], "told");

	cr_expect(eq(int, control_negotiate(source->hello, target->hello, NULL), 1));
	now.protocol_min = CONTROL_PROTOCOL_MIN;
	now.protocol_max = CONTROL_PROTOCOL_MAX;
	now.features = source->hello->features;
	now.n_features = source->hello->n_features;
	cr_expect(eq(int, control_negotiate(&now, source->hello, NULL), 1));
	control_free(source);
	control_free(target);
}

Test(version_1, configuration_keeps_its_meaning)
{
	Jaunt__Control *message = find_control("source", "CONFIGURE");
	const Jaunt__Configure *c = message->configure;

	cr_expect(eq(u64, message->sequence, 3));
	cr_expect(eq(u8, c->session.data[0], 0xa0));
	cr_expect(eq(u8, c->session.data[15], 0xaf));
	cr_expect(eq(u8, c->secret.data[0], 0xc0));
	cr_expect(eq(u8, c->secret.data[31], 0xdf));
	cr_expect_str_eq(c->vm_name, "web");
	cr_expect_str_eq(c->driver, "microvm");
	cr_expect_str_eq(c->mode, "post-copy");
	cr_expect(eq(u32, c->streams, 2));
	cr_expect(c->push && c->verify && !c->dry_run);
	cr_assert(eq(sz, c->n_properties, 2));
	cr_expect_str_eq(c->properties[0]->key, "vcpus");
	cr_expect_str_eq(c->properties[1]->value, "random:ws=50%");
	cr_assert(eq(sz, c->n_regions, 2));
	cr_expect_str_eq(c->regions[0]->name, "low");
	cr_expect(eq(u64, c->regions[0]->bytes, UINT64_C(3) << 30));
	cr_expect(eq(u64, c->regions[0]->page_bytes, 4096));
	cr_expect(eq(u64, c->regions[1]->guest_address, UINT64_C(4) << 30));
	cr_expect(eq(u64, c->regions[1]->page_bytes, 2 << 20));
	control_free(message);
}

Test(version_1, handing_over_keeps_its_meaning)
{
	Jaunt__Control *ready = find_control("target", "READY");
	Jaunt__Control *freeze = find_control("source", "FREEZE");
	Jaunt__Control *state = find_control("source", "STATE");
	Jaunt__Control *loaded = find_control("target", "LOADED");
	Jaunt__Control *resumed = find_control("target", "RESUMED");

	cr_expect(eq(u32, ready->ready->fault_threads, 1));
	cr_expect(eq(u32, freeze->freeze->epoch, 1));
	cr_expect(freeze->freeze->last);
	cr_assert(eq(sz, freeze->freeze->n_dirty, 1));
	cr_expect(eq(u32, freeze->freeze->dirty[0]->region, 1));
	cr_expect(eq(u64, freeze->freeze->dirty[0]->first_page, 7));
	cr_expect(eq(u64, freeze->freeze->dirty[0]->page_count, 9));
	cr_assert(eq(sz, state->state->bytes.len, 5));
	cr_expect(zero(int, memcmp(state->state->bytes.data, "\0\1\2\3\377", 5)));
	cr_expect(state->state->last);
	cr_expect(eq(u64, state->state->last_instruction_ns, 1234567890123));
	cr_expect(eq(u64, loaded->loaded->load_ns, 29000));
	cr_expect(eq(u64, resumed->resumed->first_entry_ns, 1234567990123));
	cr_expect(eq(u64, resumed->resumed->commit_to_entry_ns, 40000));
	control_free(ready);
	control_free(freeze);
	control_free(state);
	control_free(loaded);
	control_free(resumed);
}

Test(version_1, the_end_keeps_its_meaning)
{
	Jaunt__Control *progress = find_control("target", "PROGRESS");
	Jaunt__Control *complete = find_control("target", "COMPLETE");
	Jaunt__Control *push = find_control("source", "SET-PUSH");
	Jaunt__Control *refused = find_control("target", "REFUSED");
	Jaunt__Control *aborted = find_control("source", "ABORT");
	Jaunt__Control *failed = find_control("target", "FAILED");
	const Jaunt__Progress *p = progress->progress;

	cr_expect(eq(u64, p->missing, 1000));
	cr_expect(eq(u64, p->zero, 1));
	cr_expect(eq(u64, p->hole, 2));
	cr_expect(eq(u64, p->pushed, 3));
	cr_expect(eq(u64, p->demanded, 4));
	cr_expect(eq(u64, p->duplicate, 5));
	cr_expect(eq(u64, p->discarded, 6));
	cr_expect(eq(u64, p->verified, 7));
	cr_expect(zero(u64, p->mismatched));
	cr_expect(eq(u64, p->payload_bytes, 28672));
	cr_expect_str_eq(p->blocked, "");
	cr_expect(zero(u64, complete->complete->progress->missing));
	cr_expect(push->set_push->push);
	cr_expect_str_eq(refused->refused->reason, "no-memory");
	cr_assert(eq(sz, refused->refused->n_texts, 2));
	cr_expect_str_eq(refused->refused->texts[1], "no huge pages");
	cr_expect_str_eq(aborted->abort->reason, "cancelled");
	cr_expect_str_eq(failed->failed->text, "no vCPU has run here");
	control_free(progress);
	control_free(complete);
	control_free(push);
	control_free(refused);
	control_free(aborted);
	control_free(failed);
}

Test(version_1, attachment_keeps_its_meaning)
{
	const uint16_t roles[] = {ATTACH_CONTROL, ATTACH_URGENT, ATTACH_STREAM, ATTACH_STREAM,
				  ATTACH_VERIFY};
	const uint16_t indices[] = {0, 0, 0, 1, 0};

	for (unsigned i = 0; i < 5; i++) {
		const struct line *line = find("source", "ATTACH", i);
		struct frame frame = find_frame("source", "ATTACH", i);
		struct attach attach;

		cr_expect(eq(u32, frame.payload_bytes, ATTACH_BYTES));
		cr_assert(eq(sz, line->count, FRAME_BYTES + ATTACH_BYTES));
		cr_assert(attach_decode(&attach, line->bytes + FRAME_BYTES));
		cr_expect(eq(u16, attach.role, roles[i]));
		cr_expect(eq(u16, attach.index, indices[i]));
		cr_expect(eq(u8, attach.session[15], 0xaf));
		cr_expect(eq(u8, attach.secret[31], i ? 0xdf : 0), "no secret before there is one");
	}
}

Test(version_1, pages_keep_their_meaning)
{
	struct frame fetch = find_frame("target", "FETCH", 0);
	struct frame data = find_frame("source", "DATA", 0), huge = find_frame("source", "DATA", 1);
	struct frame zero = find_frame("source", "ZERO", 0);
	struct frame grant = find_frame("target", "GRANT", 0);
	struct frame told = find_frame("source", "TOLD", 0);
	struct frame digests = find_frame("source", "DIGEST", 0);
	struct frame zeros = find_frame("source", "DIGEST", 1);

	cr_expect(eq(u64, fetch.first_page, 77));
	cr_expect(eq(u32, fetch.epoch, 1));
	cr_expect(frame_in_region(&data, 78, 4096));
	cr_expect(not(frame_in_region(&data, 77, 4096)));
	cr_expect(eq(u16, huge.region, 1));
	cr_expect(frame_in_region(&huge, 2, 2 << 20));
	cr_expect(eq(u16, zero.flags, FRAME_FLAG_HOLE));
	cr_expect(eq(u32, zero.page_count, 512));
	cr_expect(eq(u16, grant.flags, FRAME_FLAG_TOLD));
	cr_expect(eq(u64, told.first_page, 2048));
	cr_expect(eq(u32, digests.payload_bytes, 32));
	cr_expect(eq(u16, zeros.flags, FRAME_FLAG_ALL_ZERO));
}
