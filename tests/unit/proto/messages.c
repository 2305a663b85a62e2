/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/proto/messages.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <stdlib.h>

void configuration_init(struct configuration *c)
{
	*c = (struct configuration){.control = JAUNT__CONTROL__INIT,
				    .configure = JAUNT__CONFIGURE__INIT,
				    .region = JAUNT__REGION__INIT,
				    .property = JAUNT__PROPERTY__INIT};
	c->region.name = TEXT("ram");
	c->region.bytes = UINT64_C(1) << 30;
	c->region.page_bytes = 4096;
	c->property.key = TEXT("vcpus");
	c->property.value = TEXT("2");
	for (size_t i = 0; i <= JAUNT_MAX_REGIONS; i++)
		c->regions[i] = &c->region;
	for (size_t i = 0; i <= JAUNT_MAX_PROPERTIES; i++)
		c->properties[i] = &c->property;
	c->configure.session = (ProtobufCBinaryData){SESSION_ID_BYTES, c->session};
	c->configure.secret = (ProtobufCBinaryData){SESSION_SECRET_BYTES, c->secret};
	c->configure.vm_name = TEXT("web");
	c->configure.driver = TEXT("microvm");
	c->configure.mode = TEXT("post-copy");
	c->configure.streams = 1;
	c->configure.regions = c->regions;
	c->configure.n_regions = 1;
	c->configure.properties = c->properties;
	c->configure.n_properties = 1;
	c->control.message_case = JAUNT__CONTROL__MESSAGE_CONFIGURE;
	c->control.configure = &c->configure;
}

int unpack_bytes(const uint8_t *bytes, size_t count, Jaunt__Control **out,
		 struct jaunt_error *error)
{
	size_t consumed = 0, needed = 0;
	int rc = control_unpack(bytes, count, out, &consumed, &needed, error);
	if (rc == 1)
		cr_assert(eq(sz, consumed, count));
	return rc;
}

int repack(const Jaunt__Control *in, Jaunt__Control **out, struct jaunt_error *error)
{
	uint8_t *bytes;
	size_t count;

	cr_assert(zero(int, control_pack(in, &bytes, &count)));
	int rc = unpack_bytes(bytes, count, out, error);
	free(bytes);
	return rc;
}

bool refused(const Jaunt__Control *in)
{
	struct jaunt_error error = {0};
	Jaunt__Control *out = NULL;
	int rc = repack(in, &out, &error);

	if (rc == 1)
		control_free(out);
	return rc == -EPROTO && error.code == EPROTO && *error.reason && *error.text;
}

bool accepted(const Jaunt__Control *in)
{
	Jaunt__Control *out = NULL;
	int rc = repack(in, &out, NULL);

	if (rc == 1)
		control_free(out);
	return rc == 1;
}
