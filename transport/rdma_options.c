/* SPDX-License-Identifier: Apache-2.0 */
/* What an address says about the fabric: "rdma:HOST:PORT,traffic-class=106,retries=3". */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "transport/rdma.h"

struct option {
	const char *name;
	unsigned long least, most;
};

enum { TRAFFIC_CLASS, ACK_TIMEOUT, RETRIES, POLL_US, OPTIONS };

static const struct option known[OPTIONS] = {
	[TRAFFIC_CLASS] = {"traffic-class", 0, 255},
	[ACK_TIMEOUT] = {"ack-timeout", 1, 31},
	[RETRIES] = {"retries", 0, 7},
	[POLL_US] = {"poll-us", 0, 1000},
};

/* What `odp' takes, in the order of enum on_demand. */
static const char *const odp_words[] = {"off", "auto", "on"};

static bool parse_odp(struct rdma_options *options, const char *word, size_t length)
{
	for (unsigned i = 0; i < sizeof(odp_words) / sizeof(odp_words[0]); i++)
		if (strlen(odp_words[i]) == length && !strncmp(word, odp_words[i], length)) {
			options->odp = (enum on_demand)i;
			return true;
		}
	return false;
}

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
	default:
		options->poll_us = (uint32_t)value;
	}
}

static int parse_one(struct rdma_options *options, const char *text, size_t length,
		     struct jaunt_error *error)
{
	if (length > 4 && !strncmp(text, "odp=", 4)) {
		if (parse_odp(options, text + 4, length - 4))
			return 0;
		return error_set(error, EINVAL, "bad-address", "'%.*s': odp is auto, on or off",
				 (int)length, text);
	}
	for (unsigned i = 0; i < OPTIONS; i++) {
		size_t name = strlen(known[i].name);
		char *end;
		if (length <= name || strncmp(text, known[i].name, name) || text[name] != '=')
			continue;
		errno = 0;
		unsigned long value = strtoul(text + name + 1, &end, 10);
		if (errno || end != text + length || text[name + 1] < '0' || text[name + 1] > '9' ||
		    value < known[i].least || value > known[i].most)
			return error_set(error, EINVAL, "bad-address",
					 "'%.*s': %s takes a number from %lu to %lu", (int)length,
					 text, known[i].name, known[i].least, known[i].most);
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
