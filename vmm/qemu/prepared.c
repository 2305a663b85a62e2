/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/prepared.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/qemu/ask.h"
#include "vmm/qemu/config.h"

/* Of all the block layer says only what has been put into which device: sizes may change at any
 * time, the disk being the source's until the guest comes. */
static json_t *mark_of_blocks(struct ask *asking)
{
	json_t *blocks = ask(asking, "query-block", NULL), *marks = json_array(), *block;
	size_t i;

	json_array_foreach (blocks, i, block) {
		const json_t *inserted = json_object_get(block, "inserted");
		json_array_append_new(marks, json_pack("{s:s, s:s, s:s, s:s, s:s}", "device",
						       ask_text(block, "device"), "qdev",
						       ask_text(block, "qdev"), "file",
						       ask_text(inserted, "file"), "node",
						       ask_text(inserted, "node-name"), "backing",
						       ask_text(inserted, "backing_file")));
	}
	json_decref(blocks);
	return marks;
}

/* NULL: QEMU did not tell. */
static char *mark_of(struct qmp *qmp, unsigned timeout_ms)
{
	static const char *const lists[] = {"/machine/peripheral", "/machine/peripheral-anon",
					    "/machine/unattached", "/objects"};
	static const char *const commands[] = {"query-jobs", "query-block-exports", "query-memdev",
					       "query-memory-devices", "query-fdsets"};
	struct jaunt_error error = {.code = 0};
	struct ask asking = {.qmp = qmp, .timeout_ms = timeout_ms, .error = &error};
	json_t *all = json_array();

	json_array_append_new(all, json_integer(qmp_process(qmp)));
	json_array_append_new(all, mark_of_blocks(&asking));
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		json_array_append_new(all, ask_list(&asking, lists[i]));
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		json_array_append_new(all, ask(&asking, commands[i], NULL));
	char *mark = asking.result ? NULL : json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS);
	json_decref(all);
	return mark;
}

void prepared_make(struct prepared *prepared, struct qmp *qmp, unsigned timeout_ms)
{
	struct jaunt_error error = {.code = 0};

	prepared_close(prepared);
	/* The mark first: a change in between shows afterwards. */
	char *mark = mark_of(qmp, timeout_ms);
	if (!mark || config_collect(&prepared->facts, qmp, timeout_ms, &error)) {
		free(mark);
		prepared_close(prepared);
		return;
	}
	prepared->mark = mark;
}

int prepared_take(struct prepared *prepared, struct qmp *qmp, unsigned timeout_ms,
		  struct facts *facts, struct jaunt_error *error)
{
	char *mark = prepared->mark ? mark_of(qmp, timeout_ms) : NULL;
	bool holds = mark && strcmp(mark, prepared->mark) == 0;
	int result = 0;

	free(mark);
	if (holds) {
		*facts = prepared->facts;
		prepared->facts = (struct facts){.all = NULL};
	} else {
		result = config_collect(facts, qmp, timeout_ms, error);
	}
	prepared_close(prepared);
	return result;
}

void prepared_close(struct prepared *prepared)
{
	facts_close(&prepared->facts);
	free(prepared->mark);
	prepared->mark = NULL;
}
