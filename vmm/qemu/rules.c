/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/rules.h"

#include <fnmatch.h>
#include <stddef.h>

#define SAME_OPTIONS "start both QEMUs with the same options"
#define SAME_BLOCKS                                                                                \
	"a ROM or a device's memory of another size: install the same firmware packages, or "      \
	"start "                                                                                   \
	"both with the same options"
#define SAME_DEVICE "give both the same -device, with the same id"
#define SAME_MEDIUM "insert the same medium, or eject it on both sides"

/* The first that fits. */
static const struct rule rules[] = {
	{"facts", HOW_EQUAL, false, "install the same version of jaunt on both hosts"},
	{"host", HOW_NOT, true, ""},
	{"cannot move: *", HOW_REFUSED, false, ""},

	{"qemu version", HOW_VERSION, true, ""},
	{"qemu package", HOW_EQUAL, true,
	 "another build of the same version: its distribution may have changed more than the name"},
	{"architecture", HOW_EQUAL, false, "use the same qemu-system-…"},
	{"accelerator", HOW_EQUAL, false, "start both with the same -accel"},
	{"uuid", HOW_EQUAL, true,
	 "give both the same -uuid; a guest that reads it again sees another machine"},

	{"machine type", HOW_EQUAL, false,
	 "give both the same -machine, with its version (\"pc-q35-7.2\", not \"q35\")"},
	{"machine", HOW_LINES, false, SAME_OPTIONS},
	{"machine: kernel", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"machine: initrd", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"machine: append", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"machine: dtb", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"machine: boot", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"machine: firmware", HOW_EQUAL, true,
	 "what the guest runs now travels with it; of use at its next start only"},
	{"machine: dump-guest-core", HOW_NOT, true, ""},
	{"machine: dumpdtb", HOW_NOT, true, ""},
	{"machine: mem-merge", HOW_NOT, true, ""},
	{"machine: suppress-vmdesc", HOW_NOT, true, ""},
	{"machine: *", HOW_EQUAL, false, SAME_OPTIONS},

	{"cpu model", HOW_EQUAL, false, "give both the same -cpu"},
	{"vcpus", HOW_EQUAL, false, "give both the same -smp"},
	{"cpu flags", HOW_WORDS, true,
	 "give both a -cpu that both hosts have all of: a named model instead of host or max"},
	{"cpu", HOW_LINES, false, "give both the same -cpu"},
	{"cpu: model-id", HOW_EQUAL, true, "a guest that reads its name again sees another"},
	{"cpu: ucode-rev", HOW_EQUAL, true, "a guest may decide by it what to work around"},
	{"cpu: tsc-frequency", HOW_EQUAL, true,
	 "the guest's clock runs at another speed there, unless the target's processor scales it; "
	 "give both -cpu …,tsc-frequency=HZ"},
	{"cpu [0-9]*: *", HOW_EQUAL, false, "give both the same -smp"},
	{"cpu [0-9]*", HOW_LINES, false, "give both the same -smp"},
	{"cpu: *", HOW_EQUAL, false, "give both the same -cpu"},

	{"memory size", HOW_EQUAL, false, "give both the same -m"},
	{"memory device *: *", HOW_EQUAL, false, "plug the same memory into both"},
	{"memory device *", HOW_LINES, false, "plug the same memory into both"},
	{"memory block *: used", HOW_NOT, true, ""}, /* the target grows it, up to the total */
	{"memory block *: total", HOW_EQUAL, false, SAME_BLOCKS},
	{"memory block *", HOW_LINES, false, SAME_BLOCKS},
	{"memory file *: identity", HOW_APART, false,
	 "give the target a mem-path of its own: it would overwrite the running guest's memory"},
	{"memory file *: bytes", HOW_EQUAL, false, "give both memory backends of the same sizes"},
	{"memory file *: shared", HOW_EQUAL, false, "give both memory backends share=on"},
	{"memory file *: *", HOW_NOT, true, ""},
	{"memory file *", HOW_LINES, false, "give both memory backends of the same ids"},

	{"board devices", HOW_BOARD, false, SAME_OPTIONS},
	{"pci *", HOW_EQUAL, false, "plug the same devices into the same slots (addr=…)"},
	/* QEMU guesses it from what is on the disk when it starts. */
	{"device *: cyls", HOW_EQUAL, true, "set cyls, heads and secs of both devices"},
	{"device *: heads", HOW_EQUAL, true, "set cyls, heads and secs of both devices"},
	{"device *: secs", HOW_EQUAL, true, "set cyls, heads and secs of both devices"},
	{"device *: bootindex", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"device *: romfile", HOW_EQUAL, true, "of use at the guest's next start only"},
	{"device *: netdev", HOW_NOT, true, ""},
	{"device *: drive", HOW_NOT, true, ""},
	{"device *: chardev", HOW_NOT, true, ""},
	{"device *: audiodev", HOW_NOT, true, ""},
	{"device *: rng", HOW_NOT, true, ""},
	{"device *: werror", HOW_NOT, true, ""},
	{"device *: rerror", HOW_NOT, true, ""},
	{"device *: account-*", HOW_NOT, true, ""},
	{"device *: share-rw", HOW_NOT, true, ""},
	{"device *: x-tx*", HOW_NOT, true, ""},
	{"device *: guest-stats-polling-interval", HOW_NOT, true, ""},
	{"device *: features", HOW_OFFER, true,
	 "the host's side of the device (tap, vhost, disk) offers other features"},
	{"device *: *", HOW_EQUAL, false, SAME_DEVICE},
	{"device *", HOW_LINES, false, SAME_DEVICE},

	{"* *: direct I/O", HOW_NOT, true, ""},
	{"disk *: image", HOW_STORAGE, false, ""},
	{"disk *: backing *", HOW_STORAGE, false, ""},
	{"medium *: image", HOW_STORAGE, true, ""},
	{"medium *: backing *", HOW_STORAGE, true, ""},
	{"flash *: image", HOW_FLASH, false,
	 "give both the same firmware and a file for its "
	 "variables of the same size and format"},
	{"flash *: backing *", HOW_FLASH, false, "give both the same firmware"},
	{"medium *: *", HOW_EQUAL, true, SAME_MEDIUM},
	{"medium *", HOW_LINES, true, SAME_MEDIUM},
	{"disk *: *", HOW_EQUAL, false, "give both the same disks"},
	{"disk *", HOW_LINES, false, "give both the same disks"},
	{"flash *: *", HOW_EQUAL, false, "give both the same flash"},
	{"flash *", HOW_LINES, false, "give both the same flash"},
};

static const struct rule otherwise = {"*", HOW_EQUAL, false, SAME_OPTIONS};

const struct rule *rule_of(const char *item)
{
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (fnmatch(rules[i].pattern, item, 0) == 0)
			return &rules[i];
	return &otherwise;
}
