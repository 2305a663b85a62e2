/* SPDX-License-Identifier: Apache-2.0 */
#include "peer.h"

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/qemu/agent/pass.h"

void peer_listen(struct peer *peer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	*peer = (struct peer){.client = -1, .channel = -1};
	snprintf(peer->folder, sizeof(peer->folder), "/tmp/jaunt-test-XXXXXX");
	cr_assert(mkdtemp(peer->folder));
	snprintf(peer->path, sizeof(peer->path), "%s/qmp", peer->folder);
	strcpy(address.sun_path, peer->path);
	peer->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(peer->listener, (struct sockaddr *)&address, sizeof(address)), 0);
	cr_assert_eq(listen(peer->listener, 1), 0);
}

static bool read_command(struct peer *peer, char *line, size_t room)
{
	size_t bytes = 0;

	for (char byte = 0; byte != '\n' && bytes + 1 < room;) {
		struct iovec part = {&byte, 1};
		union pass_room passed;
		struct msghdr message = {.msg_iov = &part,
					 .msg_iovlen = 1,
					 .msg_control = passed.bytes,
					 .msg_controllen = sizeof(passed.bytes)};
		if (recvmsg(peer->client, &message, 0) != 1)
			return false;
		if (CMSG_FIRSTHDR(&message))
			memcpy(&peer->channel, CMSG_DATA(CMSG_FIRSTHDR(&message)),
			       sizeof(peer->channel));
		line[bytes++] = byte;
	}
	line[bytes] = '\0';
	return true;
}

static void *live(void *context)
{
	struct peer *peer = context;
	char line[1024], word[32] = "";

	peer->client = accept(peer->listener, NULL, NULL);
	peer_say(peer,
		 "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2, \"micro\": "
		 "%s}}}}\n",
		 "22");
	while (read_command(peer, line, sizeof(line))) {
		const char *id = strstr(line, "\"id\":");
		const char *command = strstr(line, "\"execute\":\"");
		sscanf(command ? command : "", "\"execute\":\"%31[^\"]", word);
		peer->obey(word, id ? atoi(id + 5) : 0);
	}
	return NULL;
}

void peer_start(struct peer *peer, void (*obey)(const char *command, int id))
{
	peer->obey = obey;
	cr_assert_eq(pthread_create(&peer->thread, NULL, live, peer), 0);
}

void peer_join(struct peer *peer)
{
	pthread_join(peer->thread, NULL);
	close(peer->client);
}

void peer_say(struct peer *peer, const char *format, const char *word)
{
	char text[256];
	int bytes = snprintf(text, sizeof(text), format, word);
	send(peer->client, text, (size_t)bytes, MSG_NOSIGNAL);
}

void peer_close_channel(struct peer *peer)
{
	if (peer->channel >= 0)
		close(peer->channel);
	peer->channel = -1;
}

void peer_forget(struct peer *peer)
{
	peer_close_channel(peer);
	close(peer->listener);
	unlink(peer->path);
	rmdir(peer->folder);
}
