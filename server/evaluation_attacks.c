/* SPDX-License-Identifier: Apache-2.0 */
/* Accuracy under attack, plain and after refinement (JEM-k). The attacks are on the plain model. */
#include "server/evaluation_internal.h"

#include <stdlib.h>
#include <string.h>

/* A pixel value from 0 to 1 in units of x. */
static float pixel_unit(const struct model *m)
{
    return 255 * m->d.pixel_scale;
}

/* Labels right (whole: images with every one right), among n images with these logits. */
static json_t *share_json(const struct evaluation_state *r, const float *logits, size_t n,
                          bool whole, struct err *e)
{
    const struct attributes *a = &r->model->d.attributes;
    const size_t stride = (size_t)model_logits(r->model);
    const uint8_t *labels = r->splits[r->familiar].set.labels;
    uint16_t *counts = calloc(2 * n, sizeof *counts);
    struct interval v = {0};
    size_t used = 0;
    if (!counts) {
        fail(e, FAIL_NO_MEMORY, "out of memory");
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        int hits = 0, of = 0;
        for (int k = 0; k < a->n; k++) {
            const uint8_t y = labels[i * (size_t)a->n + (size_t)k];
            const float *f = logits + i * stride + a->list[k].first;
            of += y != DATASET_MISSING;
            hits += y != DATASET_MISSING && evaluate_top(f, a->list[k].n_values) == y;
        }
        counts[i] = (uint16_t)(whole ? of > 0 && hits == of : hits);
        counts[n + i] = (uint16_t)(whole ? of > 0 : of);
        used += of > 0;
    }
    const struct bootstrap_counts c = {.n = n, .hits = counts, .of = counts + n};
    const int rc = bootstrap_share(&v, &c, r->s->seed, r->s->resamples, r->pool, e);
    free(counts);
    return rc == 0 ? judge_share_json(&(struct judge_share){.n = used, .share = v}) : NULL;
}

/* {"right": share, "all": share}; NULL on an error. */
static json_t *shares_json(const struct evaluation_state *r, const float *logits, size_t n,
                           struct err *e)
{
    json_t *right = share_json(r, logits, n, false, e);
    json_t *all = right ? share_json(r, logits, n, true, e) : NULL;
    if (all)
        return json_pack("{s:o, s:o}", "right", right, "all", all);
    json_decref(right);
    return NULL;
}

/* Plain and refined accuracy of a pass into o. */
static int put_pass(json_t *o, const struct evaluation_state *r, const struct eval_pass *p,
                    struct err *e)
{
    const size_t stride = (size_t)model_logits(r->model);
    json_t *plain = shares_json(r, p->logits, p->n, e), *list = json_array();
    json_object_set_new(o, "plain", plain);
    json_object_set_new(o, "refined", list);
    if (!plain)
        return -(int)e->code;
    for (int i = 0; i < r->s->n_refines; i++) {
        json_t *shares = shares_json(r, p->refined + (size_t)i * p->n * stride, p->n, e);
        if (!shares)
            return -(int)e->code;
        json_object_set_new(shares, "k", json_integer(r->s->refine_steps[i]));
        json_array_append_new(list, shares);
    }
    return 0;
}

/* One pass, under `attack` (NULL: of the images as they are). */
static int measure(const struct evaluation_state *r, json_t *o, const struct attack *attack,
                   const struct refine *refines, struct err *e)
{
    const struct evaluation_split *s = &r->splits[r->familiar];
    struct eval_pass pass;
    int rc = evaluation_pass(
        r, &pass, &s->set,
        (struct eval_setup){.limit = r->s->attacked,
                            .attack = attack,
                            .refine = refines,
                            .n_refine = r->s->n_refines,
                            .what = attack ? attack_norm_names[attack->norm] : "unattacked"},
        e);
    if (rc != 0)
        return rc;
    rc = put_pass(o, r, &pass, e);
    eval_pass_free(&pass);
    return rc;
}

static int attack_all(const struct evaluation_state *r, json_t *points,
                      const struct refine *refines, struct err *e)
{
    const struct description *d = &r->model->d;
    int rc = 0;
    for (int i = 0; rc == 0 && i < r->s->n_attacks; i++) {
        const struct evaluation_attack *a = &r->s->attacks[i];
        for (int j = 0; rc == 0 && j < a->n_radii; j++) {
            const struct attack attack = {.norm = a->norm,
                                          .eps = (float)a->radii[j] * pixel_unit(r->model),
                                          .steps = a->steps,
                                          .lo = d->pixel_offset,
                                          .hi = d->pixel_offset + pixel_unit(r->model),
                                          .seed = r->s->seed};
            json_t *o = json_pack("{s:s, s:f, s:i, s:f}", "norm", attack_norm_names[a->norm], "eps",
                                  a->radii[j], "steps", a->steps, "step_size",
                                  2.5 * a->radii[j] / a->steps);
            json_array_append_new(points, o);
            rc = measure(r, o, &attack, refines, e);
        }
    }
    return rc;
}

int evaluation_measure_attacks(struct evaluation_state *r, struct err *e)
{
    const struct evaluation_setup *s = r->s;
    const struct evaluation_split *split = &r->splits[r->familiar];
    struct refine refines[EVALUATION_REFINES];
    if (s->n_attacks == 0 && s->n_refines == 0)
        return 0;
    for (int i = 0; i < s->n_refines; i++)
        refines[i] = (struct refine){.sampler = refine_sampler(r->model, s->refine_steps[i]),
                                     .copies = s->refine_copies,
                                     .sigma = (float)s->refine_sigma * pixel_unit(r->model),
                                     .seed = s->seed};
    json_t *clean = json_object(), *points = json_array();
    json_t *o =
        json_pack("{s:s, s:I, s:s, s:i, s:f, s:o, s:o}", "split", split->name, "n",
                  (json_int_t)(split->pass.n < s->attacked ? split->pass.n : s->attacked),
                  "attack_on", "the plain model: it does not know of the refinement", "copies",
                  s->refine_copies, "sigma", s->refine_sigma, "clean", clean, "points", points);
    json_object_set_new(r->out->report, "robustness", o);
    const int rc = measure(r, clean, NULL, refines, e);
    return rc == 0 ? attack_all(r, points, refines, e) : rc;
}
