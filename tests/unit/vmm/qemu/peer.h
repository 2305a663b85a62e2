/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread in place of QEMU at the other end of its monitor. peer_listen() and peer_forget() are
 * all that a test needs which plays that end itself.
 */
#ifndef TESTS_UNIT_VMM_QEMU_PEER_H
#define TESTS_UNIT_VMM_QEMU_PEER_H

#include <pthread.h>

struct peer {
	char folder[64], path[96]; /* of the monitor's socket */
	int listener, client;
	int channel; /* the last descriptor that it was given; -1: none */
	void (*obey)(const char *command, int id);
	pthread_t thread;
};

/* Makes the socket, in a folder of its own. */
void peer_listen(struct peer *peer);
/* And a thread that greets whoever comes and calls obey() with each command. */
void peer_start(struct peer *peer, void (*obey)(const char *command, int id));
/* Ends when the other side hangs up. */
void peer_join(struct peer *peer);
/* A line, with one word in it. From obey(), or while nothing is answered. */
void peer_say(struct peer *peer, const char *format, const char *word);
void peer_close_channel(struct peer *peer);
void peer_forget(struct peer *peer);

#endif
