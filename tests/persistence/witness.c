/* Writes down what a process does to its files, and refuses fsyncs: see test_power.py.
 *
 * Loaded before the C library. What is done to files below WITNESS_ROOT goes to the file
 * WITNESS_LOG, a record each: the operation, the path, a number, and the bytes written, with their
 * lengths as 64 bit numbers before them. An fsync of a file whose path contains what stands in the
 * file WITNESS_FAIL is refused, as long as that file is there.
 *
 *   W written, at offset number    S synced     F an fsync that failed
 *   T truncated to number          U unlinked
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 1024 };

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static int log_file = -1;
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_unlink)(const char *);

__attribute__((constructor)) static void begin(void) {
  real_write = dlsym(RTLD_NEXT, "write");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
  real_unlink = dlsym(RTLD_NEXT, "unlink");
  log_file = open(getenv("WITNESS_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int is_watched(const char *path) {
  const char *root = getenv("WITNESS_ROOT");
  return strncmp(path, root, strlen(root)) == 0;
}

static int watched_path(int file, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, PATH_BYTES - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return is_watched(path);
}

static void note(char operation, const char *path, int64_t number, const void *data, int64_t size) {
  int64_t length = strlen(path);
  pthread_mutex_lock(&one_at_a_time);
  real_write(log_file, &operation, 1);
  real_write(log_file, &length, sizeof length);
  real_write(log_file, path, length);
  real_write(log_file, &number, sizeof number);
  real_write(log_file, &size, sizeof size);
  if (size) real_write(log_file, data, size);
  pthread_mutex_unlock(&one_at_a_time);
}

static int is_refused(const char *path) {
  char part[256];
  int file = open(getenv("WITNESS_FAIL"), O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, part, sizeof part - 1);
  close(file);
  if (length <= 0) return 0;
  part[length] = 0;
  if (part[0] != '=') return strstr(path, part) != NULL;
  size_t size = strlen(path), end = strlen(part + 1);  // one file, once
  if (size < end || strcmp(path + size - end, part + 1)) return 0;
  real_unlink(getenv("WITNESS_FAIL"));
  return 1;
}

static int synced(int file, int (*sync)(int)) {
  char path[PATH_BYTES];
  if (!watched_path(file, path)) return sync(file);
  int failed = is_refused(path) ? (errno = EIO, -1) : sync(file);
  note(failed ? 'F' : 'S', path, 0, NULL, 0);
  return failed;
}

ssize_t pwrite64(int file, const void *data, size_t size, off_t offset) {
  char path[PATH_BYTES];
  ssize_t written = real_pwrite(file, data, size, offset);
  if (written > 0 && watched_path(file, path)) note('W', path, offset, data, written);
  return written;
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
  return pwrite64(file, data, size, offset);
}

ssize_t write(int file, const void *data, size_t size) {
  char path[PATH_BYTES];
  if (!watched_path(file, path)) return real_write(file, data, size);
  off_t offset = lseek(file, 0, SEEK_CUR);
  ssize_t written = real_write(file, data, size);
  if (written > 0) note('W', path, offset, data, written);
  return written;
}

int fsync(int file) { return synced(file, real_fsync); }

int fdatasync(int file) { return synced(file, real_fdatasync); }

int ftruncate64(int file, off_t size) {
  char path[PATH_BYTES];
  int failed = real_ftruncate(file, size);
  if (!failed && watched_path(file, path)) note('T', path, size, NULL, 0);
  return failed;
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

int unlink(const char *path) {
  int failed = real_unlink(path);
  if (!failed && is_watched(path)) note('U', path, 0, NULL, 0);
  return failed;
}
