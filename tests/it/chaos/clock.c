/* Shifts the clock from which chatmesh reads the time (CLOCK_REALTIME) by CLOCK_SHIFT_SECONDS.
 * libfaketime is not used: it also shifts gettimeofday, from which librdkafka computes deadlines,
 * but not the C11 functions that wait for them, so these waits would last as long as the shift. */
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
