/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel ABI constants of userfaultfd that Debian 12's headers (Linux 6.1) lack. Source: Linux
 * include/uapi/linux/userfaultfd.h, Documentation/admin-guide/mm/userfaultfd.rst. */
#ifndef FAULT_UFFD_ABI_H
#define FAULT_UFFD_ABI_H

#include <linux/userfaultfd.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#endif
