/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/hello.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* What this side can do, by name; a peer that requires something not listed here is refused. */
static const char *const features[] = {"post-copy", "holes-told", "verify-xxh3",
				       "set-push",  "ping",       "rounds",
				       "read",      "rejoin",     "state-ahead"};
static const char *const required[] = {"post-copy"};

struct self {
	struct utsname kernel;
	char kernel_text[160];
	char boot_id[64];
	char software[32];
	Jaunt__Hello hello;
};

static void describe_self(struct self *self)
{
	memset(self, 0, sizeof(*self));
	uname(&self->kernel);
	snprintf(self->kernel_text, sizeof(self->kernel_text), "%s %s", self->kernel.release,
		 self->kernel.machine);
	snprintf(self->software, sizeof(self->software), "jaunt %s", JAUNT_VERSION);
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		ssize_t got = read(fd, self->boot_id, sizeof(self->boot_id) - 1);
		self->boot_id[got > 0 ? got : 0] = '\0';
		self->boot_id[strcspn(self->boot_id, "\n")] = '\0';
		close(fd);
	}
	jaunt__hello__init(&self->hello);
	self->hello.protocol_min = CONTROL_PROTOCOL_MIN;
	self->hello.protocol_max = CONTROL_PROTOCOL_MAX;
	self->hello.software = self->software;
	self->hello.build = (char *)JAUNT_VERSION;
	self->hello.host = self->kernel.nodename;
	self->hello.kernel = self->kernel_text;
	self->hello.boot_id = self->boot_id;
	self->hello.features = (char **)features;
	self->hello.n_features = sizeof(features) / sizeof(features[0]);
	self->hello.required = (char **)required;
	self->hello.n_required = sizeof(required) / sizeof(required[0]);
}

int hello_send(struct link *link)
{
	struct self self;
	Jaunt__Control message = JAUNT__CONTROL__INIT;

	describe_self(&self);
	message.message_case = JAUNT__CONTROL__MESSAGE_HELLO;
	message.hello = &self.hello;
	return link_send(link, &message);
}

int hello_check(const Jaunt__Hello *theirs, struct jaunt_error *error)
{
	struct self self;

	describe_self(&self);
	return control_negotiate(&self.hello, theirs, error);
}

bool hello_has(const Jaunt__Hello *theirs, const char *feature)
{
	for (size_t i = 0; i < theirs->n_features; i++)
		if (strcmp(theirs->features[i], feature) == 0)
			return true;
	return false;
}

bool hello_same_clock(const Jaunt__Hello *theirs)
{
	struct self self;

	describe_self(&self);
	return self.boot_id[0] && strcmp(self.boot_id, theirs->boot_id) == 0;
}
