/* SPDX-License-Identifier: Apache-2.0 */
/* Chains of the general family: y by Gibbs-With-Gradients beside Langevin steps, the bits whatever
 * the batch, resumed or not, and what conditions allow. */
#include "ebm/gwg.h"
#include "ebm/score.h"
#include "test_allocations.h"
#include "unit/test_chains.h"

enum { K = 3, MANY = 2000, COMBINATIONS = 12 };

#define PAIR_MODEL(energy, sizes)                                                                  \
    "{\"format\":1,\"name\":\"pairs\",\"version\":\"1\",\"family\":\"gibbs-jem\","                 \
    "\"input\":{\"channels\":1,\"height\":3,\"width\":3,\"range\":[0,1]},\"layers\":["             \
    "{\"kind\":\"conv\",\"weights\":\"c0\",\"in\":1,\"out\":4,\"kernel\":2},{\"kind\":\"silu\"},"  \
    "{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"l\",\"in\":16,\"out\":6}],"         \
    "\"energy\":" energy ",\"attributes\":" sizes "}"
#define SIZES                                                                                      \
    "[{\"name\":\"a\",\"values\":[\"0\",\"1\"]},{\"name\":\"b\",\"values\":[\"0\",\"1\",\"2\"]},"  \
    "{\"name\":\"c\",\"values\":[\"0\",\"1\"]}]"
#define DOT                                                                                        \
    "{\"kind\":\"dot\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"y0\",\"in\":7,\"out\":9},"   \
    "{\"kind\":\"silu\"},{\"kind\":\"linear\",\"weights\":\"y1\",\"in\":9,\"out\":6}]}"
#define MLP                                                                                        \
    "{\"kind\":\"mlp\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"y0\",\"in\":13,\"out\":8},"  \
    "{\"kind\":\"silu\"},{\"kind\":\"linear\",\"weights\":\"y1\",\"in\":8,\"out\":5},"             \
    "{\"kind\":\"lrelu\"},{\"kind\":\"linear\",\"weights\":\"y2\",\"in\":5,\"out\":1}]}"

static const char *const texts[] = {PAIR_MODEL(DOT, SIZES), PAIR_MODEL(MLP, SIZES)};
enum { MODELS = sizeof texts / sizeof texts[0] };

static struct model *open_model(const char *text, float louder)
{
    struct test_weights w = {.seed = 4};
    test_model_draw_weights(text, &w);
    for (int i = 0; i < w.n; i++)
        for (size_t j = 0; w.list[i].name[0] == 'y' && j < w.list[i].elements; j++)
            w.list[i].data[j] *= louder;
    return test_model(text, &w, NULL, 0);
}

/* One condition for all chains of a task. */
struct work {
    struct condition condition;
    const struct condition **list;
    struct sampler sampler;
    struct chain_task task;
};

static void work_open(struct work *w, struct model *m, int chains, struct sampler s)
{
    struct err e;
    *w = (struct work){.sampler = s};
    assert_int_equal(condition_init(&w->condition, &m->d.attributes, 1, &e), 0);
    w->list = malloc((size_t)chains * sizeof *w->list);
    assert_non_null(w->list);
    for (int i = 0; i < chains; i++)
        w->list[i] = &w->condition;
    w->task = (struct chain_task){.model = m,
                                  .n_chains = chains,
                                  .conditions = w->list,
                                  .sampler = &w->sampler,
                                  .image = image,
                                  .seed = 77,
                                  .weight = 1};
}

static void work_close(struct work *w)
{
    condition_fini(&w->condition);
    free(w->list);
}

static const struct sampler gibbs = {.kind = SAMPLER_GIBBS,
                                     .steps = 40,
                                     .langevin_steps = 2,
                                     .step_size = 0.3f,
                                     .noise = 0.05f,
                                     .temperature = 1,
                                     .clamp = true,
                                     .clamp_hi = 1};

static struct outcome run_alone(const struct chain_task *t)
{
    struct job j;
    struct chains *c = engine(1, 1, 1000000);
    submit(c, &j, t, NULL);
    wait_done(&j);
    const struct outcome o = outcome_of(j.group, t);
    chain_group_free(j.group);
    chains_close(c);
    return o;
}

static void same(struct outcome got, const struct outcome *wanted, const char *what)
{
    if (got.size != wanted->size || memcmp(got.bytes, wanted->bytes, got.size) != 0)
        fail_msg("%s: another result than alone", what);
    free(got.bytes);
}

static void bits_do_not_depend_on_the_batch_or_on_a_resume(void **state)
{
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        struct model *m = open_model(texts[i], 3);
        for (int kind = 0; kind < 3; kind++) {
            struct work w, other;
            struct job j, k;
            struct sampler s = gibbs;
            s.kind = kind ? SAMPLER_SGLD : SAMPLER_GIBBS;
            if (kind == 2) {
                s = sampler_metropolis_like(&gibbs, SAMPLER_HMC, 0, 1);
                s.leapfrog_steps = 3;
            }
            work_open(&w, m, 5, s);
            s.steps = 33;
            work_open(&other, m, 4, s);
            other.task.seed = 5;
            condition_fix(&w.condition, 0, 1, 2);
            const struct outcome wanted = run_alone(&w.task);

            struct chains *c = engine(2, 3, 2);
            submit(c, &k, &other.task, NULL);
            submit(c, &j, &w.task, NULL);
            wait_done(&j);
            same(outcome_of(j.group, &w.task), &wanted, "in company");
            chain_group_free(j.group);
            wait_done(&k);
            chain_group_free(k.group);
            chains_close(c);

            c = engine(1, 2, 3);
            submit(c, &j, &w.task, NULL);
            wait_steps(j.group, 40);
            chains_stop(c);
            struct blob *half = checkpoint_of(j.group);
            chain_group_free(j.group);
            chains_close(c);
            c = engine(1, 4, 7);
            submit(c, &j, &w.task, half);
            wait_done(&j);
            same(outcome_of(j.group, &w.task), &wanted, "resumed");
            chain_group_free(j.group);
            chains_close(c);
            blob_put(half);
            free(wanted.bytes);
            work_close(&w);
            work_close(&other);
        }
        model_put(m);
    }
}

static void results_are_of_their_y_and_within_the_condition(void **state)
{
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        struct model *m = open_model(texts[i], 3);
        for (int kind = 0; kind < 2; kind++) {
            struct work w;
            struct job j;
            struct err e;
            struct sampler s = gibbs;
            s.kind = kind ? SAMPLER_SGLD : SAMPLER_GIBBS;
            work_open(&w, m, 9, s);
            condition_fix(&w.condition, 0, 0, 1);
            assert_int_equal(condition_set(&w.condition, 0, 1, (uint8_t[]){1, 0, 1}, &e), 0);
            struct chains *c = engine(1, 4, 8);
            submit(c, &j, &w.task, NULL);
            wait_done(&j);
            for (int n = 0; n < 9; n++) {
                struct chain_result r;
                float doutputs[6];
                uint16_t best[K];
                chain_group_result(j.group, n, &r);
                assert_true(r.finished);
                assert_true(condition_satisfied(&w.condition, r.y));
                if (kind == 0) {
                    assert_true(r.score == joint_value(m->joint, r.logits, r.y, NULL, NULL));
                    continue;
                }
                assert_true(r.score == condition_score(&w.condition, r.logits, doutputs));
                condition_most_probable(&w.condition, r.logits, best);
                assert_memory_equal(best, r.y, sizeof best);
            }
            chain_group_free(j.group);
            chains_close(c);
            work_close(&w);
        }
        model_put(m);
    }
}

/* Images that do not move: after twelve rounds of moves the y of 2000 chains against p(y|x, A) by
 * enumeration, chi-square. False alarms below 1e-6 a model, were the chains at equilibrium. */
static void y_comes_to_its_exact_distribution(void **state)
{
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        struct model *m = open_model(texts[i], 3);
        struct work w;
        struct job j;
        struct err e;
        float f[COMBINATIONS];
        double sum = 0, chi = 0;
        int seen[COMBINATIONS] = {0};
        struct sampler s = gibbs;
        s.steps = 12;
        s.langevin_steps = 1;
        s.step_size = s.noise = 0;
        s.start = START_IMAGE;
        work_open(&w, m, MANY, s);
        assert_int_equal(condition_set(&w.condition, 0, 1, (uint8_t[]){1, 0, 1}, &e), 0);
        struct chains *c = engine(2, 16, 64);
        submit(c, &j, &w.task, NULL);
        wait_done(&j);
        struct chain_result r;
        for (int n = 0; n < MANY; n++) {
            chain_group_result(j.group, n, &r);
            seen[(r.y[0] * 2 + r.y[1] / 2) * 2 + r.y[2]]++;
        }
        const size_t n = joint_values(m->joint, r.logits, condition_allowed(&w.condition, 0), f);
        assert_int_equal(n, 8);
        for (size_t l = 0; l < n; l++)
            sum += exp((double)f[l]);
        for (size_t l = 0; l < n; l++) {
            const double wanted = MANY * exp((double)f[l]) / sum;
            chi += (seen[l] - wanted) * (seen[l] - wanted) / wanted;
        }
        if (chi > 40.6) /* of 7 degrees, odds 1e-6 */
            fail_msg("model %d: chi-square %.1f", i, chi);
        chain_group_free(j.group);
        chains_close(c);
        work_close(&w);
        model_put(m);
    }
}

static void what_cannot_be_walked_is_refused(void **state)
{
    (void)state;
    struct model *m = open_model(texts[0], 1);
    struct work w;
    struct err e;
    struct chain_group *g = NULL;
    struct chains *c = engine(1, 1, 1);
    work_open(&w, m, 2, gibbs);
    condition_weigh(&w.condition, 0, 2, 0.5f);
    assert_int_equal(chains_submit(c, &w.task, NULL, &g, &e), -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "weights"));
    condition_fini(&w.condition);
    assert_int_equal(condition_init(&w.condition, &m->d.attributes, 2, &e), 0);
    assert_int_equal(chains_submit(c, &w.task, NULL, &g, &e), -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "alternatives"));
    assert_null(g);
    chains_close(c);
    work_close(&w);
    model_put(m);
}

/* 20 attributes of two values: more y than can be summed up. */
static void many_attributes_are_sampled_without_sums(void **state)
{
    (void)state;
    char sizes[2048] = "[", text[4096];
    struct work w;
    struct job j;
    struct err e;
    for (int k = 0; k < 20; k++)
        snprintf(sizes + strlen(sizes), 64, "%s{\"name\":\"a%d\",\"values\":[\"no\",\"yes\"]}",
                 k ? "," : "", k);
    strcat(sizes, "]");
    snprintf(text, sizeof text, PAIR_MODEL("%s", "%s"),
             "{\"kind\":\"mlp\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"y0\",\"in\":46,"
             "\"out\":8},{\"kind\":\"silu\"},{\"kind\":\"linear\",\"weights\":\"y1\",\"in\":8,"
             "\"out\":1}]}",
             sizes);
    struct model *m = open_model(text, 2);
    assert_int_equal(score_check(&m->d.attributes, &e), -FAIL_UNSUPPORTED);
    work_open(&w, m, 3, gibbs);
    condition_fix(&w.condition, 0, 7, 1);
    struct chains *c = engine(1, 4, 8);
    submit(c, &j, &w.task, NULL);
    wait_done(&j);
    for (int n = 0; n < 3; n++) {
        struct chain_result r;
        chain_group_result(j.group, n, &r);
        assert_true(r.finished && r.y[7] == 1 && isfinite(r.score));
    }
    chain_group_free(j.group);
    w.sampler.kind = SAMPLER_SGLD;
    assert_int_equal(chains_submit(c, &w.task, NULL, &j.group, &e), -FAIL_UNSUPPORTED);
    chains_close(c);
    work_close(&w);
    model_put(m);
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    for (int kind = 0; kind < 2; kind++) {
        struct model *m = open_model(texts[1], 1);
        struct work w;
        struct job j;
        struct sampler s = gibbs;
        s.kind = kind ? SAMPLER_SGLD : SAMPLER_GIBBS;
        s.steps = 10000000;
        work_open(&w, m, 3, s);
        struct chains *c = engine(1, 4, 8);
        submit(c, &j, &w.task, NULL);
        wait_steps(j.group, 30);
        const long before = allocations_made;
        wait_steps(j.group, 300);
        assert_int_equal(allocations_made, before);
        chain_group_cancel(j.group);
        wait_done(&j);
        chain_group_free(j.group);
        chains_close(c);
        work_close(&w);
        model_put(m);
    }
}

int main(void)
{
    test_fill(image, 60, 3);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_do_not_depend_on_the_batch_or_on_a_resume),
        cmocka_unit_test(results_are_of_their_y_and_within_the_condition),
        cmocka_unit_test(y_comes_to_its_exact_distribution),
        cmocka_unit_test(what_cannot_be_walked_is_refused),
        cmocka_unit_test(many_attributes_are_sampled_without_sums),
        cmocka_unit_test(a_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
