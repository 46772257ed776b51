/* System calls that fail, stop half-way, are slow, or are the last thing a process does.
 *
 * Loaded before the C library (LD_PRELOAD), so that Python, numpy and safetensors' Rust all pass through it. Nothing
 * happens until faults_arm(); then calls that concern files below one folder are counted, and at the right one the fault
 * is committed. Reads through a memory map and stdio inside the C library are not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, UNLINK = 16, READ = 32, MKDIR = 64, TRUNCATE = 128 };
enum { COUNT, KILL_BEFORE, KILL_AFTER, KILL_MIDWAY, FAIL_ONCE, FAIL_ON, SHORT, SLOW, ROOM };

static char folder[PATH_MAX];
static size_t folder_length;
static volatile int action, number, armed;
static volatile unsigned kinds;
static volatile long at;
static atomic_long calls, room;
static long *report; /* shared with the parent: calls so far, kind of the call at which a fault happened, faults */
static long long jump;
static unsigned int jump_seed;

#define REAL(type, name, ...) static type (*real_##name)(__VA_ARGS__)
REAL(int, open, const char *, int, ...);
REAL(int, openat, int, const char *, int, ...);
REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, writev, int, const struct iovec *, int);
REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
REAL(ssize_t, read, int, void *, size_t);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, rename, const char *, const char *);
REAL(int, unlink, const char *);
REAL(int, unlinkat, int, const char *, int);
REAL(int, mkdir, const char *, mode_t);
REAL(int, ftruncate, int, off_t);
REAL(int, clock_gettime, clockid_t, struct timespec *);
REAL(int, gettimeofday, struct timeval *, void *);

__attribute__((constructor)) static void find(void) {
#define FIND(name) real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, #name)
    FIND(open); FIND(openat); FIND(write); FIND(writev); FIND(pwrite); FIND(read); FIND(fsync); FIND(fdatasync);
    FIND(rename); FIND(unlink); FIND(unlinkat); FIND(mkdir); FIND(ftruncate); FIND(clock_gettime); FIND(gettimeofday);
}

void faults_arm(const char *below, int what, long nth, int value, unsigned which, long *shared) {
    armed = 0;
    strncpy(folder, below, sizeof folder - 1);
    folder_length = strlen(folder);
    action = what, at = nth, number = value, kinds = which, report = shared;
    atomic_store(&calls, 0);
    atomic_store(&room, nth);
    armed = 1;
}

void faults_disarm(void) { armed = 0; }

/* From now on the wall clock jumps by up to a few years, either way, at every look. */
void faults_clock(unsigned int seed) { jump_seed = seed, jump = seed != 0; }

static int below(const char *path) { return path && strncmp(path, folder, folder_length) == 0; }

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static void happened(unsigned kind) {
    if (report) report[1] = kind, report[2]++;
}

static void die(unsigned kind) {
    happened(kind);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call; 1: let it happen and then call after(); 0: let it happen; -1: it fails, errno is set; -2: half of it */
static int before(unsigned kind, size_t size) {
    if (!(kinds & kind)) return 0;
    if (action == ROOM) {
        if (kind != WRITE) return 0;
        long left = atomic_fetch_sub(&room, (long)size) - (long)size;
        if (report) report[0] += size;
        if (left >= 0) return 0;
        happened(kind);
        if (left + (long)size >= 2) return -2; /* what still fits */
        errno = ENOSPC;
        return -1;
    }
    long now = atomic_fetch_add(&calls, 1) + 1;
    if (report) report[0] = now;
    switch (action) {
    case KILL_BEFORE: if (now == at) die(kind); break;
    case KILL_AFTER: if (now == at) return 1; break;
    case KILL_MIDWAY:
        if (now == at && kind == WRITE && size > 1) return -2;
        if (now == at) die(kind);
        break;
    case FAIL_ONCE: if (now == at) { happened(kind); errno = number; return -1; } break;
    case FAIL_ON: if (now >= at) { happened(kind); errno = number; return -1; } break;
    case SHORT: if ((kind == WRITE || kind == READ) && size > 1) { happened(kind); return -2; } break;
    case SLOW: happened(kind); usleep(number); break;
    }
    return 0;
}

#define GUARD(kind, size, concerns, failed, call)                                                                     \
    do {                                                                                                              \
        int fate = armed && (concerns) ? before(kind, size) : 0;                                                      \
        if (fate == -1) return failed;                                                                                \
        __typeof__(call) result = call;                                                                               \
        if (fate == 1) die(kind);                                                                                     \
        return result;                                                                                                \
    } while (0)

/* As GUARD for calls that move bytes: `half` is the call for half of them. */
#define GUARD_BYTES(kind, size, fd, call, half)                                                                       \
    do {                                                                                                              \
        int fate = armed && (size) > 0 && below_fd(fd) ? before(kind, size) : 0;                                      \
        if (fate == -1) return -1;                                                                                    \
        ssize_t result = fate == -2 ? half : call;                                                                    \
        if (fate == 1 || (fate == -2 && action == KILL_MIDWAY)) die(kind);                                            \
        return result;                                                                                                \
    } while (0)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY; }

#define OPENS(name, real, parameters, arguments)                                                                      \
    int name parameters {                                                                                             \
        mode_t mode = 0;                                                                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                          \
            va_list rest;                                                                                             \
            va_start(rest, flags);                                                                                    \
            mode = va_arg(rest, int);                                                                                 \
            va_end(rest);                                                                                             \
        }                                                                                                             \
        GUARD(OPEN, 0, writes(flags) && below(path), -1, real arguments);                                             \
    }
OPENS(open, real_open, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, real_open, (const char *path, int flags, ...), (path, flags | O_LARGEFILE, mode))
OPENS(openat, real_openat, (int at_fd, const char *path, int flags, ...), (at_fd, path, flags, mode))
OPENS(openat64, real_openat, (int at_fd, const char *path, int flags, ...), (at_fd, path, flags | O_LARGEFILE, mode))

ssize_t write(int fd, const void *data, size_t n) {
    GUARD_BYTES(WRITE, n, fd, real_write(fd, data, n), real_write(fd, data, n / 2));
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    GUARD_BYTES(WRITE, n > 0 ? parts[0].iov_len : 0, fd, real_writev(fd, parts, n),
                real_write(fd, parts[0].iov_base, parts[0].iov_len / 2));
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
    GUARD_BYTES(WRITE, n, fd, real_pwrite(fd, data, n, offset), real_pwrite(fd, data, n / 2, offset));
}
ssize_t pwrite64(int fd, const void *data, size_t n, off_t offset) { return pwrite(fd, data, n, offset); }
ssize_t read(int fd, void *data, size_t n) {
    GUARD_BYTES(READ, n, fd, real_read(fd, data, n), real_read(fd, data, n / 2));
}
int fsync(int fd) { GUARD(SYNC, 0, below_fd(fd), -1, real_fsync(fd)); }
int fdatasync(int fd) { GUARD(SYNC, 0, below_fd(fd), -1, real_fdatasync(fd)); }
int rename(const char *from, const char *to) { GUARD(RENAME, 0, below(to), -1, real_rename(from, to)); }
int unlink(const char *path) { GUARD(UNLINK, 0, below(path), -1, real_unlink(path)); }
int unlinkat(int fd, const char *path, int flags) {
    GUARD(UNLINK, 0, below(path) || (fd >= 0 && below_fd(fd)), -1, real_unlinkat(fd, path, flags));
}
int mkdir(const char *path, mode_t mode) { GUARD(MKDIR, 0, below(path), -1, real_mkdir(path, mode)); }
int ftruncate(int fd, off_t size) { GUARD(TRUNCATE, 0, below_fd(fd), -1, real_ftruncate(fd, size)); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

static time_t jumped(void) {
    if (!jump) return 0;
    long years = 100000000; /* three of them, in seconds */
    return (time_t)(rand_r(&jump_seed) % (2 * years)) - years;
}
int clock_gettime(clockid_t clock, struct timespec *out) {
    int result = real_clock_gettime(clock, out);
    if (jump && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += jumped();
    return result;
}
int gettimeofday(struct timeval *out, void *zone) {
    int result = real_gettimeofday(out, zone);
    if (jump) out->tv_sec += jumped();
    return result;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
