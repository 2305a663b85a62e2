/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Two kinds of things are looked for. What belongs to this host and cannot be on another: passed
 * devices, keys of encrypted memory, files of 9p and virtio-fs. And whatever writes to guest memory
 * past QEMU's page tables, where no tracker sees it: other processes that map the same file (vhost-
 * user, ivshmem), devices with access of their own (VFIO, vDPA). The types of devices and objects
 * say most of it; what the kernel says QEMU has open says the rest, such as a vhost descriptor that
 * came from elsewhere. In the end QEMU is asked what stands in the way by its own account.
 */
#include "vmm/qemu/refuse.h"

#include <dirent.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm/qemu/devices.h"

#define UNPLUG "unplug it before, and plug one in at the target afterwards"

struct reason {
	const char *pattern; /* as of fnmatch(3) */
	const char *why, *advice;
	bool may, rounds;
};

/* Types of devices. The first that fits. */
static const struct reason devices[] = {
	{"vfio-*", "a device of the host, passed through", UNPLUG, false, false},
	{"vhost-user-*", "another process writes to guest memory, unseen by any tracker", UNPLUG,
	 false, false},
	{"*vhost-vdpa*", "a device of the host writes to guest memory, unseen by any tracker",
	 UNPLUG, false, false},
	{"vhost-scsi*", "a target in this host's kernel", UNPLUG, false, false},
	{"vhost-vsock*", "connections with this host's kernel, which would break", UNPLUG, true,
	 false},
	{"ivshmem*", "memory that others share and write to, unseen by any tracker", UNPLUG, false,
	 false},
	{"virtio-9p*", "files of this host, open in it", "unmount and unplug it before", false,
	 false},
	{"usb-host", "a device of the host, passed through", UNPLUG, false, false},
	{"usb-mtp", "files of this host; QEMU cannot save its state", UNPLUG, false, false},
	{"scsi-generic", "a device of the host, passed through", UNPLUG, false, false},
	{"scsi-block", "a device of the host, passed through", UNPLUG, false, false},
	{"u2f-passthru", "a device of the host, passed through", UNPLUG, false, false},
	{"ccid-card-passthru", "a device of the host, passed through", UNPLUG, false, false},
	{"x-pci-proxy-dev", "a device in another process", UNPLUG, false, false},
	{"xen-*", "belongs to another hypervisor", UNPLUG, false, false},
	{"nvme", "QEMU cannot save its state", "use virtio-blk or virtio-scsi", true, false},
	{"virtio-crypto*", "QEMU cannot save its state", UNPLUG, true, false},
	{"amd-iommu", "QEMU cannot save its state", "start the guest without it", true, false},
};

/* Types of objects. */
static const struct reason objects[] = {
	{"sev-*guest", "encrypted memory: nobody but this guest can read it",
	 "start the guest without confidential-guest-support", false, false},
	{"tdx-guest", "encrypted memory: nobody but this guest can read it",
	 "start the guest without confidential-guest-support", false, false},
	{"pef-guest", "protected memory: nobody but this guest can read it",
	 "start the guest without confidential-guest-support", false, false},
	{"s390-pv-guest", "protected memory: nobody but this guest can read it",
	 "start the guest without confidential-guest-support", false, false},
	{"x-remote-object", "a device in another process", "start the guest without it", false,
	 false},
	{"x-vfio-user-server", "another process reads and writes guest memory",
	 "start the guest without it", false, false},
	{"colo-compare", "COLO keeps another copy of this guest", "end it before", false, false},
};

/* Files of the kernel that QEMU has open. */
static const struct reason files[] = {
	{"/dev/vfio/*", "VFIO: a device of the host has access to guest memory", UNPLUG, false,
	 false},
	{"anon_inode:\\[vfio*", "VFIO: a device of the host has access to guest memory", UNPLUG,
	 false, false},
	{"/dev/iommu", "iommufd: a device of the host has access to guest memory", UNPLUG, false,
	 false},
	{"/dev/vhost-vdpa*", "vDPA: a device of the host has access to guest memory", UNPLUG, false,
	 false},
	{"/dev/vhost-scsi", "a target in this host's kernel", UNPLUG, false, false},
	{"/dev/vhost-net",
	 "the kernel writes to guest memory for it (vhost=on), which has not been tried with "
	 "Jaunt's tracking",
	 "start QEMU with vhost=off, or use a mode without rounds (post-copy, stop-and-copy)", true,
	 true},
	{"/dev/sev", "encrypted memory: nobody but this guest can read it",
	 "start the guest without confidential-guest-support", false, false},
	{"/dev/bus/usb/*", "a device of the host, passed through", UNPLUG, false, false},
	{"/dev/infiniband/uverbs*", "RDMA: a device of the host has access to guest memory", UNPLUG,
	 false, false},
	{"/dev/sg[0-9]*", "a device of the host, passed through", UNPLUG, false, false},
	{"/dev/tpm*", "the host's TPM, passed through", "use a TPM emulator (swtpm)", false, false},
};

static const struct reason *find(const struct reason *list, size_t count, const char *what)
{
	for (size_t i = 0; i < count; i++)
		if (fnmatch(list[i].pattern, what, 0) == 0)
			return &list[i];
	return NULL;
}

#define FIND(list, what) find(list, sizeof(list) / sizeof((list)[0]), what)

static void tell(struct facts *facts, const char *what, const char *type,
		 const struct reason *reason)
{
	char key[FACTS_KEY_MAX];

	snprintf(key, sizeof(key), "cannot move: %.200s", what);
	if (facts_find(facts, key))
		return;
	facts_add(facts, key, "why=%s: %s", type, reason->why);
	facts_add(facts, key, "advice=%s", reason->advice);
	if (reason->may)
		facts_add(facts, key, "may=yes");
	if (reason->rounds)
		facts_add(facts, key, "only=rounds");
}

void refuse_device(struct ask *asking, const char *name, const char *type)
{
	const struct reason *reason = FIND(devices, type);
	char what[220];

	snprintf(what, sizeof(what), "device %.200s", name);
	if (reason)
		tell(asking->facts, what, type, reason);
}

static void look_at_objects(struct ask *asking)
{
	json_t *list = ask_list(asking, "/objects"), *one;
	char type[128], what[220];
	size_t i;

	json_array_foreach (list, i, one) {
		if (sscanf(ask_text(one, "type"), "child<%127[^>]>", type) != 1)
			continue;
		const struct reason *reason = FIND(objects, type);
		snprintf(what, sizeof(what), "object %.200s", ask_text(one, "name"));
		if (reason)
			tell(asking->facts, what, type, reason);
	}
	json_decref(list);
}

/* A machine may name what encrypts its memory without an object that is known here. */
static void look_at_encryption(struct ask *asking)
{
	static const struct reason encrypted = {
		"", "encrypted memory: nobody but this guest can read it",
		"start the guest without confidential-guest-support", false, false};
	json_t *guest = ask_property(asking, "/machine", "confidential-guest-support");
	json_t *older = ask_property(asking, "/machine", "memory-encryption");

	if ((json_is_string(guest) && json_string_length(guest)) ||
	    (json_is_string(older) && json_string_length(older)))
		tell(asking->facts, "guest memory", "confidential-guest-support", &encrypted);
	json_decref(guest);
	json_decref(older);
}

static void look_at_files(struct ask *asking)
{
	static const struct reason unreadable = {
		"", "what QEMU has open cannot be read, so nobody knows what writes to its memory",
		"run jaunt as root, or as QEMU's user", false, false};
	char folder[64], path[PATH_MAX], link[512];

	snprintf(folder, sizeof(folder), "/proc/%ld/fd", (long)qmp_process(asking->qmp));
	DIR *open_files = opendir(folder);
	if (!open_files)
		tell(asking->facts, "open files", folder, &unreadable);
	for (struct dirent *one; open_files && (one = readdir(open_files));) {
		snprintf(path, sizeof(path), "%s/%.20s", folder, one->d_name);
		ssize_t bytes = readlink(path, link, sizeof(link) - 1);
		link[bytes > 0 ? bytes : 0] = '\0';
		const struct reason *reason = FIND(files, link);
		if (reason)
			tell(asking->facts, link, "open in QEMU", reason);
	}
	if (open_files)
		closedir(open_files);
}

/* A network of another process, which has the memory of the guest mapped. */
static void look_at_networks(struct ask *asking)
{
	static const struct reason other = {
		"", "another process or device writes to guest memory, unseen by any tracker",
		"use a netdev of QEMU's own (tap, bridge, user)", false, false};
	json_t *answer = ask(asking, "human-monitor-command",
			     json_pack("{s:s}", "command-line", "info network"));
	const char *text = json_string_value(answer) ? json_string_value(answer) : "";

	if (strstr(text, "type=vhost-user"))
		tell(asking->facts, "network", "vhost-user", &other);
	if (strstr(text, "type=vhost-vdpa"))
		tell(asking->facts, "network", "vhost-vdpa", &other);
	json_decref(answer);
}

/* Work that QEMU does in the background, and servers in it: both end with the source. */
static void look_at_jobs(struct ask *asking)
{
	static const struct reason job = {"", "a job of QEMU's that would be lost",
					  "wait for its end, or cancel it (job-cancel)", false,
					  false};
	static const struct reason server = {"", "an export that its clients would lose",
					     "end it before (block-export-del)", true, false};
	json_t *jobs = ask(asking, "query-jobs", NULL), *one;
	json_t *exports = ask(asking, "query-block-exports", NULL);
	char what[220];
	size_t i;

	json_array_foreach (jobs, i, one) {
		snprintf(what, sizeof(what), "job %.200s", ask_text(one, "id"));
		tell(asking->facts, what, ask_text(one, "type"), &job);
	}
	json_array_foreach (exports, i, one) {
		snprintf(what, sizeof(what), "export %.200s", ask_text(one, "id"));
		tell(asking->facts, what, ask_text(one, "type"), &server);
	}
	json_decref(jobs);
	json_decref(exports);
}

static void look_at_tpm(struct ask *asking)
{
	static const struct reason passed = {"", "the host's TPM, passed through",
					     "use a TPM emulator (swtpm)", false, false};
	json_t *list = ask(asking, "query-tpm", NULL), *one;
	size_t i;

	json_array_foreach (list, i, one) {
		const char *type = ask_text(json_object_get(one, "options"), "type");
		char what[220];
		snprintf(what, sizeof(what), "tpm %.200s", ask_text(one, "id"));
		if (strcmp(type, "passthrough") == 0)
			tell(asking->facts, what, type, &passed);
	}
	json_decref(list);
}

/* In QEMU's own words. */
static void look_at_blockers(struct ask *asking)
{
	static const struct reason blocked = {"", "QEMU itself refuses to migrate this guest",
					      "see what it says", false, false};
	json_t *status = ask(asking, "query-migrate", NULL), *one;
	size_t i;

	json_array_foreach (json_object_get(status, "blocked-reasons"), i, one) {
		char what[220];
		snprintf(what, sizeof(what), "the guest (%zu)", i + 1);
		if (json_is_string(one))
			tell(asking->facts, what, json_string_value(one), &blocked);
	}
	json_decref(status);
}

void refuse_tell(struct ask *asking)
{
	look_at_objects(asking);
	look_at_encryption(asking);
	look_at_files(asking);
	look_at_networks(asking);
	look_at_jobs(asking);
	look_at_tpm(asking);
	look_at_blockers(asking);
}
