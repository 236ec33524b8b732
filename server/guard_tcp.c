/* The one call that needs the kernel's own struct tcp_info, whose header and libc's exclude each
 * other. */
#include "server/guard.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define STATE_CLOSE_WAIT 8 /* TCP_CLOSE_WAIT, which only libc's header names */

uint64_t guard_bytes_received(int fd, bool *ret_has_left)
{
    struct tcp_info info;
    socklen_t len = sizeof(info);

    memset(&info, 0, sizeof(info));
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0)
        info.tcpi_state = 0;
    if (ret_has_left)
        *ret_has_left = info.tcpi_state == STATE_CLOSE_WAIT;
    return info.tcpi_bytes_received;
}
