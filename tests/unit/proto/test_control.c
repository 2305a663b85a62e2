/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/proto/messages.h"

/* --- Length and completeness -------------------------------------------------------------- */

Test(control, a_configuration_comes_back_as_it_was_sent)
{
	struct configuration c;
	Jaunt__Control *out;

	configuration_init(&c);
	c.control.sequence = 17;
	c.region.guest_address = UINT64_C(4) << 30;
	c.configure.verify = true;
	memset(c.session, 0x11, sizeof(c.session));
	memset(c.secret, 0x22, sizeof(c.secret));
	cr_assert(eq(int, repack(&c.control, &out, NULL), 1));
	cr_expect_str_eq(control_name(out), "CONFIGURE");
	cr_expect(eq(u64, out->sequence, 17));
	cr_expect_str_eq(out->configure->vm_name, "web");
	cr_expect_str_eq(out->configure->properties[0]->value, "2");
	cr_expect(eq(u64, out->configure->regions[0]->guest_address, UINT64_C(4) << 30));
	cr_expect(session_equal(out->configure->session.data, c.session, SESSION_ID_BYTES));
	cr_expect(session_equal(out->configure->secret.data, c.secret, SESSION_SECRET_BYTES));
	cr_expect(out->configure->verify);
	cr_expect(not(out->configure->push));
	control_free(out);
}

Test(control, a_message_in_pieces_says_how_much_is_needed)
{
	Jaunt__Control in = JAUNT__CONTROL__INIT, *out = NULL;
	Jaunt__Ping ping = JAUNT__PING__INIT;
	uint8_t *bytes;
	size_t count, consumed, needed;

	ping.sent_ns = 123456789;
	in.message_case = JAUNT__CONTROL__MESSAGE_PING;
	in.ping = &ping;
	cr_assert(zero(int, control_pack(&in, &bytes, &count)));
	for (size_t have = 0; have < count; have++) {
		/* A copy of its own, so that the address sanitizer sees a read behind it. */
		uint8_t *part = malloc(have ? have : 1);
		memcpy(part, bytes, have);
		needed = 0;
		cr_assert(zero(int, control_unpack(part, have, &out, &consumed, &needed, NULL)));
		cr_expect(eq(sz, needed, have < 4 ? 4 : count), "with %zu bytes", have);
		free(part);
	}
	cr_assert(eq(int, control_unpack(bytes, count, &out, &consumed, &needed, NULL), 1));
	cr_expect(eq(u64, out->ping->sent_ns, 123456789));
	control_free(out);
	free(bytes);
}

Test(control, takes_only_the_first_of_two_messages)
{
	Jaunt__Control in = JAUNT__CONTROL__INIT, *out;
	Jaunt__Commit commit = JAUNT__COMMIT__INIT;
	uint8_t *bytes, twice[64];
	size_t count, consumed, needed;

	in.message_case = JAUNT__CONTROL__MESSAGE_COMMIT;
	in.commit = &commit;
	cr_assert(zero(int, control_pack(&in, &bytes, &count)));
	memcpy(twice, bytes, count);
	memset(twice + count, 0xff, sizeof(twice) - count);
	cr_assert(eq(int, control_unpack(twice, sizeof(twice), &out, &consumed, &needed, NULL), 1));
	cr_expect(eq(sz, consumed, count));
	cr_expect_str_eq(control_name(out), "COMMIT");
	control_free(out);
	free(bytes);
}

Test(control, an_absurd_length_is_refused_before_anything_is_waited_for)
{
	const uint8_t http[4] = {'H', 'T', 'T', 'P'};
	const uint8_t above[4] = {0x01, 0x00, 0x40, 0x00}; /* 4 MiB + 1 */
	const uint8_t allowed[4] = {0x00, 0x00, 0x40, 0x00};
	struct jaunt_error error = {0};
	size_t consumed, needed = 0;
	Jaunt__Control *out;

	cr_expect(eq(int, control_unpack(http, 4, &out, &consumed, &needed, &error), -EMSGSIZE));
	cr_expect(eq(int, error.code, EMSGSIZE));
	cr_expect(eq(int, control_unpack(above, 4, &out, &consumed, &needed, &error), -EMSGSIZE));
	cr_expect(zero(int, control_unpack(allowed, 4, &out, &consumed, &needed, &error)));
	cr_expect(eq(sz, needed, (size_t)CONTROL_MESSAGE_MAX + 4));
}

Test(control, a_message_too_long_to_be_unpacked_is_not_packed)
{
	static uint8_t state[CONTROL_MESSAGE_MAX];
	Jaunt__Control in = JAUNT__CONTROL__INIT;
	Jaunt__State chunk = JAUNT__STATE__INIT;
	uint8_t *bytes;
	size_t count;

	in.message_case = JAUNT__CONTROL__MESSAGE_STATE;
	in.state = &chunk;
	chunk.bytes = (ProtobufCBinaryData){sizeof(state), state};
	cr_expect(eq(int, control_pack(&in, &bytes, &count), -EMSGSIZE));
}

Test(control, garbage_is_refused_with_a_text)
{
	const uint8_t garbage[] = {4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff};
	struct jaunt_error error = {0};
	Jaunt__Control *out;

	cr_expect(eq(int, unpack_bytes(garbage, sizeof(garbage), &out, &error), -EPROTO));
	cr_expect(ne(int, error.text[0], 0));
}

Test(control, small_bytes_that_need_much_memory_are_refused)
{
	/* A Refused of four million empty texts: two bytes each on the wire. */
	const size_t inner = 3 << 20, total = 4 + 1 + 4 + inner;
	uint8_t *bytes = malloc(total);
	struct jaunt_error error = {0};
	Jaunt__Control *out;
	size_t at = 0;

	bytes[at++] = (uint8_t)(total - 4);
	bytes[at++] = (uint8_t)((total - 4) >> 8);
	bytes[at++] = (uint8_t)((total - 4) >> 16);
	bytes[at++] = 0;
	bytes[at++] = 13 << 3 | 2; /* refused, length-delimited */
	for (unsigned shift = 0; shift < 28; shift += 7)
		bytes[at++] = (uint8_t)((inner >> shift & 0x7f) | (shift < 21 ? 0x80 : 0));
	while (at < total) {
		bytes[at++] = 2 << 3 | 2; /* texts */
		bytes[at++] = 0;
	}
	cr_expect(eq(int, unpack_bytes(bytes, total, &out, &error), -EMSGSIZE));
	cr_expect(eq(int, error.code, EMSGSIZE));
	free(bytes);
}
