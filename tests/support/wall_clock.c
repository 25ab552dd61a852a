/* Never entered by a job that brings its own cnd_timedwait (src/kafka/wait.rs); without it, the test would see nothing of
   what it is for. Preloaded before libfaketime, which does not know C11's waits: lets cnd_timedwait go by the faked wall clock, as the
   kernel does by the real one. A wait that has begun when the clock is set back lasts longer by as much. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define LOOK_AGAIN (SECOND / 20)

static long long nanoseconds(const struct timespec *time) { return time->tv_sec * SECOND + time->tv_nsec; }

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
  static int (*real)(cnd_t *, mtx_t *, const struct timespec *);
  if (!real) real = (int (*)(cnd_t *, mtx_t *, const struct timespec *))dlsym(RTLD_NEXT, "cnd_timedwait");
  for (;;) {
    struct timespec faked, now;
    clock_gettime(CLOCK_REALTIME, &faked);
    long long left = nanoseconds(until) - nanoseconds(&faked);
    if (left <= 0) return thrd_timedout;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    long long end = nanoseconds(&now) + (left < LOOK_AGAIN ? left : LOOK_AGAIN);
    struct timespec slice = {.tv_sec = end / SECOND, .tv_nsec = end % SECOND};
    int result = real(condition, mutex, &slice);
    if (result != thrd_timedout) return result;
  }
}
