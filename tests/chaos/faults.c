// Fails the n-th call of the system on files of a run, or kills there. For LD_PRELOAD.
//
// FAULT_CALL   "rename", "fsync", "write", "open" or "mkdir"; nothing fails without it
// FAULT_BELOW  the directory whose files are meant
// FAULT_N      the number of the call that fails, from 1
// FAULT_ALL    if it is set, all later calls fail too, as on a disk that stays full
// FAULT_ERRNO  the error, such as 28; 0 kills the process
// FAULT_HIT    a file that is made once a call has failed

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// The function that this library hides.
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_int count;

static int fails(const char* call, const char* path) {
  const char *wanted = getenv("FAULT_CALL"), *below = getenv("FAULT_BELOW");
  if (!wanted || strcmp(wanted, call) || strncmp(path, below, strlen(below))) return 0;
  int number = atomic_fetch_add(&count, 1) + 1, n = atoi(getenv("FAULT_N"));
  if (number != n && !(getenv("FAULT_ALL") && number > n)) return 0;
  int hit = syscall(SYS_openat, AT_FDCWD, getenv("FAULT_HIT"), O_CREAT | O_WRONLY, 0600);
  syscall(SYS_close, hit);
  errno = atoi(getenv("FAULT_ERRNO"));
  if (!errno) raise(SIGKILL);
  return 1;
}

static int fails_at(const char* call, int fd, const char* name) {
  char link[32], path[8192];
  if (fd == AT_FDCWD || name[0] == '/') return fails(call, name);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, 4096);
  if (length < 0) return 0;
  snprintf(path + length, sizeof path - length, "/%s", name);
  return fails(call, path);
}

int rename(const char* from, const char* to) {
  return fails("rename", from) ? -1 : REAL(rename)(from, to);
}

int renameat(int a, const char* from, int b, const char* to) {
  return fails_at("rename", a, from) ? -1 : REAL(renameat)(a, from, b, to);
}

int mkdir(const char* path, mode_t mode) {
  return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode);
}

int fsync(int fd) { return fails_at("fsync", fd, "") ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return fails_at("fsync", fd, "") ? -1 : REAL(fdatasync)(fd); }

ssize_t write(int fd, const void* data, size_t size) {
  return fails_at("write", fd, "") ? -1 : REAL(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec* parts, int n) {
  return fails_at("write", fd, "") ? -1 : REAL(writev)(fd, parts, n);
}

static mode_t mode_of(int flags, va_list list) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

#define OPEN(name)                                                      \
  int name(const char* path, int flags, ...) {                          \
    va_list list;                                                       \
    va_start(list, flags);                                              \
    mode_t mode = mode_of(flags, list);                                 \
    va_end(list);                                                       \
    return fails("open", path) ? -1 : REAL(name)(path, flags, mode);    \
  }
#define OPEN_AT(name)                                                      \
  int name(int fd, const char* path, int flags, ...) {                     \
    va_list list;                                                          \
    va_start(list, flags);                                                 \
    mode_t mode = mode_of(flags, list);                                    \
    va_end(list);                                                          \
    return fails_at("open", fd, path) ? -1 : REAL(name)(fd, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)

int __openat_2(int fd, const char* path, int flags) {
  return fails_at("open", fd, path) ? -1 : REAL(openat)(fd, path, flags);
}
