/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/dataset.h"

#include "base/mem.h"
#include "base/pool.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_AN_ITEM = 64 };

/* A copy in progress. Of several rows that fail the first is told. */
struct copying {
    const struct source *s;
    unsigned char *images;
    size_t bytes; /* of an image */
    _Atomic bool failed;
    pthread_mutex_t mu;
    size_t first; /* guarded by mu, like the next: the row that e is of */
    struct err e;
};

static void copy_rows(void *ctx, int item, int worker)
{
    struct copying *c = ctx;
    const size_t begin = (size_t)item * ROWS_AN_ITEM;
    (void)worker;
    for (size_t row = begin; row < c->s->n && row - begin < ROWS_AN_ITEM; row++) {
        struct err e;
        const bool stopped = c->s->stop && atomic_load(c->s->stop);
        if (atomic_load(&c->failed))
            return;
        if (stopped)
            fail(&e, FAIL_SHUTTING_DOWN, "stopped while the images were read");
        else if (source_load(c->s, row, c->images + row * c->bytes, &e) == 0)
            continue;
        pthread_mutex_lock(&c->mu);
        if (!atomic_load(&c->failed) || row < c->first) {
            c->first = row;
            c->e = e;
        }
        pthread_mutex_unlock(&c->mu);
        atomic_store(&c->failed, true);
    }
}

static int copy_all(struct dataset *d, size_t max_bytes, struct pool *pool, struct err *e)
{
    const struct source *s = d->source;
    const size_t items = (s->n + ROWS_AN_ITEM - 1) / ROWS_AN_ITEM;
    struct copying c = {.s = s, .bytes = source_image_bytes(s), .mu = PTHREAD_MUTEX_INITIALIZER};
    size_t all, labels = s->n * (size_t)s->columns;
    if (__builtin_mul_overflow(s->n, c.bytes, &all) || mem_sum(all, labels) > max_bytes ||
        items > INT_MAX) {
        fail(e, FAIL_BAD_FILE, "%zu images of %d x %d are more than the %zu bytes allowed", s->n,
             s->height, s->width, max_bytes);
        fail_limit(e, (long long)max_bytes);
        return -FAIL_BAD_FILE;
    }
    c.images = d->copy = malloc(all + 1);
    if (!c.images)
        return fail(e, FAIL_NO_MEMORY, "no memory for %zu images of %d x %d", s->n, s->height,
                    s->width);
    if (pool)
        pool_run(pool, (int)items, copy_rows, &c);
    else
        for (size_t i = 0; i < items; i++)
            copy_rows(&c, (int)i, 0);
    if (!c.failed)
        return 0;
    if (e)
        *e = c.e;
    return -(int)c.e.code;
}

int dataset_take(struct dataset *out, struct source *s, size_t max_bytes, struct pool *pool,
                 struct err *e)
{
    struct dataset d = {.n = s->n,
                        .height = s->height,
                        .width = s->width,
                        .channels = s->channels,
                        .columns = s->columns,
                        .images = s->images,
                        .labels = s->labels,
                        .source = s};
    memcpy(d.sha256, s->sha256, sizeof d.sha256);
    const int rc = s->images ? 0 : copy_all(&d, max_bytes, pool, e);
    if (rc != 0) {
        dataset_close(&d);
        return rc;
    }
    d.images = d.copy ? d.copy : s->images;
    d.resized = s->resized && *s->resized;
    *out = d;
    return 0;
}

int dataset_open(struct dataset *out, const struct dataset_request *r, struct err *e)
{
    const struct source_request want = {
        .dir = r->dir, .split = r->split, .max_bytes = r->max_bytes};
    struct source *s;
    const int rc = source_idx_open_columns(&s, &want, r->columns, e);
    return rc != 0 ? rc : dataset_take(out, s, r->max_bytes, NULL, e);
}

void dataset_close(struct dataset *d)
{
    source_close(d->source);
    free(d->copy);
    *d = (struct dataset){0};
}

int dataset_check_labels(const struct dataset *d, const int *limits, struct err *e)
{
    const struct source s = {.n = d->n,
                             .columns = d->columns,
                             .labels = d->labels,
                             .label_file = d->source ? d->source->label_file : NULL};
    return source_check_labels(&s, limits, e);
}
