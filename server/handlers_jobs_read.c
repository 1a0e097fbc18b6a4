/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of jobs: JSON, and for predictions a form of files or raw bytes. */
#include "proto/predict_request.h"
#include "server/handlers_jobs_internal.h"
#include "server/predict.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct json_limits document_limits = {.depth = JSON_DEPTH_MAX,
                                                   .values = JSON_BODY_VALUES};

static bool is_type(const char *type, const char *wanted)
{
    const size_t n = strlen(wanted);
    return type && strcspn(type, "; \t") == n && strncasecmp(type, wanted, n) == 0;
}

static struct predict_limits limits_of(const struct call *c)
{
    const struct settings *s = &c->app->settings;
    return (struct predict_limits){.images = s->predict.job_images,
                                   .bytes = (size_t)s->predict.job_bytes};
}

/* ---- forms ---- */

/* The part "job", which is the document without images; NULL = there is none. */
static const struct multipart_part *find_document(const struct multipart_part *parts, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(parts[i].name, "job") == 0 && !parts[i].has_filename)
            return &parts[i];
    return NULL;
}

static int read_document(const struct multipart_part *part, json_t **root, struct err *e)
{
    int rc = 0;
    if (part) {
        rc = json_parse_limited((const char *)part->data, part->size, &document_limits, root, e);
        if (rc == 0 && jobs_type_of(*root) != JOB_PREDICT)
            rc = fail(e, FAIL_UNSUPPORTED, "a form makes jobs of type \"predict\" only");
    } else {
        *root = json_pack("{s:s}", "type", job_type_names[JOB_PREDICT]);
        rc = *root ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the request");
    }
    return rc;
}

static int too_many_parts(int most, struct err *e)
{
    fail(e, FAIL_BODY_TOO_LARGE, "a job may have %d images (predict.job_images), this has more",
         most);
    fail_limit(e, most);
    return -FAIL_BODY_TOO_LARGE;
}

static int read_form(struct call *c, json_t **root, struct blob **input, struct err *e)
{
    size_t size;
    const void *body = request_body(c->request, &size);
    const struct predict_limits l = limits_of(c);
    const int most = l.images + 2; /* the document, and one too many */
    struct multipart_part *parts = calloc((size_t)most, sizeof *parts);
    int n = 0;
    if (!parts)
        return fail(e, FAIL_NO_MEMORY, "no memory for %d form parts", most);
    int rc =
        multipart_parse(request_header(c->request, "Content-Type"), body, size, parts, most, &n, e);
    if (rc == -FAIL_OUT_OF_RANGE && e->limit == most)
        rc = too_many_parts(l.images, e);
    const struct multipart_part *document = rc == 0 ? find_document(parts, n) : NULL;
    if (rc == 0)
        rc = read_document(document, root, e);
    if (rc == 0 && document) {
        const int at = (int)(document - parts);
        memmove(&parts[at], &parts[at + 1], (size_t)(--n - at) * sizeof *parts);
    }
    if (rc == 0)
        rc = predict_request_pack_files(*root, parts, n, &l, input, e);
    free(parts);
    return rc;
}

/* ---- raw bytes: the query is the document ---- */

struct query {
    json_t *root;
    struct err *e;
};

/* "a,b" as an array, "a=x,b=y" as an object. */
static json_t *list_of(const char *text, bool pairs)
{
    json_t *list = pairs ? json_object() : json_array();
    while (list && *text) {
        const size_t n = strcspn(text, ",");
        const size_t key = pairs ? strcspn(text, "=,") : 0;
        const size_t value = pairs && key < n ? key + 1 : key;
        json_t *word = json_stringn(text + value, n - value);
        const int bad =
            pairs ? json_object_setn_new(list, text, key, word) : json_array_append_new(list, word);
        if (bad) { /* no memory, or not UTF-8 */
            json_decref(list);
            return NULL;
        }
        text += n + (text[n] == ',');
    }
    return list;
}

static json_t *number_of(const char *text)
{
    char *end;
    errno = 0;
    const double v = strtod(text, &end);
    return errno || end == text || *end || !isfinite(v) ? json_string(text) : json_real(v);
}

static json_t *value_of(const char *name, const char *text)
{
    if (strcmp(name, "include") == 0 || strcmp(name, "attributes") == 0)
        return list_of(text, false);
    if (strcmp(name, "given") == 0 || strcmp(name, "labels") == 0)
        return list_of(text, true);
    if (strcmp(name, "alpha") == 0)
        return number_of(text);
    if (strcmp(name, "score_only") == 0 && strcmp(text, "true") == 0)
        return json_true();
    if (strcmp(name, "score_only") == 0 && strcmp(text, "false") == 0)
        return json_false();
    return json_string(text);
}

static int read_argument(void *ctx, const char *name, const char *text)
{
    static const char *const names[] = {"type",     "model",    "include",      "attributes",
                                        "given",    "resize",   "alpha",        "score_only",
                                        "priority", "deadline", "scheduled_at", "labels"};
    enum { NAMES = sizeof names / sizeof names[0] };
    const struct query *q = ctx;
    int i = 0;
    while (i < NAMES && strcmp(name, names[i]) != 0)
        i++;
    if (i == NAMES) {
        fail(q->e, FAIL_UNKNOWN_FIELD, "there is no query parameter \"%.64s\"", name);
        return fail_suggest(q->e, fail_nearest(name, names, NAMES));
    }
    if (json_object_get(q->root, name))
        return fail(q->e, FAIL_BAD_REQUEST, "the query has \"%s\" twice", name);
    if (json_object_set_new(q->root, name, value_of(name, text)) == 0)
        return 0;
    return fail(q->e, FAIL_BAD_REQUEST, "\"%s\" in the query is not UTF-8", name);
}

static int read_query(struct call *c, json_t **root, struct err *e)
{
    struct query q = {.root = json_object(), .e = e};
    *root = q.root;
    if (!q.root)
        return fail(e, FAIL_NO_MEMORY, "no memory for the request");
    const int rc = request_each_query(c->request, read_argument, &q);
    if (rc != 0)
        return rc;
    if (!json_object_get(q.root, "type"))
        json_object_set_new(q.root, "type", json_string(job_type_names[JOB_PREDICT]));
    return jobs_type_of(q.root) == JOB_PREDICT
               ? 0
               : fail(e, FAIL_UNSUPPORTED, "raw bytes make jobs of type \"predict\" only");
}

static int read_raw(struct call *c, json_t **root, struct blob **input, struct err *e)
{
    size_t size;
    const void *body = request_body(c->request, &size);
    const struct predict_limits l = limits_of(c);
    long shape[4];
    bool is_float;
    int rc = read_query(c, root, e);
    if (rc == 0)
        rc = predict_read_shape(request_header(c->request, "X-Image-Shape"), shape, e);
    if (rc == 0)
        rc = predict_read_element(request_header(c->request, "X-Image-Type"), &is_float, e);
    if (rc != 0)
        return rc;
    const struct image_pack_head head = {.kind = is_float ? IMAGE_PACK_FLOAT32 : IMAGE_PACK_UINT8,
                                         .n = (int)shape[0],
                                         .height = (int)shape[1],
                                         .width = (int)shape[2],
                                         .channels = (int)shape[3]};
    return predict_request_pack_tensor(*root, &head, body, size, &l, input, e);
}

/* ---- any ---- */

static int read_json(struct call *c, json_t **root, struct blob **input, struct err *e)
{
    const struct predict_limits l = limits_of(c);
    int rc = job_parse_body(c, root, e);
    if (rc == 0)
        rc = call_allows(c, job_scope(jobs_type_of(*root)), e);
    return rc == 0 && jobs_type_of(*root) == JOB_PREDICT ? predict_request_pack(*root, &l, input, e)
                                                         : rc;
}

int job_read(struct call *c, json_t **root, struct blob **input, struct err *e)
{
    const char *type = request_header(c->request, "Content-Type");
    const bool form = is_type(type, "multipart/form-data");
    if (!form && !is_type(type, "application/octet-stream"))
        return read_json(c, root, input, e);
    const int rc = call_allows(c, AUTH_PREDICT, e);
    if (rc != 0)
        return rc;
    return form ? read_form(c, root, input, e) : read_raw(c, root, input, e);
}
