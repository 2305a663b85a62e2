/* SPDX-License-Identifier: Apache-2.0 */
/* The guest program's flat image, to lie at GUEST_PROGRAM; generated when building. */
#ifndef VMM_MICROVM_IMAGE_H
#define VMM_MICROVM_IMAGE_H

#include <stddef.h>
#include <stdint.h>

extern const uint8_t image_bytes[];
extern const size_t image_size;

#endif
