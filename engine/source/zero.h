/* SPDX-License-Identifier: Apache-2.0 */
/* Is it all zeros? Vectorised; looks at the first bytes first, where pages of data mostly differ.
 */
#ifndef ENGINE_SOURCE_ZERO_H
#define ENGINE_SOURCE_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* `bytes` a multiple of 64. */
bool zero_check(const void *data, size_t bytes);

#endif
