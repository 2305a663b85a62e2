/* SPDX-License-Identifier: MIT */
/* Answers Jaunt on the agent's socket. All of it runs on the agent's thread and uses no memory but
 * its own fixed tables. */
#ifndef VMM_QEMU_AGENT_SERVE_H
#define VMM_QEMU_AGENT_SERVE_H

/* Never returns but for an error of the socket itself. Owns `listener`. */
void serve(int listener);
/* In a child of fork(): closes what belongs to the parent's address space or conversations. */
void serve_forget(void);

#endif
