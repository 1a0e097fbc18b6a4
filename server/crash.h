/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Last words: when the process is about to die of a fault of its own (SIGSEGV, SIGABRT and their like),
 * a handler writes down the signal and for which jobs the thread worked that caused it
 * (base/witness.h). The next daemon reads that, so that guilty jobs are found and others go free. What kills
 * from outside (SIGKILL, a power failure) leaves no words. Used by the daemon and the job store.
 */
#include "base/fail.h"
#include "server/store.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A claim on a job, as a witness names it: id and epoch. */
enum { CRASH_NAME_SIZE = JOB_ID_SIZE + 21, CRASH_JOBS = 64, CRASH_NOTE_MAX = 4096 };
void crash_name(const struct job *j, char out[CRASH_NAME_SIZE]);

struct crash {
    int signal;
    int n; /* jobs that the thread worked for */
    struct {
        char id[JOB_ID_SIZE];
        uint64_t epoch;
    } jobs[CRASH_JOBS];
};

/* Whether text is a whole note. */
bool crash_parse(const char *text, size_t size, struct crash *out);
/* The note in a directory; false when there is none that is whole. */
bool crash_read(const char *directory, struct crash *out);
/* Whether the thread that crashed worked for this claim on a job. */
bool crash_blames(const struct crash *c, const struct job *j);
/* "signal 11 (Segmentation fault)" */
void crash_describe(const struct crash *c, char *out, size_t size);
/* Clears the note and has the process leave one there from now on. Once a process. Errors: IO. */
int crash_watch(const char *directory, struct err *e);
