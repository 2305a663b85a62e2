/* SPDX-License-Identifier: Apache-2.0 */
/* What a process that died leaves of QEMU's settings, for the one that goes on. */
#include <criterion/criterion.h>
#include <string.h>

#include "vmm/qemu/settings.h"

TestSuite(settings, .timeout = 60);

static struct settings some(void)
{
	/* One that Jaunt turns on and was off, one that it turns off and was on, and two that are
	 * as it wants them. */
	return (struct settings){
		.ahead = true,
		.capabilities = json_pack("[{s:s, s:b}, {s:s, s:b}, {s:s, s:b}, {s:s, s:b}]",
					  "capability", "events", "state", 0, "capability",
					  "multifd", "state", 1, "capability", "xbzrle", "state", 0,
					  "capability", "pause-before-switchover", "state", 1),
		.parameters = json_pack("{s:i, s:s}", "downtime-limit", 123, "tls-creds", "id")};
}

Test(settings, that_were_changed_are_found_by_the_next_process)
{
	struct settings before = some(), after = {0};
	char text[4096];

	cr_assert(settings_write(&before, text, sizeof(text)));
	cr_assert(settings_read(&after, text));
	cr_assert(after.ahead);
	json_t *wanted = json_pack("[{s:s, s:b}, {s:s, s:b}]", "capability", "events", "state", 0,
				   "capability", "multifd", "state", 1);
	cr_assert(json_equal(after.capabilities, wanted));
	cr_assert(json_equal(after.parameters, before.parameters));
	json_decref(wanted);
	settings_forget(&before);
	settings_forget(&after);
}

Test(settings, that_do_not_fit_are_not_written_in_part)
{
	struct settings before = some();
	char text[4096] = "";

	cr_assert_not(settings_write(&before, text, 40));
	cr_assert_str_eq(text, "");
	settings_forget(&before);
}

Test(settings, that_make_no_sense_are_none)
{
	static const char *const texts[] = {
		"",
		"x",
		"[]",
		"{}",
		"{\"ahead\": true, \"capabilities\": {}, \"parameters\": {}}",
		"{\"ahead\": 1, \"capabilities\": [], \"parameters\": {}}",
		"{\"ahead\": true, \"capabilities\": [], \"parameters\": []}"};
	struct settings settings = {0};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		cr_assert_not(settings_read(&settings, texts[i]), "%s", texts[i]);
		cr_assert_null(settings.capabilities);
		cr_assert_null(settings.parameters);
	}
}
