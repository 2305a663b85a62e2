/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages.
 *
 * Theory of operation
 *
 * Unpacking has three gates, each cheaper than the next. The length in front is compared with
 * CONTROL_MESSAGE_MAX before a byte behind it is waited for. protobuf-c then builds the message out
 * of a budget of memory: the bound on the wire alone is not enough, since an empty sub-message
 * costs two bytes there and about a hundred in memory, so that 4 MiB could grow into hundreds. At
 * last check_message() bounds every count, length and number by what the protocol says, so that the
 * engine may index and multiply without looking again.
 *
 * Fields that are unknown here are skipped (a newer peer may say more); a message whose kind is
 * unknown is an error, for nobody can guess what it asked for. A newer peer may only send one to a
 * side whose Hello named the feature.
 *
 * Texts may end on a terminal, so control characters other than tab and newline are refused.
 */
#include "proto/control.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "proto/frame.h"

#define LENGTH_BYTES   4
#define PAGE_BYTES_MIN 4096u

/* --- Memory of unpacking ------------------------------------------------------------------ */

struct budget {
	size_t left;
	bool exceeded, no_memory;
};

static void *budget_alloc(void *data, size_t bytes)
{
	struct budget *budget = data;

	if (bytes > budget->left) {
		budget->exceeded = true;
		return NULL;
	}
	void *memory = malloc(bytes);
	if (!memory) {
		budget->no_memory = true;
		return NULL;
	}
	/* Nothing is given back on free: temporary memory counts too, and no size need be kept. */
	budget->left -= bytes;
	return memory;
}

static void budget_free(void *data, void *memory)
{
	free(memory);
}

/* --- What a message may hold -------------------------------------------------------------- */

/* All of these return 0 or -EPROTO, naming what was wrong. */

static int bad(struct jaunt_error *error, const char *what)
{
	return error_set(error, EPROTO, "protocol-error",
			 "the peer sent a control message with %s; if both hosts run the same "
			 "version of jaunt, please report this",
			 what);
}

static int check_text(const char *text, size_t max, const char *what, struct jaunt_error *error)
{
	size_t length = strnlen(text, max + 1);

	if (length > max)
		return error_set(
			error, EPROTO, "protocol-error",
			"the peer sent a control message whose %s is longer than %zu bytes", what,
			max);
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)text[i];
		if ((c < ' ' && c != '\t' && c != '\n') || c == 0x7f)
			return error_set(error, EPROTO, "protocol-error",
					 "the peer sent a control message with control characters "
					 "in its %s",
					 what);
	}
	return 0;
}

static int check_texts(char *const *texts, size_t count, const char *what,
		       struct jaunt_error *error)
{
	if (count > CONTROL_TEXTS_MAX)
		return error_set(error, EPROTO, "protocol-error",
				 "the peer sent a control message with %zu %s; %u are possible",
				 count, what, CONTROL_TEXTS_MAX);
	for (size_t i = 0; i < count; i++) {
		int rc = check_text(texts[i], CONTROL_STRING_MAX, what, error);
		if (rc)
			return rc;
	}
	return 0;
}

static int check_reason(const char *reason, const char *text, struct jaunt_error *error)
{
	int rc = check_text(reason, CONTROL_STRING_MAX, "reason", error);
	return rc ? rc : check_text(text, CONTROL_STRING_MAX, "text", error);
}

static int check_hello(const Jaunt__Hello *hello, struct jaunt_error *error)
{
	const struct {
		const char *text, *what;
	} texts[] = {
		{hello->software, "software"}, {hello->build, "build"},     {hello->host, "host"},
		{hello->kernel, "kernel"},     {hello->boot_id, "boot_id"},
	};

	if (!hello->protocol_min || hello->protocol_min > hello->protocol_max)
		return bad(error, "an impossible range of protocol versions");
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		int rc = check_text(texts[i].text, CONTROL_STRING_MAX, texts[i].what, error);
		if (rc)
			return rc;
	}
	int rc = check_texts(hello->features, hello->n_features, "features", error);
	return rc ? rc : check_texts(hello->required, hello->n_required, "features", error);
}

static int check_region(const Jaunt__Region *region, struct jaunt_error *error)
{
	uint64_t page = region->page_bytes;

	/* A page travels in one frame. */
	if (page < PAGE_BYTES_MIN || page > FRAME_PAYLOAD_MAX || page & (page - 1))
		return bad(error, "a region of an impossible page size");
	if (!region->bytes || region->bytes % page)
		return bad(error, "a region that is not a whole number of pages");
	if (region->guest_address % page)
		return bad(error, "a region that does not start on a page");
	if (region->guest_address > UINT64_MAX - region->bytes)
		return bad(error, "a region that ends beyond the address space");
	return check_text(region->name, CONTROL_STRING_MAX, "region name", error);
}

static int check_configure(const Jaunt__Configure *configure, struct jaunt_error *error)
{
	if (configure->session.len != SESSION_ID_BYTES)
		return bad(error, "a session identifier of the wrong length");
	if (configure->secret.len != SESSION_SECRET_BYTES)
		return bad(error, "a session secret of the wrong length");
	if (!configure->streams || configure->streams > CONTROL_CHANNELS_MAX)
		return bad(error, "an impossible number of streams (1 to 64 are possible)");
	if (!configure->n_regions || configure->n_regions > JAUNT_MAX_REGIONS)
		return bad(error, "an impossible number of memory regions (1 to 64 are possible)");
	if (configure->n_properties > JAUNT_MAX_PROPERTIES)
		return bad(error, "more than 1024 properties of the VM");

	int rc = check_text(configure->vm_name, CONTROL_STRING_MAX, "VM name", error);
	if (!rc)
		rc = check_text(configure->driver, CONTROL_STRING_MAX, "driver", error);
	if (!rc)
		rc = check_text(configure->mode, CONTROL_STRING_MAX, "mode", error);
	for (size_t i = 0; !rc && i < configure->n_regions; i++)
		rc = check_region(configure->regions[i], error);
	for (size_t i = 0; !rc && i < configure->n_properties; i++) {
		const Jaunt__Property *property = configure->properties[i];
		rc = check_text(property->key, CONTROL_STRING_MAX, "property's key", error);
		if (!rc)
			rc = check_text(property->value, CONTROL_VALUE_MAX, "property's value",
					error);
	}
	if (!rc && configure->n_allowed > JAUNT_MAX_ALLOWED)
		return bad(error, "more than 64 differences that are allowed");
	return rc ? rc
		  : check_texts(configure->allowed, configure->n_allowed, "allowed differences",
				error);
}

static int check_refused(const Jaunt__Refused *refused, struct jaunt_error *error)
{
	int rc = check_text(refused->reason, CONTROL_STRING_MAX, "reason", error);

	if (!rc)
		rc = check_texts(refused->texts, refused->n_texts, "texts", error);
	if (!rc && refused->n_differences > CONTROL_ITEMS_MAX)
		return bad(error, "more than 256 differences");
	for (size_t i = 0; !rc && i < refused->n_differences; i++) {
		const Jaunt__Difference *difference = refused->differences[i];
		rc = check_text(difference->item, CONTROL_STRING_MAX, "difference", error);
		if (!rc)
			rc = check_reason(difference->source, difference->target, error);
		if (!rc)
			rc = check_text(difference->advice, CONTROL_STRING_MAX, "advice", error);
	}
	return rc;
}

static int check_freeze(const Jaunt__Freeze *freeze, struct jaunt_error *error)
{
	if (freeze->n_dirty > CONTROL_RUNS_MAX)
		return bad(error, "more than 65536 dirty runs");
	if (freeze->n_unexposed > CONTROL_RUNS_MAX)
		return bad(error, "more than 65536 runs that are not exposed any more");
	for (size_t i = 0; i < freeze->n_dirty; i++) {
		const Jaunt__Run *run = freeze->dirty[i];
		if (run->region >= JAUNT_MAX_REGIONS)
			return bad(error, "a dirty run in an impossible region");
		if (!run->page_count || run->first_page > UINT64_MAX - run->page_count)
			return bad(error, "an impossible dirty run");
	}
	for (size_t i = 0; i < freeze->n_unexposed; i++) {
		const Jaunt__Run *run = freeze->unexposed[i];
		if (run->region >= JAUNT_MAX_REGIONS || !run->page_count ||
		    run->first_page > UINT64_MAX - run->page_count)
			return bad(error, "an impossible run that is not exposed any more");
	}
	return 0;
}

static int check_exposed(const Jaunt__Exposed *exposed, struct jaunt_error *error)
{
	if (exposed->n_chunks > CONTROL_CHUNKS_MAX)
		return bad(error, "more than 4096 chunks of exposed memory");
	for (size_t i = 0; i < exposed->n_chunks; i++) {
		const Jaunt__Chunk *chunk = exposed->chunks[i];
		if (chunk->region >= JAUNT_MAX_REGIONS || !chunk->page_count ||
		    chunk->first_page > UINT64_MAX - chunk->page_count)
			return bad(error, "an impossible chunk of exposed memory");
		/* As many bytes as pages of the largest size would have, to be safe from overflow.
		 */
		if (chunk->page_count > UINT64_MAX / FRAME_PAYLOAD_MAX ||
		    chunk->address > UINT64_MAX - chunk->page_count * FRAME_PAYLOAD_MAX)
			return bad(error, "a chunk of exposed memory beyond the address space");
	}
	return 0;
}

/* A message of an unknown kind leaves its number behind, among the fields that were skipped. */
static int check_unknown(const Jaunt__Control *message, struct jaunt_error *error)
{
	if (!message->base.n_unknown_fields)
		return bad(error, "nothing in it");
	return error_set(error, EPROTO, "protocol-error",
			 "the peer sent a control message of kind %u, which this version of jaunt "
			 "(" JAUNT_VERSION
			 ") does not know; install the newer version on both hosts",
			 message->base.unknown_fields[0].tag);
}

static int check_message(const Jaunt__Control *message, struct jaunt_error *error)
{
	switch (message->message_case) {
	case JAUNT__CONTROL__MESSAGE_HELLO:
		return check_hello(message->hello, error);
	case JAUNT__CONTROL__MESSAGE_CONFIGURE:
		return check_configure(message->configure, error);
	case JAUNT__CONTROL__MESSAGE_READY:
		if (!message->ready->fault_threads ||
		    message->ready->fault_threads > CONTROL_CHANNELS_MAX)
			return bad(error, "an impossible number of fault threads");
		return 0;
	case JAUNT__CONTROL__MESSAGE_REFUSED:
		return check_refused(message->refused, error);
	case JAUNT__CONTROL__MESSAGE_FREEZE:
		return check_freeze(message->freeze, error);
	case JAUNT__CONTROL__MESSAGE_EXPOSED:
		return check_exposed(message->exposed, error);
	case JAUNT__CONTROL__MESSAGE_STATE:
		if (message->state->bytes.len > CONTROL_STATE_CHUNK)
			return bad(error, "more than 1 MiB of device state");
		return 0;
	case JAUNT__CONTROL__MESSAGE_ABORT:
		return check_reason(message->abort->reason, message->abort->text, error);
	case JAUNT__CONTROL__MESSAGE_FAILED:
		return check_reason(message->failed->reason, message->failed->text, error);
	case JAUNT__CONTROL__MESSAGE_PROGRESS:
		return check_text(message->progress->blocked, CONTROL_STRING_MAX, "reason", error);
	case JAUNT__CONTROL__MESSAGE_COMPLETE:
		if (!message->complete->progress)
			return bad(error, "no figures in COMPLETE");
		return check_text(message->complete->progress->blocked, CONTROL_STRING_MAX,
				  "reason", error);
	case JAUNT__CONTROL__MESSAGE_ATTACHED:
	case JAUNT__CONTROL__MESSAGE_LOADED:
	case JAUNT__CONTROL__MESSAGE_COMMIT:
	case JAUNT__CONTROL__MESSAGE_CANCEL_REQUEST:
	case JAUNT__CONTROL__MESSAGE_RESUMED:
	case JAUNT__CONTROL__MESSAGE_RELEASED:
	case JAUNT__CONTROL__MESSAGE_PING:
	case JAUNT__CONTROL__MESSAGE_PONG:
	case JAUNT__CONTROL__MESSAGE_SET_PUSH:
		return 0;
	case JAUNT__CONTROL__MESSAGE__NOT_SET:
	default:
		return check_unknown(message, error);
	}
}

/* --- The interface ------------------------------------------------------------------------ */

int control_pack(const Jaunt__Control *message, uint8_t **bytes, size_t *count)
{
	size_t length = jaunt__control__get_packed_size(message);

	if (length > CONTROL_MESSAGE_MAX)
		return -EMSGSIZE;
	uint8_t *packed = malloc(LENGTH_BYTES + length);
	if (!packed)
		return -ENOMEM;
	uint32_t prefix = htole32((uint32_t)length);
	memcpy(packed, &prefix, LENGTH_BYTES);
	jaunt__control__pack(message, packed + LENGTH_BYTES);
	*bytes = packed;
	*count = LENGTH_BYTES + length;
	return 0;
}

int control_unpack(const uint8_t *data, size_t bytes, Jaunt__Control **message, size_t *consumed,
		   size_t *needed, struct jaunt_error *error)
{
	uint32_t length;

	if (bytes < LENGTH_BYTES) {
		*needed = LENGTH_BYTES;
		return 0;
	}
	memcpy(&length, data, LENGTH_BYTES);
	length = le32toh(length);
	if (length > CONTROL_MESSAGE_MAX)
		return error_set(
			error, EMSGSIZE, "protocol-error",
			"the peer announced a control message of %u bytes; %u are "
			"possible: it probably speaks something else than jaunt's protocol",
			length, CONTROL_MESSAGE_MAX);
	if (bytes - LENGTH_BYTES < length) {
		*needed = LENGTH_BYTES + (size_t)length;
		return 0;
	}

	struct budget budget = {.left = CONTROL_MEMORY_MAX};
	ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
	Jaunt__Control *unpacked = jaunt__control__unpack(&allocator, length, data + LENGTH_BYTES);
	if (!unpacked) {
		if (budget.no_memory)
			return error_set(
				error, ENOMEM, "no-memory",
				"no memory for a control message of %u bytes; free some on "
				"this host",
				length);
		if (budget.exceeded)
			return error_set(error, EMSGSIZE, "protocol-error",
					 "the peer sent a control message that needs more than %u "
					 "bytes of memory",
					 CONTROL_MEMORY_MAX);
		return bad(error, "bytes that cannot be decoded");
	}
	int rc = check_message(unpacked, error);
	if (rc) {
		control_free(unpacked);
		return rc;
	}
	*message = unpacked;
	*consumed = LENGTH_BYTES + (size_t)length;
	return 1;
}

void control_free(Jaunt__Control *message)
{
	/* The budget's memory came from malloc(), so protobuf-c's own free() will do. */
	if (message)
		jaunt__control__free_unpacked(message, NULL);
}

const char *control_name(const Jaunt__Control *message)
{
	switch (message->message_case) {
	case JAUNT__CONTROL__MESSAGE_HELLO:
		return "HELLO";
	case JAUNT__CONTROL__MESSAGE_CONFIGURE:
		return "CONFIGURE";
	case JAUNT__CONTROL__MESSAGE_READY:
		return "READY";
	case JAUNT__CONTROL__MESSAGE_REFUSED:
		return "REFUSED";
	case JAUNT__CONTROL__MESSAGE_ATTACHED:
		return "ATTACHED";
	case JAUNT__CONTROL__MESSAGE_FREEZE:
		return "FREEZE";
	case JAUNT__CONTROL__MESSAGE_STATE:
		return "STATE";
	case JAUNT__CONTROL__MESSAGE_LOADED:
		return "LOADED";
	case JAUNT__CONTROL__MESSAGE_COMMIT:
		return "COMMIT";
	case JAUNT__CONTROL__MESSAGE_ABORT:
		return "ABORT";
	case JAUNT__CONTROL__MESSAGE_CANCEL_REQUEST:
		return "CANCEL-REQUEST";
	case JAUNT__CONTROL__MESSAGE_RESUMED:
		return "RESUMED";
	case JAUNT__CONTROL__MESSAGE_FAILED:
		return "FAILED";
	case JAUNT__CONTROL__MESSAGE_PROGRESS:
		return "PROGRESS";
	case JAUNT__CONTROL__MESSAGE_COMPLETE:
		return "COMPLETE";
	case JAUNT__CONTROL__MESSAGE_RELEASED:
		return "RELEASED";
	case JAUNT__CONTROL__MESSAGE_PING:
		return "PING";
	case JAUNT__CONTROL__MESSAGE_PONG:
		return "PONG";
	case JAUNT__CONTROL__MESSAGE_SET_PUSH:
		return "SET-PUSH";
	case JAUNT__CONTROL__MESSAGE_EXPOSED:
		return "EXPOSED";
	case JAUNT__CONTROL__MESSAGE__NOT_SET:
	default:
		return "UNKNOWN";
	}
}

/* --- Negotiation -------------------------------------------------------------------------- */

static const char *find_missing(char *const *required, size_t required_count, char *const *features,
				size_t feature_count)
{
	for (size_t i = 0; i < required_count; i++) {
		size_t k = 0;
		while (k < feature_count && strcmp(required[i], features[k]) != 0)
			k++;
		if (k == feature_count)
			return required[i];
	}
	return NULL;
}

int control_negotiate(const Jaunt__Hello *mine, const Jaunt__Hello *theirs,
		      struct jaunt_error *error)
{
	uint32_t version = mine->protocol_max < theirs->protocol_max ? mine->protocol_max
								     : theirs->protocol_max;
	const char *peer = theirs->software && *theirs->software ? theirs->software : "unnamed";
	const char *missing;

	if (version < mine->protocol_min || version < theirs->protocol_min)
		return error_set(error, EPROTONOSUPPORT, "version-mismatch",
				 "this side speaks protocol versions %u to %u, the peer (%s) %u to "
				 "%u; install the same version of jaunt on both hosts",
				 mine->protocol_min, mine->protocol_max, peer, theirs->protocol_min,
				 theirs->protocol_max);
	missing = find_missing(mine->required, mine->n_required, theirs->features,
			       theirs->n_features);
	if (missing)
		return error_set(error, EPROTONOSUPPORT, "feature-missing",
				 "this side needs the feature \"%s\", which the peer (%s) does not "
				 "have; install the same version of jaunt on both hosts",
				 missing, peer);
	missing = find_missing(theirs->required, theirs->n_required, mine->features,
			       mine->n_features);
	if (missing)
		return error_set(error, EPROTONOSUPPORT, "feature-missing",
				 "the peer (%s) needs the feature \"%s\", which this side does not "
				 "have; install the same version of jaunt on both hosts",
				 peer, missing);
	return (int)version;
}
