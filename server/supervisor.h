/* What a service manager (systemd) and a server tell each other: a listening socket handed over,
 * "ready", "stopping", and a sign of life now and then. All of it is optional: without the
 * variables in the environment nothing happens. Protocols: sd_listen_fds(3), sd_notify(3). */
#ifndef OVERFILL_SERVER_SUPERVISOR_H
#define OVERFILL_SERVER_SUPERVISOR_H

#include <stdbool.h>
#include <stdint.h>

/* The socket that was handed over, or -1. Forgets it, so that only the first call has it. */
int supervisor_take_socket(void);
/* "READY=1", "STOPPING=1", "WATCHDOG=1", ... */
void supervisor_notify(const char *state);
/* Half of the time within which signs of life are expected; 0: none are. */
uint64_t supervisor_watchdog_ns(void);

#endif
