/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/model.h"

#include "ebm/score.h"
#include "file/segment.h"
#include "ops/kernels.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What an engine of its own must save of the time of one image: a share, and seconds. */
static const double SINGLE_SHARE = 0.08, SINGLE_SECONDS = 3e-4;

struct copy {
    struct copy *next;
    float data[];
};

/* The tensor's floats: in the mapping, or a private copy when the file misaligns them. */
static const float *floats(struct model *m, const struct tensor *t, struct err *e)
{
    if (tensor_aligned(t))
        return t->data;
    struct copy *c = malloc(sizeof *c + t->size_bytes);
    if (!c) {
        fail(e, FAIL_NO_MEMORY, "cannot copy tensor \"%s\"", t->name);
        return NULL;
    }
    memcpy(c->data, t->data, t->size_bytes);
    c->next = m->copies;
    m->copies = c;
    m->private_bytes += t->size_bytes;
    return c->data;
}

static const float *find_weight(void *ctx, const char *name, const int *shape, int n_dims,
                                struct err *e)
{
    struct model *m = ctx;
    const struct tensor *t = safetensors_find(m->file, name);
    if (!t) {
        fail(e, FAIL_BAD_MODEL, "tensor \"%s\" is missing", name);
        return NULL;
    }
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++)
        same = t->shape[i] == (uint64_t)shape[i];
    if (!same || t->dtype != TENSOR_F32) {
        fail(e, FAIL_BAD_MODEL, "tensor \"%s\" is not F32 of the shape its layer needs", name);
        return NULL;
    }
    return floats(m, t, e);
}

struct net_weights model_weights(struct model *m)
{
    return (struct net_weights){.ctx = m, .find = find_weight};
}

static int open_joint(struct model *m, const struct net_weights *weights, struct err *e)
{
    struct err why = {0};
    const int rc =
        joint_open(&m->joint, &m->d.energy, net_logits(m->net), &m->d.attributes, weights, &why);
    if (rc != 0)
        return fail(e, why.code, "%.160s: %.320s", m->path, why.text);
    m->d.attributes.joint = m->joint;
    return 0;
}

static int open_net(struct model *m, struct err *e)
{
    struct err why = {0};
    const struct net_weights weights = model_weights(m);
    const struct attributes *a = &m->d.attributes;
    const int rc = net_open(&m->net, m->d.layers, m->d.n_layers, m->d.input, &weights, &why);
    if (rc != 0)
        return fail(e, why.code, "%.160s: %.320s", m->path, why.text);
    if (m->d.energy.kind != JOINT_NONE)
        return open_joint(m, &weights, e);
    const int expected = a->n_logits + (a->head >= 0);
    if (net_logits(m->net) != expected)
        return fail(e, FAIL_BAD_MODEL, "%s: the network has %d outputs, its attributes need %d",
                    m->path, net_logits(m->net), expected);
    return 0;
}

static int open_energies(struct model *m, struct err *e)
{
    if (!m->d.energies[0])
        return 0;
    const struct tensor *t = safetensors_find(m->file, m->d.energies);
    if (!t || t->dtype != TENSOR_F32 || t->n_dims != 1 || t->elements == 0)
        return fail(e, FAIL_BAD_MODEL, "%s: calibration energies \"%s\" must be a F32 vector",
                    m->path, m->d.energies);
    const float *energies = floats(m, t, e);
    if (!energies)
        return -FAIL_NO_MEMORY;
    for (uint64_t i = 0; i < t->elements; i++) {
        if (!isfinite(energies[i]) || (i > 0 && energies[i] < energies[i - 1]))
            return fail(e, FAIL_BAD_MODEL, "%s: calibration energies are not finite and ascending",
                        m->path);
    }
    m->energies = energies;
    m->n_energies = t->elements;
    return 0;
}

static bool labels_fit(const struct model *m, const uint8_t *y, uint64_t n)
{
    const struct attributes *a = &m->d.attributes;
    for (uint64_t i = 0; i < n; i++)
        for (int k = 0; k < a->n; k++, y++)
            if (*y != 255 && *y >= a->list[k].n_values)
                return false;
    return true;
}

static int open_buffer(struct model *m, struct err *e)
{
    if (!m->d.buffer_x[0])
        return 0;
    const struct net_shape in = m->d.input;
    const struct tensor *x = safetensors_find(m->file, m->d.buffer_x);
    if (!x || (x->dtype != TENSOR_U8 && x->dtype != TENSOR_F32) || x->n_dims != 4 ||
        x->shape[1] != (uint64_t)in.c || x->shape[2] != (uint64_t)in.h ||
        x->shape[3] != (uint64_t)in.w || x->shape[0] == 0)
        return fail(e, FAIL_BAD_MODEL,
                    "%s: replay buffer \"%s\" must be U8 or F32 [n,%d,%d,%d] with n > 0", m->path,
                    m->d.buffer_x, in.c, in.h, in.w);
    m->buffer_x = x;
    m->n_buffer = x->shape[0];
    if (!m->d.buffer_y[0])
        return 0;
    const struct tensor *y = safetensors_find(m->file, m->d.buffer_y);
    if (!y || y->dtype != TENSOR_U8 || y->n_dims != 2 || y->shape[0] != x->shape[0] ||
        y->shape[1] != (uint64_t)m->d.attributes.n || !labels_fit(m, y->data, y->shape[0]))
        return fail(e, FAIL_BAD_MODEL,
                    "%s: buffer labels \"%s\" must be U8 [n,%d] of value indices or 255", m->path,
                    m->d.buffer_y, m->d.attributes.n);
    m->buffer_y = y->data;
    return 0;
}

/* A finite tensor of one entry for each of `values`; entry: its further dimensions. */
static const float *gaussian_part(struct model *m, const char *name, int values, const int *entry,
                                  int n_entry, struct err *e)
{
    const struct tensor *t = safetensors_find(m->file, name);
    bool fits =
        t && t->dtype == TENSOR_F32 && t->n_dims == n_entry + 1 && t->shape[0] == (uint64_t)values;
    for (int i = 0; fits && i < n_entry; i++)
        fits = t->shape[i + 1] == (uint64_t)entry[i];
    const float *v = fits ? floats(m, t, e) : NULL;
    if (fits && !v)
        return NULL;
    for (uint64_t i = 0; fits && i < t->elements; i++)
        fits = isfinite(v[i]);
    if (!fits)
        fail(
            e, FAIL_BAD_MODEL,
            "%.160s: \"%.64s\" of the Gaussians must be finite F32 of the shape that attribute and "
            "image need",
            m->path, name);
    return fits ? v : NULL;
}

/* The grid that makes C g g rows of a factor; 0 = none does. */
static int grid_of(struct net_shape in, uint64_t side)
{
    for (int g = 1; g <= in.h && g <= in.w; g++)
        if (gaussians_side(in, g) == side)
            return g;
    return 0;
}

static int open_gaussians(struct model *m, struct err *e)
{
    const struct description *d = &m->d;
    if (!d->gaussian_mean[0])
        return 0;
    const struct tensor *factor = safetensors_find(m->file, d->gaussian_factor);
    struct gaussians g = {
        .attribute = d->gaussian_attribute,
        .values = d->attributes.list[d->gaussian_attribute].n_values,
        .grid = factor && factor->n_dims == 3 ? grid_of(d->input, factor->shape[1]) : 0};
    const int image[3] = {d->input.c, d->input.h, d->input.w};
    const int side = (int)gaussians_side(d->input, g.grid), square[2] = {side, side};
    if (g.grid == 0)
        return fail(e, FAIL_BAD_MODEL,
                    "%s: factor \"%s\" of the Gaussians must be F32 [%d,D,D] with D = %d g g",
                    m->path, d->gaussian_factor, g.values, d->input.c);
    g.mean = gaussian_part(m, d->gaussian_mean, g.values, image, 3, e);
    if (g.mean)
        g.spread = gaussian_part(m, d->gaussian_spread, g.values, image, 3, e);
    if (g.spread)
        g.factor = gaussian_part(m, d->gaussian_factor, g.values, square, 2, e);
    if (!g.factor)
        return -FAIL_BAD_MODEL;
    m->gaussians = g;
    return 0;
}

static int open_all(struct model *m, const char *cache_dir, bool recompute, struct err *e)
{
    int rc = safetensors_open(&m->file, m->path, e);
    if (rc != 0)
        return rc;
    const char *text = safetensors_metadata(m->file, "jemd");
    if (!text)
        return fail(e, FAIL_BAD_MODEL,
                    "%s: no jemd description in it; convert checkpoints with "
                    "clients/python/import_torch.py",
                    m->path);
    m->file_bytes = safetensors_size_bytes(m->file);
    rc = description_parse(&m->d, text, m->path, e);
    if (rc == 0)
        rc = open_net(m, e);
    if (rc == 0)
        rc = open_energies(m, e);
    if (rc == 0)
        rc = open_buffer(m, e);
    if (rc == 0)
        rc = open_gaussians(m, e);
    if (rc == 0)
        rc = digest_file(safetensors_fd(m->file), cache_dir, recompute, m->digest, e);
    return rc;
}

int model_open(struct model **out, const char *path, const char *cache_dir, bool recompute,
               struct err *e)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a model");
    atomic_init(&m->refs, 1);
    if (strlen(path) >= sizeof m->path) {
        free(m);
        return fail(e, FAIL_IO, "the model's path is longer than %zu bytes", sizeof m->path - 1);
    }
    strcpy(m->path, path);
    pthread_mutex_init(&m->mu, NULL);
    const int rc = open_all(m, cache_dir, recompute, e);
    if (rc != 0)
        model_put(m);
    else
        *out = m;
    return rc;
}

/* The options of an engine for one image beside `base`; plans it, and leaves *plan NULL if it is not
 * worth its memory. */
static int plan_single(struct engine **plan, const struct engine *base, struct engine_options *o,
                       struct err *e)
{
    o->base = base;
    o->backward = false;
    o->images = 1;
    o->plan_only = true;
    *plan = NULL;
    const int rc = engine_open(plan, engine_net(base), o, e);
    if (rc != 0)
        return rc;
    const double now = engine_seconds(base, 1), saved = now - engine_seconds(*plan, 1);
    if (saved <= SINGLE_SECONDS || saved <= SINGLE_SHARE * now) {
        engine_close(*plan);
        *plan = NULL;
    }
    return 0;
}

static int open_single(struct model *m, const struct engine_options *base, struct err *e)
{
    struct engine *plan;
    struct engine_options o = *base;
    const int rc = plan_single(&plan, m->engine, &o, e);
    if (rc != 0 || !plan)
        return rc;
    engine_close(plan);
    o.plan_only = false;
    return engine_open(&m->single, m->net, &o, e);
}

static int choose_kernels(struct engine_options *o, const struct model *m, enum precision precision,
                          struct err *e)
{
    o->kernels = kernels_of_precision(precision);
    o->backward = true;
    return o->kernels ? 0
                      : fail(e, FAIL_UNSUPPORTED,
                             "%.160s: %s needs a CPU with AMX tiles%s (and JEMD_ISA unset)",
                             m->path, precision_names[precision],
                             precision == PRECISION_BFLOAT16 ? " or AVX512_BF16" : "");
}

int model_prepare(struct model *m, const struct model_compute *c, struct err *e)
{
    struct engine_options o = {.pool = c->pool, .segments = c->segments, .key = m->digest};
    int rc = choose_kernels(&o, m, c->precision, e);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&m->mu);
    if (!m->prepared) {
        rc = engine_open(&m->engine, m->net, &o, e);
        if (rc == 0)
            rc = open_single(m, &o, e);
        if (rc != 0) {
            engine_close(m->engine);
            m->engine = NULL;
        }
        m->prepared = rc == 0;
    }
    pthread_mutex_unlock(&m->mu);
    return rc;
}

int model_plan_open(struct model_plan *out, const struct model *m, enum precision precision,
                    struct err *e)
{
    struct engine_options o = {.plan_only = true};
    struct model_plan p = {0};
    int rc = choose_kernels(&o, m, precision, e);
    if (rc == 0)
        rc = engine_open(&p.engine, m->net, &o, e);
    if (rc == 0)
        rc = plan_single(&p.single, p.engine, &o, e);
    if (rc == 0)
        *out = p;
    else
        model_plan_close(&p);
    return rc;
}

void model_plan_close(struct model_plan *p)
{
    engine_close(p->single);
    engine_close(p->engine);
}

int model_engine(struct model *m, const struct engine **out, struct err *e)
{
    static const struct model_compute plain = {.precision = PRECISION_FLOAT};
    pthread_mutex_lock(&m->mu);
    const bool prepared = m->prepared;
    pthread_mutex_unlock(&m->mu);
    const int rc = prepared ? 0 : model_prepare(m, &plain, e);
    if (rc == 0)
        *out = m->engine;
    return rc;
}

int model_engine_single(struct model *m, const struct engine **out, struct err *e)
{
    const int rc = model_engine(m, out, e);
    if (rc == 0 && m->single)
        *out = m->single;
    return rc;
}

void model_packed(const struct model *m, struct model_packed *out)
{
    const struct engine *const engines[2] = {m->engine, m->single};
    *out = (struct model_packed){.attached = true, .reason = ""};
    for (int i = 0; i < 2; i++) {
        const struct segment *s = engines[i] ? engine_segment(engines[i]) : NULL;
        if (!s)
            continue;
        out->bytes += segment_bytes(s);
        out->shared_bytes += segment_shared(s) ? segment_bytes(s) : 0;
        out->attached &= segment_attached(s);
        if (!segment_shared(s))
            out->reason = segment_reason(s);
    }
}

const char *model_fingerprint(const struct model *m)
{
    return m->engine ? engine_kernels(m->engine)->fingerprint
                     : model_fingerprint_of(PRECISION_FLOAT);
}

const char *model_fingerprint_of(enum precision precision)
{
    const struct kernels *k = kernels_of_precision(precision);
    return k ? k->fingerprint : "none";
}

enum precision model_precision(const struct model *m)
{
    return m->engine ? engine_kernels(m->engine)->precision : PRECISION_FLOAT;
}

struct model *model_get(struct model *m)
{
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return m;
}

void model_put(struct model *m)
{
    if (!m || atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) != 1)
        return;
    engine_close(m->single);
    engine_close(m->engine);
    joint_close(m->joint);
    net_close(m->net);
    pthread_mutex_destroy(&m->mu);
    for (struct copy *c = m->copies, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    description_fini(&m->d);
    safetensors_close(m->file);
    free(m);
}

size_t model_elements(const struct model *m)
{
    return net_shape_elements(m->d.input);
}

int model_outputs(const struct model *m)
{
    return score_outputs(&m->d.attributes);
}

int model_logits(const struct model *m)
{
    return score_logits(&m->d.attributes);
}

void model_from_pixels(const struct model *m, const unsigned char *pixels, float *x)
{
    const struct net_shape s = m->d.input;
    const size_t plane = (size_t)s.h * (size_t)s.w;
    for (int c = 0; c < s.c; c++)
        for (size_t i = 0; i < plane; i++)
            *x++ =
                m->d.pixel_scale * (float)pixels[i * (size_t)s.c + (size_t)c] + m->d.pixel_offset;
}

void model_to_pixels(const struct model *m, const float *x, unsigned char *pixels)
{
    const struct net_shape s = m->d.input;
    const size_t plane = (size_t)s.h * (size_t)s.w;
    const float inverse = 1.0f / m->d.pixel_scale;
    for (int c = 0; c < s.c; c++) {
        for (size_t i = 0; i < plane; i++) {
            float v = (*x++ - m->d.pixel_offset) * inverse + 0.5f;
            v = v > 0.0f ? v : 0.0f;
            pixels[i * (size_t)s.c + (size_t)c] = (unsigned char)(v < 255.0f ? v : 255.0f);
        }
    }
}

void model_buffer_image(const struct model *m, size_t i, float *x)
{
    const size_t n = model_elements(m);
    const struct tensor *t = m->buffer_x;
    const float scale = m->d.buffer_scale, offset = m->d.buffer_offset;
    if (t->dtype == TENSOR_U8) {
        const uint8_t *v = (const uint8_t *)t->data + i * n;
        for (size_t j = 0; j < n; j++)
            x[j] = scale * (float)v[j] + offset;
        return;
    }
    for (size_t j = 0; j < n; j++) {
        float v;
        memcpy(&v, (const char *)t->data + (i * n + j) * sizeof v, sizeof v);
        x[j] = scale * v + offset;
    }
}
