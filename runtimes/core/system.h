/* system.h - the few operating system functions that the runtime calls.
 *
 * Where a C library's headers exist they are used. effc's own link step has none for its
 * targets and needs none: the prototypes below are the same in glibc, musl and bionic
 * (handles are one machine word, times are two longs behind the plain symbol names).
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EFFC_SYSTEM_H
#define EFFC_SYSTEM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* sched_setaffinity */
#endif

#include <stddef.h>
#include <stdint.h>

#ifndef EFFC_THREADS
#define EFFC_THREADS 1 /* 0: never calls a thread function, for systems without threads */
#endif

#if __has_include(<pthread.h>)

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif
typedef pthread_t effc_thread;

#else

struct timespec {
    long tv_sec;
    long tv_nsec;
};
#define CLOCK_MONOTONIC 1
typedef unsigned long effc_thread;

int clock_gettime(int clock, struct timespec *now);
int posix_memalign(void **memory, size_t alignment, size_t size);
void free(void *memory);
int pthread_create(effc_thread *thread, const void *attributes, void *(*start)(void *), void *);
int pthread_join(effc_thread thread, void **result);
int memcmp(const void *left, const void *right, size_t bytes);
int strcmp(const char *left, const char *right);
int sched_getaffinity(int thread, size_t bytes, void *mask);
int sched_setaffinity(int thread, size_t bytes, const void *mask);
long syscall(long number, ...);

#endif
#endif
