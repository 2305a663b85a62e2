/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel ABI of /proc/PID/pagemap that Debian 12's headers (Linux 6.1) lack: PAGEMAP_SCAN, of Linux
 * 6.7. Source: Linux include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst. */
#ifndef FAULT_PAGEMAP_ABI_H
#define FAULT_PAGEMAP_ABI_H

#include <linux/fs.h>
#include <linux/ioctl.h>
#include <stdint.h>

#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)

#define PAGE_IS_WRITTEN (1 << 1)

struct page_region {
	uint64_t start, end; /* addresses */
	uint64_t categories;
};

#define PM_SCAN_WP_MATCHING   (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)

struct pm_scan_arg {
	uint64_t size; /* of this struct */
	uint64_t flags;
	uint64_t start, end;
	uint64_t walk_end; /* out: where it stopped */
	uint64_t vec;      /* struct page_region[] */
	uint64_t vec_len;
	uint64_t max_pages; /* 0: no limit */
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#endif

/* A word of the file, one a page. */
#define PAGEMAP_SOFT_DIRTY (UINT64_C(1) << 55)
#define PAGEMAP_SWAPPED    (UINT64_C(1) << 62)
#define PAGEMAP_PRESENT    (UINT64_C(1) << 63)

#endif
