/* SPDX-License-Identifier: Apache-2.0 */
/* What an address says about the fabric: "rdma:HOST:PORT,traffic-class=106,retries=3". */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "transport/rdma.h"

/* What `odp' takes, in the order of enum on_demand. */
static const char *const odp_words[] = {"off", "auto", "on", NULL};

struct option {
	const char *name;
	const char *const *words; /* what it takes; NULL: a number from `least` to `most` */
	unsigned long least, most;
};

enum { TRAFFIC_CLASS, ACK_TIMEOUT, RETRIES, POLL_US, ODP, OPTIONS };

static const struct option known[OPTIONS] = {
	[TRAFFIC_CLASS] = {"traffic-class", .most = 255},
	[ACK_TIMEOUT] = {"ack-timeout", .least = 1, .most = 31},
	[RETRIES] = {"retries", .most = 7},
	[POLL_US] = {"poll-us", .most = 1000},
	[ODP] = {"odp", .words = odp_words},
};

static void set(struct rdma_options *options, unsigned which, unsigned long value)
{
	switch (which) {
	case TRAFFIC_CLASS:
		options->traffic_class = (int)value;
		break;
	case ACK_TIMEOUT:
		options->ack_timeout = (int)value;
		break;
	case RETRIES:
		options->retries = (unsigned)value;
		break;
	case POLL_US:
		options->poll_us = (uint32_t)value;
		break;
	default:
		options->odp = (enum on_demand)value;
	}
}

/* The word's index, or the number. */
static bool read_value(const struct option *option, const char *text, size_t length,
		       unsigned long *value)
{
	char *end;

	for (*value = 0; option->words && option->words[*value]; ++*value)
		if (strlen(option->words[*value]) == length &&
		    !strncmp(text, option->words[*value], length))
			return true;
	if (option->words || *text < '0' || *text > '9')
		return false;
	errno = 0;
	*value = strtoul(text, &end, 10);
	return !errno && end == text + length && *value >= option->least && *value <= option->most;
}

static int refuse_value(const struct option *option, const char *text, size_t length,
			struct jaunt_error *error)
{
	if (!option->words)
		return error_set(error, EINVAL, "bad-address",
				 "'%.*s': %s takes a number from %lu to %lu", (int)length, text,
				 option->name, option->least, option->most);
	return error_set(error, EINVAL, "bad-address", "'%.*s': %s is auto, on or off", (int)length,
			 text, option->name);
}

static int parse_one(struct rdma_options *options, const char *text, size_t length,
		     struct jaunt_error *error)
{
	unsigned long value;

	for (unsigned i = 0; i < OPTIONS; i++) {
		size_t name = strlen(known[i].name);
		if (length <= name || strncmp(text, known[i].name, name) || text[name] != '=')
			continue;
		if (!read_value(&known[i], text + name + 1, length - name - 1, &value))
			return refuse_value(&known[i], text, length, error);
		set(options, i, value);
		return 0;
	}
	return error_set(
		error, EINVAL, "bad-address",
		"'%.*s' is no option of rdma: addresses; there are traffic-class, "
		"ack-timeout, retries and poll-us, each as NAME=NUMBER, and odp=auto|on|off",
		(int)length, text);
}

int rdma_options_parse(struct rdma_options *options, const struct address *address,
		       struct jaunt_error *error)
{
	const char *text = address->options;
	int result = 0;

	*options = (struct rdma_options){
		.traffic_class = -1, .ack_timeout = -1, .retries = 7, .odp = ON_DEMAND_MAY};
	while (*text && !result) {
		size_t length = strcspn(text, ",");
		result = parse_one(options, text, length, error);
		text += length + (text[length] == ',');
	}
	return result;
}
