/* SPDX-License-Identifier: Apache-2.0 */
/* What trainer_estimate says a training takes, against all that one allocates at once from its opening to
 * its model file. */
#include "learn/export.h"
#include "test_allocations.h"
#include "unit/trainer_help.h"

enum { SIDE = 24, CLASSES = 10, ROWS = 96, THREADS = 2, PIXELS = 3 * SIDE * SIDE };

#define MODEL(energy, outputs)                                                                     \
    "{\"format\":1,\"name\":\"m\",\"version\":\"1\",\"family\":\"jem\","                           \
    "\"input\":{\"channels\":3,\"height\":24,\"width\":24,\"range\":[-1,1]},\"layers\":["          \
    "{\"kind\":\"conv\",\"weights\":\"a\",\"in\":3,\"out\":24,\"kernel\":3,\"pad\":1},"            \
    "{\"kind\":\"silu\"},{\"kind\":\"conv\",\"weights\":\"b\",\"in\":24,\"out\":48,\"kernel\":4,"  \
    "\"stride\":2,\"pad\":1},{\"kind\":\"silu\"},{\"kind\":\"flatten\"},{\"kind\":\"linear\","     \
    "\"weights\":\"c\",\"in\":6912,\"out\":" outputs "}]," energy                                  \
    "\"attributes\":[{\"name\":\"n\",\"values\":[\"0\",\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\"," \
    "\"8\",\"9\"]}],\"sampler\":{\"steps\":2,\"steps_buffer\":1,\"step_rule\":\"normalised\","     \
    "\"step_size\":10,\"step_norm\":0.03,\"noise\":0.01,\"clamp\":[-1,1]}}"
#define PLAIN MODEL("", "10")
#define DOT                                                                                        \
    MODEL("\"energy\":{\"kind\":\"dot\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"y\","       \
          "\"in\":10,\"out\":16}]},",                                                              \
          "16")
#define STEPS "\"steps\":2,\"checkpoint_every\":1,\"health\":{\"warm_up\":100,\"gradient\":1e9},"

static const struct {
    const char *name, *model, *training;
} cases[] = {
    {"the defaults", PLAIN, STEPS "\"chains\":{\"steps\":1}"},
    {"no chains", PLAIN,
     STEPS "\"batch\":64,\"loss\":{\"log_px\":0,\"log_pxy\":0},\"chains\":{\"count\":0}"},
    {"chains in pairs and few labels", PLAIN,
     STEPS
     "\"batch\":16,\"loss\":{\"log_px\":1,\"log_pxy\":0.5},\"data\":{\"labelled_batch\":64},"
     "\"chains\":{\"count\":32,\"paired\":64,\"steps\":1,\"buffer\":500,\"labels\":\"free\"}"},
    {"the KL term", PLAIN,
     STEPS "\"loss\":{\"kl\":{\"marginal\":0.5,\"neighbour\":0.3,\"neighbours\":2000,\"after\":0}},"
           "\"chains\":{\"count\":64,\"steps\":1,\"buffer\":500}"},
    {"chains from Gaussians", PLAIN,
     STEPS "\"chains\":{\"steps\":1,\"start\":\"gaussian\",\"grid\":8}"},
    {"many births", PLAIN,
     STEPS "\"chains\":{\"steps\":1,\"buffer\":1000,\"births\":{\"every\":1,\"count\":900,"
           "\"steps\":1}}"},
    {"many fresh chains", PLAIN,
     "\"steps\":2,\"checkpoint_every\":1,\"health\":{\"warm_up\":100,\"gradient\":1e9,\"fresh\":{"
     "\"every\":2,\"count\":1500,\"steps\":1}},\"chains\":{\"steps\":1,\"buffer\":500}"},
    {"a model file with many entries", PLAIN,
     STEPS "\"export_buffer\":4000,\"chains\":{\"steps\":1,\"buffer\":4000}"},
    {"a general energy", DOT,
     STEPS "\"loss\":{\"log_pxy\":1},\"chains\":{\"steps\":1,\"labels\":\"gibbs\"}"},
};
enum { CASES = sizeof cases / sizeof *cases };

static struct source noise(void)
{
    static unsigned char images[ROWS * PIXELS], labels[ROWS];
    unsigned state = 1;
    for (int i = 0; i < ROWS * PIXELS; i++) {
        state = state * 1664525 + 1013904223;
        images[i] = (unsigned char)(state >> 24);
    }
    for (int i = 0; i < ROWS; i++)
        labels[i] = (unsigned char)(i % CLASSES);
    return (struct source){.n = ROWS,
                           .height = SIDE,
                           .width = SIDE,
                           .channels = 3,
                           .columns = 1,
                           .images = images,
                           .labels = labels,
                           .sha256 = "noise"};
}

/* The most that the whole training holds, beside its threads and data. */
static size_t most_of(struct run *r)
{
    char directory[64], path[100];
    struct trainer_step s;
    struct err e;
    make_directory(directory);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    const struct trainer_options o = {
        .recipe = &r->recipe, .data = &r->data, .pool = r->pool, .directory = directory};
    const struct export_task file = {.pool = r->pool, .path = path};
    const long long before = allocations_live;
    allocations_peak = before;
    if (trainer_open(&r->trainer, &o, &e) != 0 || run_until(r, 2, &s, &e) != 1 ||
        export_model(r->trainer, &file, &e) != 0)
        fail_msg("%s", e.text);
    const long long most = allocations_peak - before;
    trainer_close(r->trainer);
    r->trainer = NULL;
    remove_directory(directory);
    return (size_t)most;
}

static void an_estimate_is_what_a_training_allocates_or_a_little_more(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    for (int i = 0; i < CASES; i++) {
        struct run r = {.recipe = test_recipe(cases[i].model, cases[i].training), .data = noise()};
        const struct trainer_options o = {.recipe = &r.recipe, .data = &r.data};
        struct trainer_cost c;
        struct err e;
        assert_int_equal(pool_open(&r.pool, THREADS, &e), 0);
        if (trainer_estimate(&c, &o, THREADS, &e) != 0)
            fail_msg("%s: %s", cases[i].name, e.text);
        const size_t said = c.memory_bytes + c.export_bytes, real = most_of(&r);
        print_message("%s: %.1f MB, estimated %.1f\n", cases[i].name, (double)real / 1e6,
                      (double)said / 1e6);
        if (said < real || (double)said > 1.3 * (double)real)
            fail_msg("%s: it takes %zu bytes, the estimate is %zu", cases[i].name, real, said);
        run_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_estimate_is_what_a_training_allocates_or_a_little_more)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
