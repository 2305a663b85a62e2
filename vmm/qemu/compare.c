/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Both lists are put into the order of their keys and walked side by side; a key that only one of
 * them has is a difference like any other. Values of several lines are compared in the same way,
 * line by line, as items of their own, so that what is told is the one thing that differs and not
 * all of the device. Nothing is dropped in silence: what there is no rule for must be the same
 * text, and when there are more differences than are kept their number is told.
 */
#include "vmm/qemu/compare.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "vmm/qemu/identity.h"
#include "vmm/qemu/pairs.h"
#include "vmm/qemu/rules.h"

#define SHOWN_MAX 200 /* bytes of a value */
#define ITEM_MAX  (2 * FACTS_KEY_MAX)

struct comparison {
	const struct jaunt_description *source;
	struct compared *differences;
	bool one_host;
	bool other_release; /* of QEMU, and that is allowed: properties come and go with it */
	bool no_memory;
};

static void compare_item(struct comparison *comparison, const char *item, const char *source,
			 const char *here);

/* --- What is told -------------------------------------------------------------------------------
 */

static bool is_allowed(const struct comparison *comparison, const char *item)
{
	for (size_t i = 0; i < comparison->source->allowed_count; i++)
		if (strcmp(comparison->source->allowed[i], item) == 0)
			return true;
	return false;
}

/* A value on one line, cut to what fits. */
static char *shown(const char *value)
{
	char text[SHOWN_MAX + 1];
	size_t bytes = 0;

	for (; value && *value && bytes < SHOWN_MAX; value++)
		text[bytes++] = *value == '\n' ? ',' : *value;
	text[bytes] = '\0';
	if (value && *value)
		memcpy(text + SHOWN_MAX - 3, "...", 3);
	return strdup(text);
}

/* How the rule's advice and what it says of the operator's word go together. */
static char *advise(const char *item, bool may, bool asked, const char *advice)
{
	char text[1024];

	if (may)
		snprintf(text, sizeof(text),
			 "%.600s; or, if you know that it does no harm, "
			 "--allow-difference '%.300s'",
			 advice, item);
	else
		snprintf(text, sizeof(text), "%.600s%s", advice,
			 asked ? "; this is never safe, so it cannot be allowed" : "");
	return strdup(text);
}

static void tell(struct comparison *comparison, const char *item, const char *source,
		 const char *here, bool may, const char *advice)
{
	struct compared *differences = comparison->differences;
	bool asked = is_allowed(comparison, item);

	if (may && asked)
		return;
	if (differences->count == COMPARE_MAX) {
		differences->beyond++;
		return;
	}
	struct jaunt_difference *one = &differences->all[differences->count++];
	*one = (struct jaunt_difference){.item = shown(item),
					 .source = shown(source),
					 .target = shown(here),
					 .advice = advise(item, may, asked, advice),
					 .allowable = may};
	if (!one->item || !one->source || !one->target || !one->advice)
		comparison->no_memory = true;
}

/* --- Each way of comparing ----------------------------------------------------------------------
 */

struct words {
	struct words_shown {
		char text[SHOWN_MAX + 8];
		size_t bytes;
	} there, here; /* those of one side only */
	bool other_release;
	enum how how;
};

static void show_word(struct words_shown *shown, const char *word)
{
	size_t left = sizeof(shown->text) - shown->bytes;
	int bytes =
		snprintf(shown->text + shown->bytes, left, "%s%s", shown->bytes ? " " : "", word);

	shown->bytes += bytes < 0 ? 0 : (size_t)bytes < left ? (size_t)bytes : left - 1;
}

/* Switches by which a release of QEMU makes the processor that an older one had; no features of it.
 * They come with what they switch off, and go with the last machine type that needs them. */
static bool is_compatibility(const char *word)
{
	return strncmp(word, "legacy-", 7) == 0 || strncmp(word, "x-", 2) == 0 ||
	       strcmp(word, "full-cpuid-auto-level") == 0;
}

static void visit_word(void *context, const char *name, const char *source, const char *here)
{
	struct words *words = context;

	if (words->other_release && (!source || !here) &&
	    (is_compatibility(name) || (!source && words->how == HOW_OFFER)))
		return;
	if (!here)
		show_word(&words->there, name);
	else if (!source)
		show_word(&words->here, name);
}

/* Where all that the source has is here, the guest finds what it knows. */
static void compare_words(struct comparison *comparison, const char *item, const struct rule *rule,
			  const char *source, const char *here)
{
	struct words words = {.other_release = comparison->other_release, .how = rule->how};
	struct pairs a, b;
	int result = pairs_of_words(&a, source);

	if (pairs_of_words(&b, here) || result)
		comparison->no_memory = true;
	else
		pairs_walk(&a, &b, visit_word, &words);
	pairs_close(&a);
	pairs_close(&b);
	if (words.there.bytes || words.here.bytes)
		tell(comparison, item, words.there.text, words.here.text,
		     rule->may && !words.there.bytes, rule->advice);
}

static void compare_equal(struct comparison *comparison, const char *item, const struct rule *rule,
			  const char *source, const char *here)
{
	if (!source || !here || strcmp(source, here) != 0)
		tell(comparison, item, source, here, rule->may, rule->advice);
}

struct lines {
	struct comparison *comparison;
	const char *key;
};

static void visit_line(void *context, const char *name, const char *source, const char *here)
{
	const struct lines *lines = context;
	char item[ITEM_MAX];

	/* Another release of QEMU has other properties; its machine type sees to what they are. */
	if ((!source || !here) && lines->comparison->other_release)
		return;
	snprintf(item, sizeof(item), "%.250s: %.250s", lines->key, name);
	/* A line holds no more lines, whatever it looks like. */
	if (rule_of(item)->how == HOW_LINES)
		compare_equal(lines->comparison, item, rule_of(item), source, here);
	else
		compare_item(lines->comparison, item, source, here);
}

/* What something is, of all that there is to say about it. */
static const char *summary(const char *value, char *type, size_t room)
{
	return facts_line(value, "type", type, room) ? type : value;
}

static void compare_lines(struct comparison *comparison, const char *key, const struct rule *rule,
			  const char *source, const char *here)
{
	char source_type[SHOWN_MAX], here_type[SHOWN_MAX];
	struct lines lines = {comparison, key};
	struct pairs a, b;
	int result = pairs_of_lines(&a, source);

	if (pairs_of_lines(&b, here) || result)
		comparison->no_memory = true;
	else if (source && here)
		pairs_walk(&a, &b, visit_line, &lines);
	else
		tell(comparison, key, summary(source, source_type, sizeof(source_type)),
		     summary(here, here_type, sizeof(here_type)), rule->may, rule->advice);
	pairs_close(&a);
	pairs_close(&b);
}

/* A storage as a person knows it, with what told the two apart. */
static void show_storage(char *text, size_t room, const char *value)
{
	static const char *const names[] = {"file",   "url",      "format",    "filesystem",
					    "server", "identity", "snapshots", "problem"};
	char one[FACTS_VALUE_MAX];
	size_t used = 0;

	text[0] = '\0';
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && used < room; i++)
		if (facts_line(value, names[i], one, sizeof(one)))
			used += (size_t)snprintf(text + used, room - used, "%s%s%s%.150s",
						 used ? ", " : "", i > 1 ? names[i] : "",
						 i > 1 ? " " : "", one);
}

static void compare_storage(struct comparison *comparison, const char *item,
			    const struct rule *rule, const char *source, const char *here)
{
	char there_text[SHOWN_MAX * 3], here_text[SHOWN_MAX * 3], advice[400];
	const char *why = "";

	if (!source || !here) {
		tell(comparison, item, source, here, rule->may, "give both the same disks");
		return;
	}
	enum identity found = identity_of(source, here, comparison->one_host, &why);
	if (found == IDENTITY_SAME)
		return;
	show_storage(there_text, sizeof(there_text), source);
	show_storage(here_text, sizeof(here_text), here);
	snprintf(advice, sizeof(advice),
		 "%s; both sides must see the same storage: give the target the source's, by a "
		 "filesystem, block device or server that both reach",
		 why);
	tell(comparison, item, there_text, here_text,
	     rule->may || found == IDENTITY_COPY || found == IDENTITY_UNKNOWN, advice);
}

static bool same_line(const char *source, const char *here, const char *name)
{
	char a[256], b[256];

	facts_line(source, name, a, sizeof(a));
	facts_line(here, name, b, sizeof(b));
	return strcmp(a, b) == 0;
}

/* QEMU writes what came with the guest into the target's file. */
static void compare_flash(struct comparison *comparison, const char *item, const struct rule *rule,
			  const char *source, const char *here)
{
	const char *why;

	if (!source || !here || !same_line(source, here, "format") ||
	    !same_line(source, here, "virtual size") || !same_line(source, here, "access")) {
		tell(comparison, item, source, here, false, rule->advice);
		return;
	}
	char snapshots[64];
	if (facts_line(source, "snapshots", snapshots, sizeof(snapshots)))
		if (identity_of(source, here, comparison->one_host, &why) != IDENTITY_SAME)
			tell(comparison, item, source, here, false, why);
}

static bool parse_version(const char *text, unsigned *release, unsigned *patch)
{
	unsigned major, minor;

	if (!text || sscanf(text, "%3u.%3u.%3u", &major, &minor, patch) != 3)
		return false;
	*release = major * 1000 + minor;
	return true;
}

static void compare_version(struct comparison *comparison, const char *item, const char *source,
			    const char *here)
{
	unsigned there_release, here_release, there_patch, here_patch;

	if (!parse_version(source, &there_release, &there_patch) ||
	    !parse_version(here, &here_release, &here_patch))
		tell(comparison, item, source, here, false, "not a version of QEMU");
	else if (here_release < there_release)
		tell(comparison, item, source, here, false,
		     "an older release of QEMU need not read the state of a newer one");
	else if (here_release > there_release)
		tell(comparison, item, source, here, true,
		     "QEMU means a newer release to read an older one's state, for a machine type "
		     "with a version");
	else if (here_patch != there_patch)
		tell(comparison, item, source, here, true,
		     "the same release with other repairs: QEMU means them to fit together");
}

/* What cannot move, by the side that has it. */
static void refuse(struct comparison *comparison, const char *item, const char *source,
		   const char *here)
{
	const char *said = source ? source : here;
	char why[SHOWN_MAX], there_text[SHOWN_MAX], advice[600], only[16], may[8];

	facts_line(said, "only", only, sizeof(only));
	if (strcmp(only, "rounds") == 0 && !comparison->source->rounds)
		return;
	facts_line(source, "why", there_text, sizeof(there_text));
	facts_line(here, "why", why, sizeof(why));
	facts_line(said, "advice", advice, sizeof(advice));
	facts_line(said, "may", may, sizeof(may));
	tell(comparison, item, there_text, why, strcmp(may, "yes") == 0, advice);
}

/* Two QEMUs of one host must not have the same file as their memory. */
static void compare_apart(struct comparison *comparison, const char *item, const struct rule *rule,
			  const char *source, const char *here)
{
	if (comparison->one_host && source && here && strcmp(source, here) == 0)
		tell(comparison, item, source, here, false, rule->advice);
}

static void compare_item(struct comparison *comparison, const char *item, const char *source,
			 const char *here)
{
	const struct rule *rule = rule_of(item);

	switch (rule->how) {
	case HOW_EQUAL:
		compare_equal(comparison, item, rule, source, here);
		break;
	case HOW_LINES:
		compare_lines(comparison, item, rule, source, here);
		break;
	case HOW_BOARD:
		if (comparison->other_release) /* the buses and the machine type are compared */
			break;
		compare_words(comparison, item, rule, source, here);
		break;
	case HOW_WORDS:
	case HOW_OFFER:
		compare_words(comparison, item, rule, source, here);
		break;
	case HOW_STORAGE:
		compare_storage(comparison, item, rule, source, here);
		break;
	case HOW_FLASH:
		compare_flash(comparison, item, rule, source, here);
		break;
	case HOW_APART:
		compare_apart(comparison, item, rule, source, here);
		break;
	case HOW_VERSION:
		compare_version(comparison, item, source, here);
		break;
	case HOW_REFUSED:
		refuse(comparison, item, source, here);
		break;
	case HOW_NOT:
		break;
	}
}

/* --- All of it ----------------------------------------------------------------------------------
 */

static const char *told(const struct jaunt_description *source, const char *key)
{
	for (size_t i = 0; i < source->property_count; i++)
		if (strcmp(source->properties[i].key, key) == 0)
			return source->properties[i].value;
	return NULL;
}

static bool on_one_host(const struct jaunt_description *source, const struct facts *here)
{
	char there_boot[64], here_boot[64];

	return facts_line(told(source, "host"), "boot", there_boot, sizeof(there_boot)) &&
	       facts_line(facts_find(here, "host"), "boot", here_boot, sizeof(here_boot)) &&
	       strcmp(there_boot, here_boot) == 0;
}

static bool of_other_releases(const struct jaunt_description *source, const struct facts *here)
{
	unsigned there, other, patch;

	return parse_version(told(source, "qemu version"), &there, &patch) &&
	       parse_version(facts_find(here, "qemu version"), &other, &patch) && there < other;
}

static void visit_fact(void *context, const char *name, const char *source, const char *here)
{
	compare_item(context, name, source, here);
}

/* One line of text for all of them, as far as they fit. */
static int summarise(const struct compared *differences, struct jaunt_error *error)
{
	size_t count = differences->count + differences->beyond, used = 0, shown;
	char text[900];

	text[0] = '\0';
	for (shown = 0; shown < differences->count; shown++) {
		const struct jaunt_difference *one = &differences->all[shown];
		char line[2 * SHOWN_MAX + 400];
		int bytes =
			snprintf(line, sizeof(line), "%s%s (source: %s; target: %s)",
				 shown ? ", " : "", one->item, one->source[0] ? one->source : "-",
				 one->target[0] ? one->target : "-");
		if (bytes < 0 || used + (size_t)bytes >= sizeof(text))
			break;
		memcpy(text + used, line, (size_t)bytes + 1);
		used += (size_t)bytes;
	}
	if (shown < count)
		return error_set(error, EINVAL, "configuration",
				 "the source's VM cannot move to the target's, for %zu reasons: "
				 "%s%sand %zu more",
				 count, text, shown ? ", " : "", count - shown);
	return error_set(error, EINVAL, "configuration",
			 "the source's VM cannot move to the target's, for %zu reason%s: %s", count,
			 count == 1 ? "" : "s", text);
}

int compare_facts(const struct jaunt_description *source, const struct facts *here,
		  struct compared *differences, struct jaunt_error *error)
{
	struct comparison comparison = {.source = source,
					.differences = differences,
					.one_host = on_one_host(source, here)};
	struct pairs a, b;

	differences->count = differences->beyond = 0;
	comparison.other_release =
		of_other_releases(source, here) && is_allowed(&comparison, "qemu version");
	int result = pairs_of_list(&a, source->properties, source->property_count);
	if (pairs_of_list(&b, here->all, here->count) || result)
		comparison.no_memory = true;
	else
		pairs_walk(&a, &b, visit_fact, &comparison);
	pairs_close(&a);
	pairs_close(&b);
	if (comparison.no_memory) {
		compared_close(differences);
		return error_set(error, ENOMEM, "no-memory", "no memory to compare the two VMs");
	}
	return differences->count ? summarise(differences, error) : 0;
}

void compared_close(struct compared *differences)
{
	for (size_t i = 0; i < differences->count; i++) {
		free((char *)differences->all[i].item);
		free((char *)differences->all[i].source);
		free((char *)differences->all[i].target);
		free((char *)differences->all[i].advice);
	}
	differences->count = differences->beyond = 0;
}
