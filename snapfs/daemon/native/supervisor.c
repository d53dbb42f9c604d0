/* snapfs-supervisor: a supervisor while nothing happens, and the helpers that wait for the kernel in a daemon's stead.
 *
 *     snapfs-supervisor wait PIDFD PROGRAM ARGUMENT...   sleep until something happens, then become PROGRAM
 *     snapfs-supervisor flush CHANNEL MOUNTPOINT         syncfs_helper.py says what for
 *     snapfs-supervisor notify CHANNEL DEVICE            write notices to /dev/fuse: notice_helper.py
 *
 * A supervisor does nothing for weeks but hold descriptors. So the Python program (asleep.py) becomes this one by exec,
 * in the same process: children, descriptors and signals that are blocked stay. PIDFD is readable when the daemon has
 * died. PROGRAM is Python again, which finds all as it left it.
 *
 * Invariants:
 * 1. Nothing is consumed: a signal stays pending, a message of the daemon stays in its socket, a dead child a zombie.
 * 2. There is no end but PROGRAM: where it cannot be started it is tried again, for the mount ends with this process.
 * 3. No memory is allocated, so that none can be missing when the daemon has died for want of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_BYTES 64
#define NOTICE_BYTES 16384 /* of a message: notices.py, BATCH_BYTES */
#define NOTICE_LEAST 16    /* struct fuse_out_header, which begins with the length of the whole notice */
#define WOKEN_ARGUMENT 4 /* of PROGRAM: when this woke up, in seconds of CLOCK_MONOTONIC */

/* asleep.py looks for it in the file. */
__attribute__((used)) static const char SOURCES_HASH[] = SNAPFS_SOURCES_HASH;

static const int SIGNALS[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}; /* signal_pipe.py: ALL */

/* Readable while one of the signals is pending; it is never read. They are blocked, by our caller and here. */
static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++)
        sigaddset(&set, SIGNALS[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

_Noreturn static void wait_and_become(int pidfd, char **program)
{
    struct pollfd watched[2] = {{.fd = open_signals(), .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
    while (poll(watched, 2, -1) < 0 && errno == EINTR)
        ;
    char woken[MESSAGE_BYTES];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(woken, sizeof woken, "%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
    program[WOKEN_ARGUMENT] = woken;
    for (;;) {
        execv(program[0], program);
        dprintf(2, "snapfs: the supervisor cannot start %s, and tries again: %s\n", program[0], strerror(errno));
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    }
}

/* Of writes of cached pages that the daemon answered with an error: it counts them itself (writeback.py: _OURS). */
static bool is_ours(int error) { return error == ENOSPC || error == EDQUOT || error == EIO || error == EFBIG; }

/* Flush the kernel's pages, and read the token of the fence, a number. Its length, or minus an errno. */
static ssize_t flush_mount(int root, char token[MESSAGE_BYTES])
{
    if (syncfs(root) && !is_ours(errno))
        return -errno;
    int fence = openat(root, ".snapfs/fence", O_RDONLY | O_CLOEXEC);
    if (fence < 0)
        return -errno;
    ssize_t length = read(fence, token, MESSAGE_BYTES);
    length = length < 0 ? -errno : length ? length : -EIO;
    close(fence);
    return length;
}

/* As `send_off` of writeback.py: the length of the token, or minus an errno. */
static ssize_t send_off(const char *mountpoint, dev_t device, char token[MESSAGE_BYTES])
{
    struct stat found = {0};
    int root = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -errno;
    ssize_t length = fstat(root, &found) ? -errno : -ENODEV; /* it is detached from its mountpoint */
    if (length == -ENODEV && found.st_dev == device)
        length = flush_mount(root, token);
    close(root);
    return length;
}

static int serve_flushes(int channel, const char *mountpoint)
{
    char text[MESSAGE_BYTES + 1];
    ssize_t length;
    while ((length = recv(channel, text, MESSAGE_BYTES, 0)) > 0) {
        text[length] = 0;
        length = send_off(mountpoint, (dev_t)strtoull(text, NULL, 10), text);
        if (length < 0)
            length = snprintf(text, sizeof text, "%zd", length);
        if (send(channel, text, (size_t)length, MSG_NOSIGNAL) < 0)
            break;
    }
    return 0;
}

/* Write each notice of a message; the number of the errnos, 0 where it was written. */
static size_t write_notices(int device, const char *notices, size_t length, int32_t *errnos)
{
    size_t count = 0;
    uint32_t size;
    for (size_t at = 0; length - at >= NOTICE_LEAST; at += size) {
        memcpy(&size, notices + at, sizeof size);
        if (size < NOTICE_LEAST || size > length - at)
            break;
        errnos[count++] = write(device, notices + at, size) < 0 ? errno : 0;
    }
    return count;
}

static int serve_notices(int channel, int device)
{
    static char notices[NOTICE_BYTES];
    static int32_t errnos[NOTICE_BYTES / NOTICE_LEAST];
    ssize_t length;
    while ((length = recv(channel, notices, sizeof notices, 0)) > 0) {
        size_t count = write_notices(device, notices, (size_t)length, errnos);
        if (send(channel, errnos, count * sizeof *errnos, MSG_NOSIGNAL) < 0)
            break;
    }
    return 0;
}

int main(int count, char **arguments)
{
    if (count > 3 + WOKEN_ARGUMENT && !strcmp(arguments[1], "wait"))
        wait_and_become(atoi(arguments[2]), arguments + 3);
    if (count == 4 && !strcmp(arguments[1], "flush"))
        return serve_flushes(atoi(arguments[2]), arguments[3]);
    if (count == 4 && !strcmp(arguments[1], "notify"))
        return serve_notices(atoi(arguments[2]), atoi(arguments[3]));
    dprintf(2, "snapfs-supervisor is for snapfs to start\n");
    return 2;
}
