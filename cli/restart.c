/* Beginning again where a library reads its environment only as it is loaded. */
#include "cli/cli.h"
#include "engine/prune/prune.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_ARGUMENTS 256 /* of a command line that begins again */

void cli_restart_for_blas(int argc, char **argv)
{
    const char *core = prune_blas_core();
    char *again[MOST_ARGUMENTS] = {"overfill"};
    if (!core || (size_t)argc + 2 > MOST_ARGUMENTS || getenv("OPENBLAS_CORETYPE") ||
        setenv("OPENBLAS_CORETYPE", core, 1) != 0)
        return;
    memcpy(again + 1, argv, ((size_t)argc + 1) * sizeof(*argv));
    execv("/proc/self/exe", again);
}
