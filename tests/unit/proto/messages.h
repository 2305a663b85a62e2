/* SPDX-License-Identifier: Apache-2.0 */
/* Control messages for tests: good ones to spoil, and sending one to oneself. */
#ifndef TESTS_UNIT_PROTO_MESSAGES_H
#define TESTS_UNIT_PROTO_MESSAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/control.h"
#include "proto/frame.h"

/* Strings that a message is lent; protobuf-c wants them writable and does not write. */
#define TEXT(literal) ((char *)(uintptr_t)(literal))

/* One that is good, for each test to spoil in one place. */

struct configuration {
	Jaunt__Control control;
	Jaunt__Configure configure;
	Jaunt__Region region, *regions[JAUNT_MAX_REGIONS + 1];
	Jaunt__Property property, *properties[JAUNT_MAX_PROPERTIES + 1];
	uint8_t session[SESSION_ID_BYTES + 1], secret[SESSION_SECRET_BYTES + 1];
};

void configuration_init(struct configuration *c);

/* control_unpack() of a whole message. */
int unpack_bytes(const uint8_t *bytes, size_t count, Jaunt__Control **out,
		 struct jaunt_error *error);
/* Packs a message and unpacks it. */
int repack(const Jaunt__Control *in, Jaunt__Control **out, struct jaunt_error *error);
/* Whether the message is refused as a breach of the protocol, with a text. */
bool refused(const Jaunt__Control *in);
bool accepted(const Jaunt__Control *in);

#endif
