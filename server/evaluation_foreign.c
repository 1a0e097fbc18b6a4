/* SPDX-License-Identifier: Apache-2.0 */
/* Foreign images against familiar ones: sets from outside, the familiar images transformed, and the
 * score that a calibration split would have chosen. */
#include "ebm/calibrate.h"
#include "server/evaluation_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MEASURES = 3, CURVE = 100, HISTOGRAM = 40 };
static const char *const measure_names[MEASURES] = {"auroc", "aupr", "fpr95"};

/* Scores of foreign images against those of familiar ones. */
struct comparison {
    const struct eval_pass *familiar, *foreign;
    struct ranking ranks[EVAL_SCORES];
    struct interval v[EVAL_SCORES * MEASURES];
};

static void statistic(void *ctx, int worker, const uint32_t *times, double *out)
{
    const struct comparison *c = ctx;
    (void)worker;
    for (int i = 0; i < EVAL_SCORES; i++, out += MEASURES) {
        struct ranking_measures m;
        ranking_measure(&c->ranks[i], times, &m);
        out[0] = m.auroc;
        out[1] = m.ap;
        out[2] = m.fpr95;
    }
}

static int rank(struct comparison *c, const struct eval_pass *familiar,
                const struct eval_pass *foreign, struct err *e)
{
    *c = (struct comparison){.familiar = familiar, .foreign = foreign};
    for (int i = 0; i < EVAL_SCORES; i++) {
        const struct evaluate_scores known = {familiar->scores[i], familiar->n},
                                     other = {foreign->scores[i], foreign->n};
        const int rc = evaluate_rank(&c->ranks[i], &known, &other, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* With intervals. */
static int measure(struct comparison *c, const struct evaluation_state *r, struct err *e)
{
    return bootstrap_run(c->v,
                         &(struct bootstrap){.seed = r->s->seed,
                                             .resamples = r->s->resamples,
                                             .strata = {c->familiar->n, c->foreign->n},
                                             .figures = EVAL_SCORES * MEASURES,
                                             .statistic = statistic,
                                             .ctx = c,
                                             .pool = r->pool,
                                             .stop = r->s->watch.cancel},
                         e);
}

static void comparison_fini(struct comparison *c)
{
    for (int i = 0; i < EVAL_SCORES; i++)
        ranking_fini(&c->ranks[i]);
}

static json_t *curve_json(const struct ranking *r)
{
    double fpr[2 * CURVE + 2], tpr[2 * CURVE + 2];
    const size_t n = ranking_curve(r, CURVE, fpr, tpr);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("[f, f]", fpr[i], tpr[i]));
    return list;
}

/* Energies around the familiar ones' median in units of their quartiles' distance, large ones
 * compressed: asinh. Familiar and foreign energies then fit into one picture. */
struct scale {
    double middle, spread;
};

static double squeeze(const struct scale *s, double energy)
{
    return asinh((energy - s->middle) / s->spread);
}

static json_t *counts_json(const struct scale *s, const struct eval_pass *p, double lo, double step)
{
    size_t counts[HISTOGRAM] = {0};
    json_t *list = json_array();
    for (size_t i = 0; i < p->n; i++) {
        const double at = (squeeze(s, -(double)p->scores[EVAL_LOG_PX][i]) - lo) / step;
        counts[at < 0 ? 0 : at >= HISTOGRAM ? HISTOGRAM - 1 : (int)at]++;
    }
    for (int b = 0; b < HISTOGRAM; b++)
        json_array_append_new(list, json_integer((json_int_t)counts[b]));
    return list;
}

static int put_histogram(json_t *o, const struct comparison *c, struct err *e)
{
    const struct eval_pass *const sides[2] = {c->familiar, c->foreign};
    const size_t n = c->familiar->n;
    float *energies = calloc(n, sizeof *energies);
    if (!energies)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++)
        energies[i] = -c->familiar->scores[EVAL_LOG_PX][i];
    const int rc = calibrate_sort(energies, n, e);
    if (rc == 0) {
        struct scale s = {.middle = calibrate_quantile(energies, n, .5)};
        s.spread = calibrate_quantile(energies, n, .75) - calibrate_quantile(energies, n, .25);
        s.spread = s.spread > 0 ? s.spread : 1;
        double lo = INFINITY, hi = -INFINITY;
        for (int j = 0; j < 2; j++)
            for (size_t i = 0; i < sides[j]->n; i++) {
                const double at = squeeze(&s, -(double)sides[j]->scores[EVAL_LOG_PX][i]);
                lo = fmin(lo, at);
                hi = fmax(hi, at);
            }
        const double step = hi > lo ? (hi - lo) / HISTOGRAM : 1.0 / HISTOGRAM;
        json_t *edges = json_array();
        for (int b = 0; b <= HISTOGRAM; b++)
            json_array_append_new(edges, json_real(s.middle + s.spread * sinh(lo + step * b)));
        json_object_set_new(o, "energy_histogram",
                            json_pack("{s:o, s:o, s:o}", "edges", edges, "familiar",
                                      counts_json(&s, c->familiar, lo, step), "foreign",
                                      counts_json(&s, c->foreign, lo, step)));
    }
    free(energies);
    return rc;
}

static void put_measures(json_t *o, const struct comparison *c, int score)
{
    json_t *intervals = json_object();
    for (int m = 0; m < MEASURES; m++)
        evaluation_put(o, intervals, measure_names[m], &c->v[score * MEASURES + m]);
    json_object_set_new(o, "intervals", intervals);
}

/* The object of one set and score. */
static json_t *entry_json(const struct evaluation_state *r, const struct comparison *c, int score,
                          const char *name)
{
    const struct evaluation_split *s = &r->splits[r->familiar];
    json_t *o = json_pack("{s:s, s:I, s:s, s:s, s:I}", "name", name, "n", (json_int_t)c->foreign->n,
                          "score", eval_score_names[score], "familiar_split", s->name, "familiar_n",
                          (json_int_t)c->familiar->n);
    put_measures(o, c, score);
    json_object_set_new(o, "curve", curve_json(&c->ranks[score]));
    return o;
}

/* ---- sets from outside ---- */

static int foreign_set(struct evaluation_state *r, const struct evaluation_foreign *f, json_t *list,
                       struct err *e)
{
    struct dataset set = {0};
    struct eval_pass pass = {0};
    struct comparison c = {0};
    char data[EVALUATION_NAME_MAX];
    int rc = evaluation_open(r, &set, f->dir, f->split, false, e);
    if (rc != 0)
        return rc;
    evaluation_base_name(f->dir, data);
    rc = evaluation_pass(r, &pass, &set, (struct eval_setup){.gradients = true, .what = data}, e);
    if (rc == 0)
        rc = rank(&c, &r->splits[r->familiar].pass, &pass, e);
    if (rc == 0)
        rc = measure(&c, r, e);
    for (int i = 0; rc == 0 && i < EVAL_SCORES; i++) {
        json_t *o = entry_json(r, &c, i, f->name[0] ? f->name : data);
        json_object_set_new(o, "data", json_string(data));
        json_object_set_new(o, "split", json_string(f->split));
        json_object_set_new(o, "preprocessing", json_string(evaluation_preprocessing(r, &set)));
        json_object_set_new(o, "data_sha256", json_string(set.sha256));
        if (i == EVAL_LOG_PX) {
            rc = put_histogram(o, &c, e);
            if (rc == 0)
                rc = evaluation_put_p_values(r, o, &pass, set.sha256, e);
        }
        json_array_append_new(list, o);
    }
    comparison_fini(&c);
    eval_pass_free(&pass);
    dataset_close(&set);
    return rc == 0 ? 0 : evaluation_blame(e, f->dir, f->split);
}

/* ---- transformations ---- */

static int transformed(const struct evaluation_state *r, struct comparison *c,
                       struct eval_pass *pass, int split, enum transform_kind kind, struct err *e)
{
    const struct evaluation_split *s = &r->splits[split];
    int rc = evaluation_pass(r, pass, &s->set,
                             (struct eval_setup){.gradients = true,
                                                 .limit = r->s->transformed,
                                                 .transform = kind,
                                                 .what = transform_names[kind]},
                             e);
    if (rc == 0)
        rc = rank(c, &s->pass, pass, e);
    return rc == 0 ? 0 : evaluation_blame(e, r->s->data, s->name);
}

/* AUROC of every transformation and score on the calibration split. */
struct choice {
    double auroc[TRANSFORM_KINDS][EVAL_SCORES];
};

static int best_of(const double auroc[EVAL_SCORES])
{
    int best = 0;
    for (int i = 1; i < EVAL_SCORES; i++)
        best = auroc[i] > auroc[best] ? i : best;
    return best;
}

static int calibrate_choice(const struct evaluation_state *r, struct choice *out, struct err *e)
{
    int rc = 0;
    for (int kind = TRANSFORM_NONE + 1; rc == 0 && kind < TRANSFORM_KINDS; kind++) {
        struct eval_pass pass = {0};
        struct comparison c = {0};
        rc = transformed(r, &c, &pass, 0, (enum transform_kind)kind, e);
        for (int i = 0; rc == 0 && i < EVAL_SCORES; i++) {
            struct ranking_measures m;
            ranking_measure(&c.ranks[i], NULL, &m);
            out->auroc[kind][i] = m.auroc;
        }
        comparison_fini(&c);
        eval_pass_free(&pass);
    }
    return rc;
}

/* The chosen score's measures out of a list of entries, for every set of the list or for `name`
 * alone. */
static void chosen(json_t *out, const json_t *list, const char *score, const char *name,
                   const double *calibration)
{
    size_t i;
    json_t *o;
    json_array_foreach(list, i, o)
    {
        const char *its = json_string_value(json_object_get(o, "name"));
        if (strcmp(json_string_value(json_object_get(o, "score")), score) != 0 ||
            (name && strcmp(its, name) != 0))
            continue;
        json_t *copy = json_pack("{s:s, s:s}", "name", its, "score", score);
        json_object_set(copy, "n", json_object_get(o, "n"));
        for (int m = 0; m < MEASURES; m++)
            json_object_set(copy, measure_names[m], json_object_get(o, measure_names[m]));
        json_object_set(copy, "intervals", json_object_get(o, "intervals"));
        if (calibration)
            json_object_set_new(copy, "auroc_calibration", json_real(*calibration));
        json_array_append_new(out, copy);
    }
}

static json_t *best_json(const struct evaluation_state *r, const struct choice *choice,
                         const json_t *transformations, const json_t *ood)
{
    double mean[EVAL_SCORES] = {0};
    json_t *each = json_array(), *overall = json_array();
    for (int kind = TRANSFORM_NONE + 1; kind < TRANSFORM_KINDS; kind++) {
        const int best = best_of(choice->auroc[kind]);
        chosen(each, transformations, eval_score_names[best], transform_names[kind],
               &choice->auroc[kind][best]);
        for (int i = 0; i < EVAL_SCORES; i++)
            mean[i] += choice->auroc[kind][i] / (TRANSFORM_KINDS - 1);
    }
    const int best = best_of(mean);
    chosen(overall, transformations, eval_score_names[best], NULL, NULL);
    chosen(overall, ood, eval_score_names[best], NULL, NULL);
    return json_pack("{s:s, s:o, s:o}", "chosen_on", r->splits[0].name, "by_transformation", each,
                     "overall",
                     json_pack("{s:s, s:f, s:o}", "score", eval_score_names[best],
                               "mean_auroc_calibration", mean[best], "sets", overall));
}

static int transformations(struct evaluation_state *r, json_t *list, struct err *e)
{
    int rc = 0;
    for (int kind = TRANSFORM_NONE + 1; rc == 0 && kind < TRANSFORM_KINDS; kind++) {
        struct eval_pass pass = {0};
        struct comparison c = {0};
        rc = transformed(r, &c, &pass, r->familiar, (enum transform_kind)kind, e);
        if (rc == 0)
            rc = measure(&c, r, e);
        for (int i = 0; rc == 0 && i < EVAL_SCORES; i++) {
            json_t *o = entry_json(r, &c, i, transform_names[kind]);
            if (i == EVAL_LOG_PX)
                rc = put_histogram(o, &c, e);
            json_array_append_new(list, o);
        }
        comparison_fini(&c);
        eval_pass_free(&pass);
    }
    return rc;
}

int evaluation_measure_foreign(struct evaluation_state *r, struct err *e)
{
    json_t *ood = json_array(), *made = json_array();
    struct choice choice;
    /* two images at least, for one to be mixed with another */
    const bool transforms = r->s->transformed && r->splits[r->familiar].pass.n > 1;
    const bool choosing = transforms && r->familiar > 0 && r->splits[0].pass.n > 1;
    int rc = 0;
    for (int i = 0; rc == 0 && i < r->s->n_foreign; i++)
        rc = foreign_set(r, &r->s->foreign[i], ood, e);
    if (rc == 0 && transforms)
        rc = transformations(r, made, e);
    if (rc == 0 && choosing)
        rc = calibrate_choice(r, &choice, e);
    if (rc == 0 && choosing)
        json_object_set_new(r->out->report, "best_score", best_json(r, &choice, made, ood));
    json_object_set_new(r->out->report, "ood", ood);
    json_object_set_new(r->out->report, "transformations", made);
    return rc;
}
