/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two lists of facts about QEMUs, of which a peer tells one: keys and values in turn, each up to a
 * zero byte. The first byte says how many of them are the source's. Whatever they hold, the
 * comparison ends, tells what it found as text, and finds the same again.
 */
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/qemu/compare.h"

#define FACTS_EACH 64

static struct compared first, second;

/* Whether no difference breaks what is promised of all of them. */
static void check(const struct compared *compared)
{
	for (size_t i = 0; i < compared->count; i++) {
		const struct jaunt_difference *one = &compared->all[i];
		FUZZ_CHECK(one->item && one->source && one->target && one->advice);
		FUZZ_CHECK(strlen(one->item) <= 200 && strlen(one->source) <= 200 &&
			   strlen(one->target) <= 200 && strlen(one->advice) <= 1024);
		FUZZ_CHECK(!strchr(one->item, '\n') && !strchr(one->source, '\n'));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct jaunt_property list[2 * FACTS_EACH];
	struct jaunt_error error;
	char *text = malloc(bytes + 2), *at = text;
	size_t count = 0;

	FUZZ_CHECK(text);
	if (bytes)
		memcpy(text, data, bytes);
	text[bytes] = text[bytes + 1] = '\0';
	size_t sources = bytes ? data[0] % FACTS_EACH : 0;
	while (at < text + bytes && count < 2 * FACTS_EACH) {
		list[count].key = at;
		at += strlen(at) + 1;
		list[count++].value = at <= text + bytes ? at : "";
		at += at <= text + bytes ? strlen(at) + 1 : 1;
	}
	if (sources > count)
		sources = count;
	struct jaunt_description source = {
		.properties = list, .property_count = sources, .rounds = bytes & 1};
	struct facts here = {.all = list + sources, .count = count - sources};
	int result = compare_facts(&source, &here, &first, &error);
	FUZZ_CHECK(result == (first.count ? -22 : 0));
	check(&first);
	FUZZ_CHECK(compare_facts(&source, &here, &second, &error) == result);
	FUZZ_CHECK(second.count == first.count && second.beyond == first.beyond);
	compared_close(&first);
	compared_close(&second);
	free(text);
	return 0;
}
