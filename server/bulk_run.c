/* SPDX-License-Identifier: Apache-2.0 */
/* A run of a prediction job: images out of the pack, lines of JSON, and what is kept of them. */
#include "server/bulk_internal.h"
#include "server/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_SIZE = 160, LINE_BYTES = 1024 /* of an image, about */ };

/* ---- lines ---- */

static int append(char **lines, size_t *size, size_t *room, const char *text, size_t n,
                  struct err *e)
{
    if (n == 0)
        return 0;
    if (*room - *size < n) {
        const size_t more = *room + (*room / 2 > n ? *room / 2 : n);
        char *grown = realloc(*lines, more);
        if (!grown)
            return fail(e, FAIL_NO_MEMORY, "no memory for the lines of a job (%zu bytes)", more);
        *lines = grown;
        *room = more;
    }
    memcpy(*lines + *size, text, n);
    *size += n;
    return 0;
}

static json_t *error_json(const struct err *e)
{
    char type[80];
    snprintf(type, sizeof type, "/problems/%s", fail_name(e->code));
    return json_pack("{s:{s:s, s:s, s:s}}", "error", "type", type, "code", fail_name(e->code),
                     "detail", e->text);
}

/* {"index", "id", and what a prediction says, or "error"}; NULL without memory. */
static json_t *line_json(const struct bulk_run *r, int i)
{
    const struct bulk_image *im = &r->images[i];
    struct image_pack_item item;
    json_t *line = json_pack("{s:i}", "index", r->done + i);
    json_t *rest = im->row >= 0 ? prediction_json(&r->p, im->row) : error_json(&im->why);
    image_pack_item(&r->pack, r->done + i, &item);
    int bad = !line || !rest;
    if (!bad && item.name[0])
        bad = json_object_set_new(line, "id", json_string(item.name));
    if (!bad)
        bad = json_object_update(line, rest);
    json_decref(rest);
    if (!bad)
        return line;
    json_decref(line);
    return NULL;
}

int bulk_answer(struct bulk_run *r, int n, pthread_mutex_t *mu, struct err *e)
{
    char *made = NULL;
    size_t size = 0, room = 0;
    int failed = 0, rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        size_t length = 0;
        json_t *line = line_json(r, i);
        char *text = line ? json_text(line, &length) : NULL;
        json_decref(line);
        rc = text ? append(&made, &size, &room, text, length, e)
                  : fail(e, FAIL_NO_MEMORY, "no memory for a line of a job");
        if (rc == 0)
            rc = append(&made, &size, &room, "\n", 1, e);
        free(text);
        failed += r->images[i].row < 0;
    }
    pthread_mutex_lock(mu);
    if (rc == 0)
        rc = append(&r->lines, &r->size, &r->room, made, size, e);
    if (rc == 0) {
        r->done += n;
        r->failed += failed;
    }
    pthread_mutex_unlock(mu);
    free(made);
    if (rc != 0)
        return rc;
    metrics_add(METRIC_PREDICT_JOB_IMAGES, (uint64_t)(n - failed), "predicted");
    metrics_add(METRIC_PREDICT_JOB_IMAGES, (uint64_t)failed, "failed");
    return 0;
}

/* ---- images ---- */

int bulk_read(struct bulk_run *r, int i, int *rows, struct err *e)
{
    const struct image_pack_head *h = &r->pack.head;
    const struct prediction_raw raw = {h->height, h->width, h->kind == IMAGE_PACK_FLOAT32};
    struct bulk_image *im = &r->images[i];
    struct image_pack_item item;
    image_pack_item(&r->pack, r->done + i, &item);
    r->p.images[*rows] = (struct predict_image){0};
    const int rc = h->kind == IMAGE_PACK_FILES
                       ? prediction_read_file(&r->p, *rows, item.bytes, item.size, &im->why)
                       : prediction_read_raw(&r->p, *rows, &raw, item.bytes, &im->why);
    im->row = rc == 0 ? (*rows)++ : -1;
    if (rc != -FAIL_NO_MEMORY)
        return 0;
    *e = im->why; /* says nothing of the image */
    return rc;
}

/* ---- checkpoints ---- */

/* The first line: what the lines depend on beside the job, and how many there are. */
static int format_head(const struct bulk_run *r, char head[HEAD_SIZE])
{
    return snprintf(head, HEAD_SIZE, "jemd-lines %.80s %d %d\n", model_fingerprint(r->p.model),
                    r->done, r->failed);
}

int bulk_save(const struct bulk_run *r, struct blob **out, struct err *e)
{
    char head[HEAD_SIZE];
    const size_t n = (size_t)format_head(r, head);
    struct blob *made = blob_new(n + r->size);
    if (!made)
        return fail(e, FAIL_NO_MEMORY, "no memory for a checkpoint of %zu bytes", n + r->size);
    memcpy(made->bytes, head, n);
    if (r->size)
        memcpy(made->bytes + n, r->lines, r->size);
    *out = made;
    return 0;
}

static int count_lines(const unsigned char *bytes, size_t size)
{
    int n = 0;
    for (const unsigned char *at = bytes, *end = bytes + size;
         at < end && (at = memchr(at, '\n', (size_t)(end - at))); at++)
        n++;
    return n;
}

static int resume(struct bulk_run *r, const struct blob *checkpoint, struct err *e)
{
    char head[HEAD_SIZE] = "", again[HEAD_SIZE], fingerprint[81];
    const unsigned char *end = memchr(checkpoint->bytes, '\n', checkpoint->size);
    const size_t n = end ? (size_t)(end - checkpoint->bytes) + 1 : 0;
    if (n > 0 && n < sizeof head)
        memcpy(head, checkpoint->bytes, n);
    int done, failed;
    if (sscanf(head, "jemd-lines %80s %d %d", fingerprint, &done, &failed) != 3)
        return fail(e, FAIL_BAD_FILE, "the checkpoint of the job is damaged");
    if (strncmp(fingerprint, model_fingerprint(r->p.model), 80) != 0)
        return fail(e, FAIL_BAD_FILE, "the checkpoint of the job was made by other kernels");
    r->done = done;
    r->failed = failed;
    format_head(r, again);
    if (strcmp(head, again) != 0 || done < 0 || done > r->pack.head.n || failed < 0 ||
        failed > done || count_lines(checkpoint->bytes + n, checkpoint->size - n) != done)
        return fail(e, FAIL_BAD_FILE, "the checkpoint of the job is damaged");
    return append(&r->lines, &r->size, &r->room, (const char *)checkpoint->bytes + n,
                  checkpoint->size - n, e);
}

/* ---- life ---- */

static int rows_of(const struct predict_request *q)
{
    return q->input.n < BULK_ROWS ? q->input.n : BULK_ROWS;
}

size_t bulk_run_bytes(const struct predict_request *q)
{
    const size_t row = (model_elements(q->model) + (size_t)model_logits(q->model)) * sizeof(float);
    const size_t lines = mem_times(LINE_BYTES + sizeof(size_t), q->input.n);
    return mem_sum(sizeof(struct bulk_run), mem_sum(mem_times(row, rows_of(q)), lines));
}

int bulk_run_new(struct bulk_run **out, const struct bulk_task *t, const struct image_limits *l,
                 const struct blob *checkpoint, struct err *e)
{
    const struct predict_request *q = t->request;
    struct bulk_run *r = calloc(1, sizeof *r);
    if (!r)
        return fail(e, FAIL_NO_MEMORY, "no memory for a job");
    r->task = *t;
    r->weight = t->weight;
    r->p.model = q->model;
    r->p.options = &q->options;
    r->p.limits = *l;
    int rc = image_pack_open(&r->pack, t->input, e);
    if (rc == 0 && memcmp(&r->pack.head, &q->input, sizeof q->input) != 0)
        rc = fail(e, FAIL_BAD_FILE, "the stored images of the job are not those of its request");
    if (rc == 0)
        rc = prediction_init(&r->p, rows_of(q), e);
    if (rc == 0 && checkpoint)
        rc = resume(r, checkpoint, e);
    if (rc != 0)
        bulk_run_drop(r);
    else
        *out = r;
    return rc;
}

void bulk_run_drop(struct bulk_run *r)
{
    image_pack_close(&r->pack);
    prediction_fini(&r->p);
    free(r->lines);
    free(r);
}

const struct err *bulk_run_error(const struct bulk_run *r)
{
    return &r->error;
}

int bulk_run_lines(const struct bulk_run *r, struct blob **out, struct err *e)
{
    struct blob *made = blob_copy(r->lines, r->size);
    if (!made)
        return fail(e, FAIL_NO_MEMORY, "no memory for an artifact of %zu bytes", r->size);
    *out = made;
    return 0;
}
