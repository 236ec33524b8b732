/* What the process gives up once it no longer needs it, so that a fault in a parser is worth less
 * to whoever finds it. Two steps, both for good and both only where the kernel has them:
 *
 *   sandbox_files   Landlock: from now on this thread and those it starts may read what is named
 *                   and nothing else; no writing but into given folders, no programs, no TCP
 *                   connections or new ports
 *   sandbox_calls   seccomp: no thread may start a program, look into another process, mount, load
 *                   code into the kernel, connect or listen; such calls fail with EPERM */
#ifndef OVERFILL_SERVER_SANDBOX_H
#define OVERFILL_SERVER_SANDBOX_H

#include "engine/base/error.h"

#include <stddef.h>

/* Paths are files or folders; those that do not exist are left out, NULL and "" too. In writable
 * folders files may be made, replaced and removed. 0, or ERROR_UNSUPPORTED when the kernel has no
 * Landlock, ERROR_IO when it refused. */
int sandbox_files(const char *const *readable, size_t n_readable, const char *const *writable,
                  size_t n_writable, struct error *err);
int sandbox_calls(struct error *err);

#endif
