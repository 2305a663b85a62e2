/* SPDX-License-Identifier: Apache-2.0 */
/* What every floor program needs of a program: giving up, reading sizes, and placing itself. */
#ifndef BENCH_FLOORS_PROGRAM_H
#define BENCH_FLOORS_PROGRAM_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Prints "program: text: strerror(errno)" and exits with 1. A floor has nothing to clean up. */
void program_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* The same without errno, for bad arguments: exits with 2. */
void program_usage(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* "4096", "256k", "2M", "1G"; ends the program on anything else. */
uint64_t program_bytes(const char *text);
/* A whole number of at least `least`. */
uint64_t program_count(const char *text, uint64_t least);

/* Forks a process that dies with this one. Returns 0 in the child. */
pid_t program_fork(void);

/* To another process, and from it, through a pipe: all of it, or the program ends. */
void program_tell(int fd, const void *from, size_t bytes);
void program_hear(int fd, void *to, size_t bytes);

/* Binds the calling thread, and whatever it starts, to the CPUs of a list such as "0", "0,1" or
 * "2-3". NULL leaves it where it is. */
void program_pin(const char *cpus);
/* The same for a thread that is yet to be started. */
void program_pin_attributes(pthread_attr_t *attributes, const char *cpus);

#endif
