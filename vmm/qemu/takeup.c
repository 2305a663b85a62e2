/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies with the agent for whoever goes on after the death of Jaunt's process at the target:
 * the engine's ledger, and what would otherwise be asked of QEMU, which answers nothing while its
 * monitor's thread waits for a page of the guest's that is missing. That is a note of its memory
 * and of its settings as they were before, and the files.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "vmm/qemu/vm.h"

#define NOTE_VERSION   2u
#define FILES_MAX      (AGENT_SLOTS - AGENT_FILE_SLOT)
#define SETTINGS_BYTES 4096

struct note {
	uint32_t magic, version;
	uint64_t count;
	struct {
		char id[64];
		uint64_t bytes, page_bytes, address;
	} regions[FILES_MAX];
	char name[64];
	uint32_t vcpus;
	char settings[SETTINGS_BYTES]; /* of QEMU's migration, as they were before; "" if too long
					*/
};

void qemu_keep_nothing(struct attach *attach)
{
	for (unsigned slot = AGENT_LEDGER_SLOT; slot < AGENT_SLOTS; slot++)
		attach_drop(attach, slot, NULL); /* empty or not */
}

/* --- Keeping ------------------------------------------------------------------------------------
 */

static int keep_note(struct qemu *vm, struct jaunt_error *error)
{
	struct note note = {.magic = AGENT_MAGIC,
			    .version = NOTE_VERSION,
			    .count = vm->regions.count,
			    .vcpus = vm->facts.vcpus};

	memcpy(note.name, vm->facts.name, sizeof(note.name));
	if (!settings_write(&vm->settings, note.settings, sizeof(note.settings)))
		note.settings[0] = '\0';
	for (size_t i = 0; i < vm->regions.count; i++) {
		const struct regions_one *one = &vm->regions.all[i];
		memcpy(note.regions[i].id, one->id, sizeof(note.regions[i].id));
		note.regions[i].bytes = one->bytes;
		note.regions[i].page_bytes = one->page_bytes;
		note.regions[i].address = one->address;
	}
	int fd = memfd_create("jaunt-note", MFD_CLOEXEC);
	if (fd < 0 || pwrite(fd, &note, sizeof(note), 0) != sizeof(note)) {
		int code = errno;
		if (fd >= 0)
			close(fd);
		return error_set(error, code, "no-memory", "a note about QEMU: %s", strerror(code));
	}
	int result = attach_keep(&vm->attach, AGENT_NOTE_SLOT, fd, error);
	close(fd);
	return result;
}

int qemu_keep(void *context, int fd, struct jaunt_error *error)
{
	struct qemu *vm = context;
	int result = 0;

	/* While the next process could still find them. */
	if (fd < 0 && !vm->spent)
		settings_restore(&vm->settings, vm->qmp);
	qemu_keep_nothing(&vm->attach);
	if (fd < 0)
		return 0;
	if (vm->regions.count > FILES_MAX)
		return error_set(error, ENOSPC, "too-many-regions",
				 "the agent has no room for %zu memory files", vm->regions.count);
	for (size_t i = 0; result == 0 && i < vm->regions.count; i++)
		result = attach_keep(&vm->attach, AGENT_FILE_SLOT + (unsigned)i,
				     vm->regions.all[i].fd, error);
	if (result == 0)
		result = keep_note(vm, error);
	/* The last: with it all is there. */
	return result ? result : attach_keep(&vm->attach, AGENT_LEDGER_SLOT, fd, error);
}

/* --- Finding it again ---------------------------------------------------------------------------
 */

int qemu_kept(void *context, struct jaunt_error *error)
{
	struct qemu *vm = context;

	return attach_take(&vm->attach, AGENT_LEDGER_SLOT, error);
}

/* QEMU can write to what it keeps. */
static bool is_sound(const struct note *note)
{
	if (note->magic != AGENT_MAGIC || note->version != NOTE_VERSION || !note->count ||
	    note->count > FILES_MAX)
		return false;
	for (size_t i = 0; i < note->count; i++) /* others have no ledger */
		if (note->regions[i].page_bytes != AGENT_PAGE || !note->regions[i].bytes ||
		    note->regions[i].bytes % AGENT_PAGE)
			return false;
	return true;
}

static int read_note(struct qemu *vm, struct note *note, struct jaunt_error *error)
{
	int fd = attach_take(&vm->attach, AGENT_NOTE_SLOT, error);

	if (fd == -ENOENT)
		return error_set(error, ENOENT, "nothing-to-resume",
				 "there is nothing to go on with: no process died here that had "
				 "taken a guest in, or its memory is of huge pages");
	if (fd < 0)
		return fd;
	bool sound = pread(fd, note, sizeof(*note), 0) == sizeof(*note) && is_sound(note);
	close(fd);
	return sound ? 0
		     : error_set(error, EINVAL, "bad-ledger",
				 "what was kept with QEMU is of another version of Jaunt");
}

int qemu_remember(struct qemu *vm, struct jaunt_error *error)
{
	struct note note;
	int result = read_note(vm, &note, error);

	if (result)
		return result;
	memcpy(vm->facts.name, note.name, sizeof(vm->facts.name));
	vm->facts.name[sizeof(vm->facts.name) - 1] = '\0';
	vm->facts.vcpus = note.vcpus;
	note.settings[sizeof(note.settings) - 1] = '\0';
	settings_read(&vm->settings, note.settings);
	for (size_t i = 0; i < note.count; i++) {
		struct regions_one *one = &vm->regions.all[i];
		*one = (struct regions_one){.bytes = note.regions[i].bytes,
					    .page_bytes = note.regions[i].page_bytes,
					    .address = note.regions[i].address};
		memcpy(one->id, note.regions[i].id, sizeof(one->id));
		one->id[sizeof(one->id) - 1] = '\0';
		one->fd = attach_take(&vm->attach, AGENT_FILE_SLOT + (unsigned)i, error);
		if (one->fd < 0)
			return one->fd;
		vm->regions.count = i + 1;
	}
	return 0;
}

bool qemu_can_be_taken_up(const struct qemu_place *place)
{
	char path[256];
	struct attach attach;
	struct qmp *qmp;
	int fd = -1;

	if (qmp_connect(&qmp, place->monitor, NULL))
		return false;
	if (attach_path(qmp_process(qmp), path, sizeof(path), NULL) == 0 &&
	    attach_open(&attach, path, NULL) == 0) {
		fd = attach_take(&attach, AGENT_LEDGER_SLOT, NULL);
		attach_close(&attach);
	}
	qmp_close(qmp);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}
