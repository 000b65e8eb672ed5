/* Makes fdatasync fail, as on a broken disk, while the file SYNC_FAILS_WHILE exists. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int file) {
    const char *failing = getenv("SYNC_FAILS_WHILE");
    if (failing && access(failing, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, file);
}
