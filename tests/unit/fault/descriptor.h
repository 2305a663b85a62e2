/* SPDX-License-Identifier: Apache-2.0 */
/* A file descriptor that goes from one process to another, over a unix socket. */
#ifndef TESTS_UNIT_FAULT_DESCRIPTOR_H
#define TESTS_UNIT_FAULT_DESCRIPTOR_H

void send_descriptor(int to, int fd);
/* -1: none came. */
int receive_descriptor(int from);

#endif
