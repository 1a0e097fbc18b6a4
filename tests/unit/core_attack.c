/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"
#include "ebm/attack.h"
#include "ebm/evaluate.h"
#include "ebm/refine.h"
#include "ebm/score.h"
#include "unit/test_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 12, SIDE = 6, ELEMENTS = SIDE * SIDE, LOGITS = 5, K = 2 };

static const char json[] =
    "{\"format\":1,\"name\":\"attacked\",\"version\":\"1\","
    "\"input\":{\"channels\":1,\"height\":6,\"width\":6,\"range\":[0,1]},"
    "\"layers\":[{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"a\",\"in\":36,\"out\":"
    "12},"
    "{\"kind\":\"silu\"},{\"kind\":\"linear\",\"weights\":\"b\",\"in\":12,\"out\":5}],"
    "\"attributes\":[{\"name\":\"p\",\"values\":[\"x\",\"y\"]},"
    "{\"name\":\"q\",\"values\":[\"x\",\"y\",\"z\"]}]}";

struct bench {
    struct model *m;
    struct workspace *w;
    struct attack_room *attack;
    struct refine_room *refine;
    float clean[N * ELEMENTS], x[N * ELEMENTS];
    uint8_t labels[N * K];
};

static int set_up(void **state)
{
    static struct bench b;
    const struct engine *engine;
    struct err e;
    struct test_weights weights = {.seed = 5};
    b.m = test_model(json, &weights, NULL, 0);
    if (model_engine(b.m, &engine, &e) != 0 ||
        workspace_open_engine(&b.w, engine, N, true, NULL, &e) != 0 ||
        attack_room_open(&b.attack, b.m->net, N, &e) != 0 ||
        refine_room_open(&b.refine, b.m, N, &e) != 0)
        return -1;
    rng_uniform(&(struct rng_stream){.seed = 3}, b.clean, N * ELEMENTS);
    /* labels: the model's own answers, one wrong and one missing */
    const float *logits = net_forward(b.w, N, b.clean);
    for (int i = 0; i < N; i++) {
        b.labels[i * K] = (uint8_t)evaluate_top(logits + i * LOGITS, 2);
        b.labels[i * K + 1] = (uint8_t)evaluate_top(logits + i * LOGITS + 2, 3);
    }
    b.labels[0] ^= 1;
    b.labels[3] = 255;
    *state = &b;
    return 0;
}

static int tear_down(void **state)
{
    struct bench *b = *state;
    attack_room_close(b->attack);
    refine_room_close(b->refine);
    workspace_close(b->w);
    model_put(b->m);
    return 0;
}

/* Known labels that are right, and the cross entropy. */
static int right(struct bench *b, const float *x, double loss[N])
{
    const float *logits = net_forward(b->w, N, x);
    int hits = 0;
    for (int i = 0; i < N; i++) {
        loss[i] = 0;
        for (int k = 0; k < K; k++) {
            const struct attribute *a = &b->m->d.attributes.list[k];
            const float *f = logits + i * LOGITS + a->first;
            const int y = b->labels[i * K + k];
            if (y == 255)
                continue;
            hits += evaluate_top(f, a->n_values) == y;
            loss[i] += evaluate_log_sum(f, a->n_values, 1) - (double)f[y];
        }
    }
    return hits;
}

static double distance(enum attack_norm norm, const float *a, const float *b)
{
    double most = 0, sum = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        most = fmax(most, d);
        sum += d * d;
    }
    return norm == ATTACK_LINF ? most : sqrt(sum);
}

static void attack(struct bench *b, enum attack_norm norm, float eps, int steps)
{
    const struct attack a = {.norm = norm, .eps = eps, .steps = steps, .hi = 1, .seed = 7};
    attack_run(&a, &b->m->d.attributes, b->w, b->attack, N, 0, b->clean, b->labels, b->x);
}

static void an_attack_stays_in_its_ball_and_in_range(void **state)
{
    struct bench *b = *state;
    const float radii[] = {0.01f, 0.1f, 0.5f, 3};
    for (int norm = 0; norm < ATTACK_NORMS; norm++)
        for (int r = 0; r < 4; r++) {
            attack(b, (enum attack_norm)norm, radii[r], 7);
            for (int i = 0; i < N; i++) {
                const double d =
                    distance((enum attack_norm)norm, b->x + i * ELEMENTS, b->clean + i * ELEMENTS);
                assert_true(d <= (double)radii[r] * (1 + 1e-5));
            }
            for (int i = 0; i < N * ELEMENTS; i++)
                assert_true(b->x[i] >= 0 && b->x[i] <= 1);
        }
}

static void an_attack_never_helps_and_more_room_harms_more(void **state)
{
    struct bench *b = *state;
    double before[N], after[N];
    const int clean = right(b, b->clean, before);
    assert_int_equal(clean, N * K - 2);
    for (int norm = 0; norm < ATTACK_NORMS; norm++) {
        double last = 0;
        for (int i = 0; i < N; i++)
            last += before[i];
        for (float eps = 0.02f; eps < 1; eps *= 3) {
            attack(b, (enum attack_norm)norm, norm == ATTACK_L2 ? 3 * eps : eps, 15);
            assert_true(right(b, b->x, after) <= clean);
            double sum = 0;
            for (int i = 0; i < N; i++) {
                assert_true(after[i] >= before[i]);
                sum += after[i];
            }
            assert_true(sum > last);
            last = sum;
        }
        /* the whole range is room enough to be wrong nearly everywhere */
        assert_true(right(b, b->x, after) < clean / 2);
    }
}

/* Without a step but the random start, gradients are what does the harm. */
static void steps_do_more_than_the_random_start(void **state)
{
    struct bench *b = *state;
    double one[N], many[N], a = 0, c = 0;
    attack(b, ATTACK_LINF, 0.1f, 1);
    right(b, b->x, one);
    attack(b, ATTACK_LINF, 0.1f, 20);
    right(b, b->x, many);
    for (int i = 0; i < N; i++) {
        a += one[i];
        c += many[i];
    }
    assert_true(c > a);
}

static void an_attack_does_not_depend_on_the_batch(void **state)
{
    struct bench *b = *state;
    const struct attack a = {.norm = ATTACK_L2, .eps = 0.5f, .steps = 5, .hi = 1, .seed = 7};
    float x[ELEMENTS];
    attack(b, ATTACK_L2, 0.5f, 5);
    for (int i = 0; i < N; i++) {
        attack_run(&a, &b->m->d.attributes, b->w, b->attack, 1, (uint32_t)i,
                   b->clean + i * ELEMENTS, b->labels + i * K, x);
        assert_memory_equal(x, b->x + i * ELEMENTS, sizeof x);
    }
}

static void images_without_labels_are_left_alone(void **state)
{
    struct bench *b = *state;
    uint8_t none[N * K];
    memset(none, 255, sizeof none);
    const struct attack a = {.norm = ATTACK_LINF, .eps = 0.5f, .steps = 5, .hi = 1};
    attack_run(&a, &b->m->d.attributes, b->w, b->attack, N, 0, b->clean, none, b->x);
    assert_memory_equal(b->x, b->clean, sizeof b->clean);
}

/* ---- refinement ---- */

static struct refine refinement(const struct bench *b, int k)
{
    struct refine r = {.sampler = refine_sampler(b->m, k), .copies = 3, .sigma = 0.02f, .seed = 11};
    r.sampler.kind = SAMPLER_SGLD;
    r.sampler.rule = SAMPLER_FIXED;
    r.sampler.step_size = 0.3f;
    r.sampler.noise = 0.01f;
    r.sampler.clamp = true;
    r.sampler.clamp_lo = 0;
    r.sampler.clamp_hi = 1;
    return r;
}

/* Copies, steps and mean once more, image by image, straight from the definition. */
static void refinement_agrees_with_its_definition(void **state)
{
    struct bench *b = *state;
    enum { STEPS = 4 };
    const struct refine r = refinement(b, STEPS);
    float logits[N * LOGITS], noise[ELEMENTS];
    refine_run(&r, b->m, b->w, b->refine, N, 40, b->clean, logits);
    for (uint32_t i = 0; i < N; i++) {
        double mean[LOGITS] = {0};
        for (uint32_t c = 0; c < 3; c++) {
            float x[ELEMENTS], dlogits[LOGITS], g[ELEMENTS];
            struct rng_stream s = {
                .seed = 11, .chain = (40 + i) * 3 + c, .purpose = RNG_REFINE_START};
            rng_normal(&s, noise, ELEMENTS);
            for (int j = 0; j < ELEMENTS; j++)
                x[j] = fminf(fmaxf(b->clean[i * ELEMENTS + (uint32_t)j] + 0.02f * noise[j], 0), 1);
            s.purpose = RNG_REFINE_STEP;
            for (uint32_t t = 0; t < STEPS; t++) {
                s.step = t;
                score_log_px(&b->m->d.attributes, net_forward(b->w, 1, x), dlogits);
                net_backward_input(b->w, 1, dlogits, g);
                rng_normal(&s, noise, ELEMENTS);
                for (int j = 0; j < ELEMENTS; j++)
                    x[j] = fminf(fmaxf(x[j] + 0.3f * g[j] + 0.01f * noise[j], 0), 1);
            }
            const float *f = net_forward(b->w, 1, x);
            for (int l = 0; l < LOGITS; l++)
                mean[l] += (double)f[l] / 3;
        }
        for (int l = 0; l < LOGITS; l++)
            assert_true(fabs(mean[l] - (double)logits[i * LOGITS + (uint32_t)l]) < 1e-5);
    }
}

static void a_refinement_does_not_depend_on_the_batch(void **state)
{
    struct bench *b = *state;
    const struct refine r = refinement(b, 3);
    float together[N * LOGITS], alone[LOGITS];
    refine_run(&r, b->m, b->w, b->refine, N, 0, b->clean, together);
    for (uint32_t i = 0; i < N; i++) {
        refine_run(&r, b->m, b->w, b->refine, 1, i, b->clean + i * ELEMENTS, alone);
        assert_memory_equal(alone, together + i * LOGITS, sizeof alone);
    }
}

static void refinement_raises_log_p(void **state)
{
    struct bench *b = *state;
    struct refine r = refinement(b, 40);
    float before[N * LOGITS], after[N * LOGITS];
    r.sampler.noise = 0;
    refine_run(&r, b->m, b->w, b->refine, N, 0, b->clean, after);
    r.sampler.steps = 0;
    refine_run(&r, b->m, b->w, b->refine, N, 0, b->clean, before);
    for (int i = 0; i < N; i++)
        assert_true(score_log_px(&b->m->d.attributes, after + i * LOGITS, NULL) >
                    score_log_px(&b->m->d.attributes, before + i * LOGITS, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_attack_stays_in_its_ball_and_in_range),
        cmocka_unit_test(an_attack_never_helps_and_more_room_harms_more),
        cmocka_unit_test(steps_do_more_than_the_random_start),
        cmocka_unit_test(an_attack_does_not_depend_on_the_batch),
        cmocka_unit_test(images_without_labels_are_left_alone),
        cmocka_unit_test(refinement_agrees_with_its_definition),
        cmocka_unit_test(a_refinement_does_not_depend_on_the_batch),
        cmocka_unit_test(refinement_raises_log_p),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
