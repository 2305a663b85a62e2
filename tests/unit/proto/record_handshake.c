/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes down what the two sides of a migration say to each other, byte by byte, in the format of
 * handshake-N.hex. Without an argument it prints the recording; with one it compares: the encoder
 * of today must still write what that file holds.
 *
 * When the protocol gets a new version, its recording becomes a file of its own. The old file
 * stays, and stays decodable.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/control.h"
#include "proto/frame.h"

#define TEXT(literal) ((char *)(uintptr_t)(literal))
#define COUNT(array)  (sizeof(array) / sizeof((array)[0]))

static char recording[1 << 16];
static size_t recorded;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int used = vsnprintf(recording + recorded, sizeof(recording) - recorded, format, arguments);
	va_end(arguments);
	if (used < 0 || (size_t)used >= sizeof(recording) - recorded)
		abort();
	recorded += (size_t)used;
}

static void say_bytes(const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		say("%02x", bytes[i]);
	say("\n");
}

static void record_control(const char *side, const Jaunt__Control *message)
{
	uint8_t *bytes;
	size_t count;

	if (control_pack(message, &bytes, &count))
		abort();
	say("%s control %s ", side, control_name(message));
	say_bytes(bytes, count);
	free(bytes);
}

static void record_frame(const char *side, const struct frame *frame, const uint8_t *payload)
{
	uint8_t bytes[FRAME_BYTES + ATTACH_BYTES];

	frame_encode(frame, bytes);
	if (payload)
		memcpy(bytes + FRAME_BYTES, payload, ATTACH_BYTES);
	say("%s frame %s ", side, frame_type_name(frame->type));
	say_bytes(bytes, FRAME_BYTES + (payload ? (size_t)ATTACH_BYTES : 0));
}

static uint8_t session[SESSION_ID_BYTES], secret[SESSION_SECRET_BYTES];

static void record_attach(uint16_t role, uint16_t index)
{
	const struct frame frame = {.type = FRAME_ATTACH, .payload_bytes = ATTACH_BYTES};
	struct attach attach = {.role = role, .index = index};
	uint8_t payload[ATTACH_BYTES];

	memcpy(attach.session, session, sizeof(session));
	if (role != ATTACH_CONTROL)
		memcpy(attach.secret, secret, sizeof(secret));
	attach_encode(&attach, payload);
	record_frame("source", &frame, payload);
	record_frame("target", &frame, payload);
}

#define CONTROL(side, kind, field, ...)                                                            \
	do {                                                                                       \
		Jaunt__Control control = JAUNT__CONTROL__INIT;                                     \
		control.sequence = ++sequence;                                                     \
		control.message_case = JAUNT__CONTROL__MESSAGE_##kind;                             \
		control.field = (__VA_ARGS__);                                                     \
		record_control(side, &control);                                                    \
	} while (0)

static void record_handshake(void)
{
	uint64_t sequence = 0;
	char *features[] = {TEXT("told"), TEXT("verify")}, *required[] = {TEXT("told")};
	Jaunt__Hello hello = JAUNT__HELLO__INIT;

	hello.protocol_min = hello.protocol_max = 1;
	hello.software = TEXT("jaunt 0.1.0");
	hello.build = TEXT("recorded");
	hello.kernel = TEXT("6.1.0");
	hello.boot_id = TEXT("01234567-89ab-cdef-0123-456789abcdef");
	hello.features = features;
	hello.n_features = COUNT(features);
	hello.required = required;
	hello.n_required = COUNT(required);
	hello.host = TEXT("alpha");
	CONTROL("source", HELLO, hello, &hello);
	hello.host = TEXT("beta");
	CONTROL("target", HELLO, hello, &hello);

	Jaunt__Property vcpus = JAUNT__PROPERTY__INIT, workload = JAUNT__PROPERTY__INIT;
	Jaunt__Property *properties[] = {&vcpus, &workload};
	Jaunt__Region low = JAUNT__REGION__INIT, high = JAUNT__REGION__INIT;
	Jaunt__Region *regions[] = {&low, &high};
	Jaunt__Configure configure = JAUNT__CONFIGURE__INIT;
	vcpus.key = TEXT("vcpus");
	vcpus.value = TEXT("2");
	workload.key = TEXT("workload");
	workload.value = TEXT("random:ws=50%");
	low.name = TEXT("low");
	low.bytes = UINT64_C(3) << 30;
	low.page_bytes = 4096;
	high.name = TEXT("high");
	high.guest_address = UINT64_C(4) << 30;
	high.bytes = UINT64_C(5) << 30;
	high.page_bytes = 2 << 20;
	configure.session = (ProtobufCBinaryData){sizeof(session), session};
	configure.secret = (ProtobufCBinaryData){sizeof(secret), secret};
	configure.vm_name = TEXT("web");
	configure.driver = TEXT("microvm");
	configure.properties = properties;
	configure.n_properties = COUNT(properties);
	configure.regions = regions;
	configure.n_regions = COUNT(regions);
	configure.mode = TEXT("post-copy");
	configure.push = true;
	configure.streams = 2;
	configure.verify = true;
	CONTROL("source", CONFIGURE, configure, &configure);

	Jaunt__Ready ready = JAUNT__READY__INIT;
	ready.fault_threads = 1;
	CONTROL("target", READY, ready, &ready);

	record_attach(ATTACH_URGENT, 0);
	record_attach(ATTACH_STREAM, 0);
	record_attach(ATTACH_STREAM, 1);
	record_attach(ATTACH_VERIFY, 0);

	Jaunt__Attached attached = JAUNT__ATTACHED__INIT;
	CONTROL("target", ATTACHED, attached, &attached);

	Jaunt__Run run = JAUNT__RUN__INIT, *runs[] = {&run};
	Jaunt__Freeze freeze = JAUNT__FREEZE__INIT;
	run.region = 1;
	run.first_page = 7;
	run.page_count = 9;
	freeze.epoch = 1;
	freeze.dirty = runs;
	freeze.n_dirty = 1;
	freeze.last = true;
	CONTROL("source", FREEZE, freeze, &freeze);

	uint8_t bytes[] = {0, 1, 2, 3, 0xff};
	Jaunt__State state = JAUNT__STATE__INIT;
	state.bytes = (ProtobufCBinaryData){sizeof(bytes), bytes};
	state.last = true;
	state.last_instruction_ns = UINT64_C(1234567890123);
	CONTROL("source", STATE, state, &state);

	Jaunt__Loaded loaded = JAUNT__LOADED__INIT;
	loaded.load_ns = 29000;
	CONTROL("target", LOADED, loaded, &loaded);

	Jaunt__Commit commit = JAUNT__COMMIT__INIT;
	CONTROL("source", COMMIT, commit, &commit);

	Jaunt__Resumed resumed = JAUNT__RESUMED__INIT;
	resumed.first_entry_ns = UINT64_C(1234567990123);
	resumed.commit_to_entry_ns = 40000;
	CONTROL("target", RESUMED, resumed, &resumed);

	static const struct {
		const char *side;
		struct frame frame;
	} pages[] = {
		{"target", {.type = FRAME_FETCH, .epoch = 1, .page_count = 1, .first_page = 77}},
		{"source",
		 {.type = FRAME_DATA,
		  .epoch = 1,
		  .page_count = 1,
		  .first_page = 77,
		  .payload_bytes = 4096}},
		{"source",
		 {.type = FRAME_ZERO,
		  .flags = FRAME_FLAG_HOLE,
		  .epoch = 1,
		  .page_count = 512,
		  .first_page = 1024}},
		{"source", {.type = FRAME_TOLD, .epoch = 1, .first_page = 2048}},
		{"target",
		 {.type = FRAME_GRANT,
		  .flags = FRAME_FLAG_TOLD,
		  .epoch = 1,
		  .page_count = 512,
		  .first_page = 512}},
		{"source",
		 {.type = FRAME_DATA,
		  .region = 1,
		  .epoch = 1,
		  .page_count = 2,
		  .payload_bytes = 4 << 20}},
		{"source",
		 {.type = FRAME_GRANT_END, .epoch = 1, .page_count = 512, .first_page = 512}},
		{"target", {.type = FRAME_DIGEST, .epoch = 1, .page_count = 4, .first_page = 8}},
		{"source",
		 {.type = FRAME_DIGEST,
		  .epoch = 1,
		  .page_count = 4,
		  .first_page = 8,
		  .payload_bytes = 32}},
		{"source",
		 {.type = FRAME_DIGEST,
		  .flags = FRAME_FLAG_ALL_ZERO,
		  .epoch = 1,
		  .page_count = 512,
		  .first_page = 512}},
	};
	for (size_t i = 0; i < COUNT(pages); i++)
		record_frame(pages[i].side, &pages[i].frame, NULL);

	Jaunt__Progress progress = JAUNT__PROGRESS__INIT;
	progress.missing = 1000;
	progress.zero = 1;
	progress.hole = 2;
	progress.pushed = 3;
	progress.demanded = 4;
	progress.duplicate = 5;
	progress.discarded = 6;
	progress.verified = 7;
	progress.payload_bytes = 28672;
	CONTROL("target", PROGRESS, progress, &progress);

	Jaunt__Ping ping = JAUNT__PING__INIT;
	ping.sent_ns = 42;
	CONTROL("source", PING, ping, &ping);
	Jaunt__Pong pong = JAUNT__PONG__INIT;
	pong.sent_ns = 42;
	CONTROL("target", PONG, pong, &pong);
	Jaunt__SetPush push = JAUNT__SET_PUSH__INIT;
	push.push = true;
	CONTROL("source", SET_PUSH, set_push, &push);

	Jaunt__Complete complete = JAUNT__COMPLETE__INIT;
	progress.missing = 0;
	complete.progress = &progress;
	CONTROL("target", COMPLETE, complete, &complete);
	Jaunt__Released released = JAUNT__RELEASED__INIT;
	CONTROL("source", RELEASED, released, &released);
}

/* How it ends when it does not work out. */
static void record_refusals(void)
{
	uint64_t sequence = 100;
	char *texts[] = {TEXT("no memory"), TEXT("no huge pages")};
	Jaunt__Refused refused = JAUNT__REFUSED__INIT;
	Jaunt__Abort aborted = JAUNT__ABORT__INIT;
	Jaunt__CancelRequest cancel = JAUNT__CANCEL_REQUEST__INIT;
	Jaunt__Failed failed = JAUNT__FAILED__INIT;

	refused.reason = TEXT("no-memory");
	refused.texts = texts;
	refused.n_texts = COUNT(texts);
	CONTROL("target", REFUSED, refused, &refused);
	CONTROL("target", CANCEL_REQUEST, cancel_request, &cancel);
	aborted.reason = TEXT("cancelled");
	aborted.text = TEXT("cancelled by the operator");
	CONTROL("source", ABORT, abort, &aborted);
	failed.reason = TEXT("resume-failed");
	failed.text = TEXT("no vCPU has run here");
	CONTROL("target", FAILED, failed, &failed);
}

static int compare(const char *path)
{
	static char kept[sizeof(recording)];
	FILE *file = fopen(path, "r");

	if (!file) {
		perror(path);
		return 1;
	}
	size_t count = fread(kept, 1, sizeof(kept) - 1, file);
	fclose(file);
	kept[count] = '\0';

	unsigned line = 1;
	for (size_t i = 0; kept[i] == recording[i]; i++) {
		if (!kept[i])
			return 0;
		line += kept[i] == '\n';
	}
	fprintf(stderr,
		"%s:%u: the encoder no longer writes these bytes. A peer of that version would not "
		"understand them: what changed needs a new field or a new protocol version.\n",
		path, line);
	return 1;
}

int main(int argc, char **argv)
{
	for (unsigned i = 0; i < SESSION_ID_BYTES; i++)
		session[i] = (uint8_t)(0xa0 + i);
	for (unsigned i = 0; i < SESSION_SECRET_BYTES; i++)
		secret[i] = (uint8_t)(0xc0 + i);

	say("# SPDX-License-Identifier: Apache-2.0\n"
	    "# Protocol version 1 as it was first spoken: who says it, on which kind of channel, "
	    "what, and its bytes.\n"
	    "# Every later version must still decode this. Never edit; made by "
	    "record_handshake.c.\n");
	record_attach(ATTACH_CONTROL, 0);
	record_handshake();
	record_refusals();
	if (argc == 2)
		return compare(argv[1]);
	fputs(recording, stdout);
	return 0;
}
