/* SPDX-License-Identifier: Apache-2.0 */
#include "server/artifacts.h"

#include "ebm/score.h"
#include "ebm/start.h"
#include "file/digest.h"
#include "file/safetensors.h"
#include "proto/image.h"
#include "server/job_json.h"
#include "server/mixing_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRID_COLUMNS_MAX = 16, GRID_SIDE = 96, FIXED_ARTIFACTS = 4 };

/* Takes the reference of body. */
static int add(struct artifacts *a, const char *name, const char *type, struct blob *body,
               struct err *e)
{
    if (!body)
        return fail(e, FAIL_NO_MEMORY, "no memory for artifact %s", name);
    struct job_artifact *at = &a->list[a->n++];
    snprintf(at->name, sizeof at->name, "%s", name);
    at->content_type = type;
    at->body = body;
    digest_bytes(body->bytes, body->size, at->sha256);
    return 0;
}

int artifacts_grid(const struct model *m, const float *x, int n, struct blob **out, struct err *e)
{
    const struct net_shape in = m->d.input;
    const size_t size = model_elements(m);
    const struct image shape = {
        .width = (uint32_t)in.w, .height = (uint32_t)in.h, .channels = in.c};
    struct image grid = {0};
    int columns = 1, rc = 0;
    while (columns < GRID_COLUMNS_MAX && columns * columns < n)
        columns++;
    const int scale = in.w < GRID_SIDE ? (GRID_SIDE + in.w - 1) / in.w : 1;
    unsigned char *tiles = malloc((size_t)n * size);
    if (!tiles)
        return fail(e, FAIL_NO_MEMORY, "no memory for a grid of %d images", n);
    for (int i = 0; i < n; i++)
        model_to_pixels(m, x + (size_t)i * size, tiles + (size_t)i * size);
    rc = image_grid(&grid, tiles, n, &shape, columns, 4, scale, e);
    if (rc == 0)
        rc = image_encode_png(out, &grid, 6, e);
    image_fini(&grid);
    free(tiles);
    return rc;
}

static int add_grid(struct artifacts *a, const struct sample_request *q,
                    const struct chain_group *g, struct err *e)
{
    struct chain_result first;
    struct blob *body;
    chain_group_result(g, 0, &first); /* the images of a group are one array */
    const int rc = artifacts_grid(q->model, first.x, q->n_chains, &body, e);
    return rc == 0 ? add(a, "grid.png", "image/png", body, e) : rc;
}

static int add_images(struct artifacts *a, const struct sample_request *q,
                      const struct chain_group *g, struct err *e)
{
    const struct net_shape in = q->model->d.input;
    struct image im = {0};
    int rc = image_init(&im, (uint32_t)in.w, (uint32_t)in.h, in.c, e);
    for (int i = 0; rc == 0 && i < q->n_chains; i++) {
        char name[JOB_ARTIFACT_NAME_SIZE];
        struct chain_result r;
        struct blob *body;
        chain_group_result(g, i, &r);
        model_to_pixels(q->model, r.x, im.data);
        snprintf(name, sizeof name, "samples/%03d.png", i);
        rc = image_encode_png(&body, &im, 6, e);
        if (rc == 0)
            rc = add(a, name, "image/png", body, e);
    }
    image_fini(&im);
    return rc;
}

static int condition_index(const struct sample_request *q, int chain)
{
    return (int)(q->of_chain[chain] - q->conditions);
}

/* Per-chain numbers in arrays of their own, as samples.safetensors wants them. */
struct columns {
    float *outputs, *energy, *score;
    int32_t *y, *condition;
    uint8_t *diverged;
};

/* `logits` is scratch, [model_logits]. */
static void fill_columns(const struct columns *to, const struct sample_request *q,
                         const struct chain_group *g, float *logits)
{
    const struct attributes *at = &q->model->d.attributes;
    const size_t l = (size_t)model_outputs(q->model), k = (size_t)at->n;
    for (int i = 0; i < q->n_chains; i++) {
        struct chain_result r;
        chain_group_result(g, i, &r);
        memcpy(to->outputs + (size_t)i * l, r.logits, l * sizeof *r.logits);
        score_read(at, r.logits, NULL, logits);
        to->energy[i] = -score_log_px(at, logits, NULL);
        to->score[i] = r.score;
        to->condition[i] = condition_index(q, i);
        to->diverged[i] = r.diverged;
        for (size_t j = 0; j < k; j++)
            to->y[(size_t)i * k + j] = r.y[j];
    }
}

static int add_tensor(struct artifacts *a, const struct sample_request *q,
                      const struct chain_group *g, const char *provenance, struct err *e)
{
    const uint64_t n = (uint64_t)q->n_chains, l = (uint64_t)model_outputs(q->model);
    const size_t scratch = (size_t)model_logits(q->model) * sizeof(float);
    const uint64_t k = (uint64_t)q->model->d.attributes.n;
    const struct net_shape in = q->model->d.input;
    struct arena arena;
    struct chain_result first;
    unsigned char *bytes;
    size_t size;
    int rc = arena_init(&arena,
                        arena_round(n * l * 4) + 3 * arena_round(n * 4) + arena_round(n * k * 4) +
                            arena_round(n) + arena_round(scratch),
                        e);
    if (rc != 0)
        return rc;
    const struct columns c = {.outputs = arena_take(&arena, n * l * 4),
                              .energy = arena_take(&arena, n * 4),
                              .score = arena_take(&arena, n * 4),
                              .y = arena_take(&arena, n * k * 4),
                              .condition = arena_take(&arena, n * 4),
                              .diverged = arena_take(&arena, n)};
    fill_columns(&c, q, g, arena_take(&arena, scratch));
    chain_group_result(g, 0, &first);
    const struct tensor tensors[] = {
        {.name = "x",
         .dtype = TENSOR_F32,
         .n_dims = 4,
         .shape = {n, (uint64_t)in.c, (uint64_t)in.h, (uint64_t)in.w},
         .data = first.x},
        {.name = q->model->joint ? "features" : "logits",
         .dtype = TENSOR_F32,
         .n_dims = 2,
         .shape = {n, l},
         .data = c.outputs},
        {.name = "energy", .dtype = TENSOR_F32, .n_dims = 1, .shape = {n}, .data = c.energy},
        {.name = "score", .dtype = TENSOR_F32, .n_dims = 1, .shape = {n}, .data = c.score},
        {.name = "y", .dtype = TENSOR_I32, .n_dims = 2, .shape = {n, k}, .data = c.y},
        {.name = "condition", .dtype = TENSOR_I32, .n_dims = 1, .shape = {n}, .data = c.condition},
        {.name = "diverged", .dtype = TENSOR_U8, .n_dims = 1, .shape = {n}, .data = c.diverged}};
    const struct tensor_metadata meta[] = {{"provenance", provenance}};
    rc = safetensors_serialise(tensors, sizeof tensors / sizeof tensors[0], meta, 1, &bytes, &size,
                               e);
    arena_fini(&arena);
    if (rc != 0)
        return rc;
    struct blob *body = blob_copy(bytes, size);
    free(bytes);
    return add(a, "samples.safetensors", "application/octet-stream", body, e);
}

static json_t *number_array(const float *v, int n)
{
    json_t *array = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(array, json_real_or_null((double)v[i]));
    return array;
}

static int add_trace(struct artifacts *a, const struct sample_request *q,
                     const struct chain_group *g, struct err *e)
{
    json_t *chains = json_array();
    int every = 1;
    for (int i = 0; i < q->n_chains; i++) {
        struct chain_result r;
        chain_group_result(g, i, &r);
        every = r.trace_every;
        json_array_append_new(chains,
                              json_pack("{s:i, s:i, s:o, s:o}", "chain", i, "condition",
                                        condition_index(q, i), "score",
                                        number_array(r.trace_score, r.n_trace), "mean_abs_gradient",
                                        number_array(r.trace_grad, r.n_trace)));
    }
    json_t *root = json_pack("{s:i, s:o}", "every_steps", every, "chains", chains);
    return add(a, "trace.json", "application/json", json_blob(root), e);
}

static json_t *sampler_json(const struct sampler *s)
{
    json_t *clamp =
        s->clamp ? json_pack("[f, f]", (double)s->clamp_lo, (double)s->clamp_hi) : json_null();
    json_t *root = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:o, s:{s:s, s:i, s:f}}", "kind",
        sampler_kind_names[s->kind], "step_rule", sampler_rule_names[s->rule], "steps", s->steps,
        "langevin_steps", s->langevin_steps, "cool_last", s->cool_last, "step_size",
        (double)s->step_size, "step_norm", (double)s->step_norm, "noise", (double)s->noise,
        "temperature", (double)s->temperature, "pixel_clamp", (double)s->pixel_clamp, "clamp",
        clamp, "start", "kind", start_kind_names[s->start], "grid", s->start_grid, "noise",
        (double)s->start_noise);
    if (sampler_is_metropolis(s))
        json_object_set_new(root, "range",
                            isfinite(s->range_lo)
                                ? json_pack("[f, f]", (double)s->range_lo, (double)s->range_hi)
                                : json_null());
    if (s->kind == SAMPLER_HMC)
        json_object_set_new(root, "leapfrog_steps", json_integer(s->leapfrog_steps));
    return root;
}

static json_t *provenance_json(const struct sample_request *q, const struct blob *request_text)
{
    char seed[24];
    json_t *request = NULL, *mismatches = json_array();
    snprintf(seed, sizeof seed, "%" PRIu64, q->seed);
    if (json_parse((const char *)request_text->bytes, request_text->size, &request, NULL) != 0) {
        json_decref(mismatches);
        return NULL;
    }
    for (int i = 0; q->sampler.start == START_BUFFER && i < q->n_conditions; i++)
        json_array_append_new(mismatches,
                              json_integer(start_buffer_mismatch(q->model, &q->conditions[i])));
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:{s:s, s:s, s:s}, s:o, s:o}", "jemd", JEMD_VERSION,
                  "compute", model_fingerprint(q->model), "rng", "philox4x32-10", "seed", seed,
                  "model", "name", q->model->d.name, "version", q->model->d.version, "digest",
                  q->model->digest, "sampler", sampler_json(&q->sampler), "request", request);
    if (q->sampler.start == START_BUFFER)
        json_object_set_new(root, "buffer_attributes_broken", mismatches);
    else
        json_decref(mismatches);
    return root;
}

/* Calibrated probabilities of the attributes the condition does not leave free. */
static json_t *conditioned_probabilities(const struct sample_request *q, int chain, const float *p)
{
    const struct attributes *at = &q->model->d.attributes;
    json_t *object = json_object();
    for (int k = 0; k < at->n; k++) {
        const struct attribute *a = &at->list[k];
        if (condition_is_free(q->of_chain[chain], k))
            continue;
        json_t *values = json_object();
        for (int v = 0; v < a->n_values; v++)
            json_object_set_new(values, a->values[v], json_real_or_null((double)p[a->first + v]));
        json_object_set_new(object, a->name, values);
    }
    return object;
}

/* Numbers of one sample, reused: logits[model_logits], their probabilities and the likeliest y. */
struct evidence {
    float *logits, *p;
    uint16_t *best;
};

static json_t *sample_json(const struct sample_request *q, const struct chain_group *g, int i,
                           const struct evidence *room)
{
    const struct attributes *at = &q->model->d.attributes;
    const bool summed = score_check(at, NULL) == 0;
    float *logits = room->logits, *p = room->p;
    uint16_t *best = room->best;
    struct chain_result r;
    chain_group_result(g, i, &r);
    score_read(at, r.logits, NULL, logits);
    score_probabilities(at, logits, true, p);
    json_t *attributes = json_object();
    for (int k = 0; k < at->n; k++) {
        const struct attribute *a = &at->list[k];
        best[k] = summed ? 0 : r.y[k];
        for (uint16_t v = 1; v < a->n_values; v++)
            if (p[a->first + v] > p[a->first + best[k]])
                best[k] = v;
        json_object_set_new(attributes, a->name, json_string(a->values[best[k]]));
    }
    return json_pack(
        "{s:i, s:i, s:o, s:o, s:b, s:b, s:i, s:o, s:o}", "index", i, "condition",
        condition_index(q, i), "energy", json_real_or_null((double)-score_log_px(at, logits, NULL)),
        "score", json_real_or_null((double)r.score), "condition_satisfied",
        condition_satisfied(q->of_chain[i], best), "diverged", r.diverged, "steps", r.steps,
        "attributes", attributes, "probabilities", conditioned_probabilities(q, i, p));
}

static json_t *samples_json(const struct sample_request *q, const struct chain_group *g)
{
    const struct attributes *at = &q->model->d.attributes;
    const struct evidence room = {.logits =
                                      malloc((size_t)model_logits(q->model) * sizeof *room.logits),
                                  .p = malloc((size_t)at->n_logits * sizeof *room.p),
                                  .best = malloc((size_t)at->n * sizeof *room.best)};
    json_t *array = room.logits && room.p && room.best ? json_array() : NULL;
    for (int i = 0; array && i < q->n_chains; i++)
        json_array_append_new(array, sample_json(q, g, i, &room));
    free(room.logits);
    free(room.p);
    free(room.best);
    return array;
}

static int render_result(struct artifacts *a, const struct sample_request *q,
                         const struct chain_group *g, struct err *e)
{
    long long steps = 0;
    int satisfied = 0;
    json_t *mixing;
    const int rc = mixing_json(&mixing, q, g, e);
    if (rc != 0)
        return rc;
    json_t *samples = samples_json(q, g), *sample;
    size_t i;
    json_array_foreach(samples, i, sample)
    {
        satisfied += json_is_true(json_object_get(sample, "condition_satisfied"));
        steps += json_integer_value(json_object_get(sample, "steps"));
        a->diverged += json_is_true(json_object_get(sample, "diverged"));
    }
    json_t *warnings = json_array();
    for (int w = 0; w < q->n_warnings; w++)
        json_array_append_new(warnings, json_string(q->warnings[w]));
    if (mixing_is_stuck(q, g))
        json_array_append_new(
            warnings,
            json_string("no proposal was accepted: make \"step_size\" smaller, or \"range\" "
                        "wider if pixels of the start lie on its bounds"));
    json_t *files = json_array();
    for (int f = 0; f < a->n; f++)
        json_array_append_new(files, job_artifact_json(&a->list[f]));
    a->result = json_blob(json_pack("{s:o, s:o, s:{s:I, s:i, s:i, s:i, s:o}, s:o}", "artifacts",
                                    files, "samples", samples, "diagnostics", "chain_steps",
                                    (json_int_t)steps, "chains", q->n_chains, "diverged_chains",
                                    a->diverged, "conditions_satisfied", satisfied, "conditions",
                                    mixing, "warnings", warnings));
    return a->result ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the result");
}

int artifacts_render(struct artifacts *out, const struct sample_request *q,
                     const struct chain_group *g, const struct blob *request_text, struct err *e)
{
    struct artifacts a = {0};
    size_t size = 0;
    json_forget();
    json_t *root = provenance_json(q, request_text);
    char *provenance = json_text(root, &size);
    json_decref(root);
    a.list = calloc((size_t)q->n_chains + FIXED_ARTIFACTS, sizeof *a.list);
    int rc = a.list && provenance ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the artifacts");
    if (rc == 0 && q->outputs & SAMPLE_GRID)
        rc = add_grid(&a, q, g, e);
    if (rc == 0 && q->outputs & SAMPLE_IMAGES)
        rc = add_images(&a, q, g, e);
    if (rc == 0 && q->outputs & SAMPLE_TENSOR)
        rc = add_tensor(&a, q, g, provenance, e);
    if (rc == 0 && q->outputs & SAMPLE_TRACE)
        rc = add_trace(&a, q, g, e);
    if (rc == 0) {
        rc = add(&a, "provenance.json", "application/json", blob_copy(provenance, size), e);
        if (rc == 0)
            rc = render_result(&a, q, g, e);
    }
    free(provenance);
    if (rc != 0) {
        artifacts_fini(&a);
        json_forget();
        return rc;
    }
    *out = a;
    return 0;
}

void artifacts_fini(struct artifacts *a)
{
    for (int i = 0; i < a->n; i++)
        blob_put(a->list[i].body);
    free(a->list);
    blob_put(a->result);
    *a = (struct artifacts){0};
}
