/* SPDX-License-Identifier: Apache-2.0 */
/* The last words of a command that received a VM: `receive`, and `resume` at a target. */
#ifndef CLI_RECEIVED_H
#define CLI_RECEIVED_H

#include "cli/host.h"

/* One JSON object. `error`: why it did not even begin, `place`: where the VM is then; its code is 0
 * if it did. */
void received_print_json(const struct host *host, const struct jaunt_error *error,
			 enum jaunt_place place, enum jaunt_outcome outcome);
/* For people; nothing if no VM came. */
void received_print(const struct host *host);

#endif
