/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz_directory.h"
#include "server/store_sqlite_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Looks at every byte of a row, and makes of it what a salvage makes. */
static int look(void *ctx, const struct value *v, int n)
{
    struct record *r = NULL;
    struct job_removed removed;
    char sum[65];
    (void)ctx;
    invariant(n > 0 && n <= COLUMNS_MAX);
    row_sum(v, n, sum, NULL);
    if (n == JOB_COLUMNS && row_to_job(v, &r, NULL) == 0)
        record_free(r);
    if (n == REMOVED_COLUMNS)
        row_to_removed(v, &removed);
    return 0;
}

/* A damaged file, or (first byte odd) a damaged write-ahead log without a file. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[64], log[72];
    struct pages *p = NULL;
    struct err e;
    if (!path[0]) {
        snprintf(path, sizeof path, "%s/jobs", fuzz_directory());
        snprintf(log, sizeof log, "%s-wal", path);
    }
    if (size == 0)
        return 0;
    const char *name = data[0] & 1 ? log : path;
    FILE *f = fopen(name, "wb");
    if (!f || fwrite(data + 1, 1, size - 1, f) != size - 1)
        abort();
    fclose(f);
    if (pages_open(&p, path, &e) == 0) {
        pages_scan(p, look, NULL, &e);
        pages_close(p);
    }
    unlink(name);
    return 0;
}
