/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks the gateway for an echo ten times a second: QEMU answers itself, so that an answer shows
 * that the network device works, its queues in guest memory included.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/ip_icmp.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* Those of QEMU's user network. */
#define OWN     "10.0.2.15"
#define GATEWAY "10.0.2.2"

static int line = -1;
static _Atomic uint64_t asked, answered;

static struct sockaddr_in address(const char *text)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	inet_pton(AF_INET, text, &address.sin_addr);
	return address;
}

static int configure(const char *interface)
{
	struct sockaddr_in own = address(OWN), mask = address("255.255.255.0");
	struct ifreq request = {0};
	int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int result = -1;

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
	memcpy(&request.ifr_addr, &own, sizeof(own));
	if (ioctl(control, SIOCSIFADDR, &request) == 0) {
		memcpy(&request.ifr_netmask, &mask, sizeof(mask));
		result = ioctl(control, SIOCSIFNETMASK, &request);
		request.ifr_flags = IFF_UP | IFF_RUNNING;
		result |= ioctl(control, SIOCSIFFLAGS, &request);
	}
	close(control);
	return result;
}

static uint16_t checksum(const uint16_t *words, unsigned count)
{
	uint32_t sum = 0;

	for (unsigned i = 0; i < count; i++)
		sum += words[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t) ~(sum + (sum >> 16));
}

static void *work(void *unused)
{
	struct sockaddr_in gateway = address(GATEWAY);
	struct icmphdr request = {.type = ICMP_ECHO};
	unsigned char answer[128];

	for (;;) {
		uint64_t began = time_ns();

		request.un.echo.sequence++;
		request.checksum = 0;
		request.checksum = checksum((uint16_t *)&request, sizeof(request) / 2);
		if (sendto(line, &request, sizeof(request), 0, (struct sockaddr *)&gateway,
			   sizeof(gateway)) == sizeof(request))
			asked++;
		ssize_t got = recv(line, answer, sizeof(answer), 0);
		const struct icmphdr *reply = (struct icmphdr *)(answer + sizeof(struct iphdr));

		if (got >= (ssize_t)(sizeof(struct iphdr) + sizeof(*reply)) &&
		    reply->type == ICMP_ECHOREPLY &&
		    reply->un.echo.sequence == request.un.echo.sequence)
			answered++;
		time_sleep_until(began + SECOND_NS / 10);
	}
	return NULL;
}

int net_start(const char *interface)
{
	struct timeval patience = {.tv_usec = 500000};
	pthread_t thread;

	if (configure(interface))
		return -1;
	line = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
	if (line < 0 || setsockopt(line, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		return -1;
	return pthread_create(&thread, NULL, work, NULL);
}

void net_print(FILE *out)
{
	if (line < 0)
		fprintf(out, "null");
	else
		fprintf(out, "{\"asked\": %" PRIu64 ", \"answered\": %" PRIu64 "}", asked,
			answered);
}
