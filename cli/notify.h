/* SPDX-License-Identifier: Apache-2.0 */
/* Tells a service manager how far we are (the protocol of sd_notify(3), without its library). */
#ifndef CLI_NOTIFY_H
#define CLI_NOTIFY_H

/* Sends "READY=1" and the like to $NOTIFY_SOCKET, path or abstract. 0 also when nobody asked for
 * it; -errno when it could not be sent. */
int notify_send(const char *state);

#endif
