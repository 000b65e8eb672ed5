/* A role that lives in another hour. What chatmesh reads the time by, CLOCK_REALTIME, is shifted by
 * CLOCK_SHIFT_SECONDS. libfaketime also shifts gettimeofday, by which librdkafka sets deadlines,
 * but not the C11 waits for them, which then last as long as the shift. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    const char *shift = clock == CLOCK_REALTIME ? getenv("CLOCK_SHIFT_SECONDS") : NULL;
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && shift) {
        now->tv_sec += atol(shift);
    }
    return (int)failed;
}
