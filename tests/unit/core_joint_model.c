/* SPDX-License-Identifier: Apache-2.0 */
/* Model files of the general family: a good one, and every way in which its energy can be wrong. */
#include "ebm/score.h"
#include "unit/test_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const char good[] =
    "{\"format\":1,\"name\":\"tiny\",\"version\":\"1\",\"family\":\"gibbs-jem\","
    "\"input\":{\"channels\":1,\"height\":2,\"width\":2,\"range\":[0,1]},"
    "\"layers\":[{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"l\",\"in\":4,\"out\":3}]"
    ","
    "\"energy\":{\"kind\":\"dot\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"e.0\",\"in\":5,"
    "\"out\":4},{\"kind\":\"lrelu\",\"slope\":0.25},{\"kind\":\"linear\",\"weights\":\"e.2\","
    "\"in\":4,\"out\":3}]},"
    "\"attributes\":[{\"name\":\"a\",\"values\":[\"no\",\"yes\"],\"temperature\":2},"
    "{\"name\":\"b\",\"values\":[\"0\",\"1\",\"2\"]}]}";

static const char mlp[] = "{\"kind\":\"mlp\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"m\","
                          "\"in\":8,\"out\":1}]}";

/* `text` with the first `find` replaced; malloc'd. */
static char *replaced(const char *text, const char *find, const char *with)
{
    const char *at = strstr(text, find);
    if (!at)
        fail_msg("the description has no %s", find);
    const size_t before = (size_t)(at - text), size = strlen(text) + strlen(with) + 1;
    char *out = malloc(size);
    snprintf(out, size, "%.*s%s%s", (int)before, text, with, at + strlen(find));
    return out;
}

/* Opens a file of this description with the good one's tensors, without `missing` (may be NULL). */
static int open_with(struct model **m, const char *json, const char *missing, struct err *e)
{
    char path[64];
    struct test_weights w = {.seed = 5};
    test_model_draw_weights(good, &w);
    test_weights_add(&w, "m.weight", (int[]){1, 8}, 2, NULL);
    test_weights_add(&w, "m.bias", (int[]){1}, 1, NULL);
    for (int i = 0; missing && i < w.n; i++)
        if (strcmp(w.list[i].name, missing) == 0)
            strcpy(w.list[i].name, "elsewhere");
    int rc = test_model_write(path, json, &w, NULL, 0, e);
    if (rc != 0)
        fail_msg("%s", e->text);
    rc = model_open(m, path, NULL, false, e);
    if (rc != 0)
        assert_non_null(strstr(e->text, path));
    unlink(path);
    test_weights_free(&w);
    return rc;
}

static void a_good_file_has_a_head(void **state)
{
    (void)state;
    struct model *m;
    struct err e;
    assert_int_equal(open_with(&m, good, NULL, &e), 0);
    assert_int_equal(m->d.energy.kind, JOINT_DOT);
    assert_int_equal(m->d.energy.n_layers, 3);
    assert_true(m->d.attributes.general);
    assert_ptr_equal(m->d.attributes.joint, m->joint);
    assert_int_equal(m->d.attributes.head, -1);
    assert_int_equal(model_outputs(m), 3);
    assert_int_equal(model_logits(m), 5 + JOINT_EVIDENCE);
    assert_int_equal(joint_parameters(m->joint), 6 * 4 + 5 * 3);
    assert_int_equal(joint_labels(m->joint, NULL), 6);
    /* Temperatures sharpen or soften probabilities, never log p(x). */
    float reading[8], p[5];
    score_read(&m->d.attributes, (const float[]){1, -1, 2}, NULL, reading);
    score_probabilities(&m->d.attributes, reading, true, p);
    assert_float_equal(p[1] / p[0], sqrtf(expf(reading[1] - reading[0])), 1e-5);
    model_put(m);

    /* The same file's other energy; what is left of the first is harmless there. */
    char more[256];
    snprintf(more, sizeof more, "\"energy\":%s,\"provenance\":{\"was\":", mlp);
    char *other = replaced(good, "\"energy\":", more), *end;
    end = replaced(other, "\"attributes\":", "\"x\":1},\"attributes\":");
    free(other);
    other = end;
    assert_int_equal(open_with(&m, other, NULL, &e), 0);
    assert_int_equal(m->d.energy.kind, JOINT_MLP);
    assert_int_equal(joint_parameters(m->joint), 9);
    model_put(m);
    free(other);
}

struct mutation {
    const char *find, *with, *text; /* the error's */
};

static const struct mutation mutations[] = {
    {"\"kind\":\"dot\"", "\"kind\":\"dto\"", "/energy/kind"},
    {"\"kind\":\"dot\"", "\"kind\":\"logits\"", "/energy/layers"},
    {"\"kind\":\"dot\"", "\"kind\":\"head\"", "/energy/layers"},
    {"\"kind\":\"dot\"", "\"kind\":\"mlp\"", "\"in\" is 5, but it is given 8"},
    {"\"kind\":\"dot\",\"layers\"", "\"kind\":\"dot\",\"layer\"", "layers"},
    {"\"kind\":\"dot\",\"layers\":[", "\"kind\":\"dot\",\"layers\":{},\"x\":[", "/energy/layers"},
    {"\"kind\":\"dot\",\"layers\":[", "\"kind\":\"dot\",\"layers\":[],\"x\":[", "x"},
    {"\"kind\":\"dot\",\"layers\":[", "\"kind\":\"dot\",\"layers\":[1,", "/energy/layers/0"},
    {"\"weights\":\"e.0\"", "\"weight\":\"e.0\"", "/energy/layers/0/weight"},
    {"\"weights\":\"e.0\"", "\"weights\":\"e.1\"", "tensor \"e.1.weight\" is missing"},
    {"\"weights\":\"e.0\"", "\"weights\":\"e.2\"", "tensor \"e.2.weight\""},
    {"\"weights\":\"e.0\",\"in\":5", "\"weights\":\"e.0\",\"in\":4", "given 5"},
    {"\"in\":5,\"out\":4", "\"in\":5,\"out\":6", "tensor \"e.0.weight\""},
    {"\"in\":5,\"out\":4", "\"in\":5,\"out\":268435456", "1..1024"},
    {"\"in\":5,\"out\":4", "\"in\":5,\"out\":-4", "/energy/layers/0/out"},
    {"\"in\":4,\"out\":3}]}", "\"in\":4,\"out\":2}]}", "must be 3"},
    {"\"in\":4,\"out\":3}]}", "\"in\":3,\"out\":3}]}", "given 4"},
    {"\"kind\":\"lrelu\",\"slope\":0.25", "\"kind\":\"lrelu\",\"slope\":2", "slope"},
    {"\"kind\":\"lrelu\",\"slope\":0.25", "\"kind\":\"square\"", "silu, relu or lrelu"},
    {"\"kind\":\"lrelu\",\"slope\":0.25", "\"kind\":\"lrelu\",\"id\":\"z\"", "\"id\""},
    {"{\"kind\":\"lrelu\",\"slope\":0.25},", "", "odd number"},
    {"{\"kind\":\"lrelu\",\"slope\":0.25},",
     "{\"kind\":\"relu\"},{\"kind\":\"relu\"},"
     "{\"kind\":\"relu\"},",
     "take turns"},
    {"[\"0\",\"1\",\"2\"]", "[\"0\",\"1\",\"2\",\"3\"]", "given 6"},
};

static void a_wrong_energy_is_refused_saying_where(void **state)
{
    (void)state;
    int missed = 0;
    for (size_t i = 0; i < sizeof mutations / sizeof *mutations; i++) {
        const struct mutation *u = &mutations[i];
        char *json = replaced(good, u->find, u->with);
        struct model *m = NULL;
        struct err e = {0};
        const int rc = open_with(&m, json, NULL, &e);
        if (rc != -FAIL_BAD_MODEL || e.code != FAIL_BAD_MODEL || !strstr(e.text, u->text)) {
            print_error("%s -> %s: %d, \"%s\" lacks \"%s\"\n", u->find, u->with, rc,
                        rc ? e.text : "", u->text);
            missed++;
        }
        model_put(m);
        free(json);
    }
    assert_int_equal(missed, 0);
}

/* Seventeen layers, and more values than a head takes. */
static void what_is_too_large_is_refused(void **state)
{
    (void)state;
    char list[4096] = "\"kind\":\"dot\",\"layers\":[", *values = malloc(65536);
    struct model *m;
    struct err e;
    assert_non_null(values);
    for (int i = 0; i < 14; i++)
        strcat(list, i % 2 ? "{\"kind\":\"silu\"},"
                           : "{\"kind\":\"linear\",\"weights\":\"e\",\"in\":5,\"out\":5},");
    char *json = replaced(good, "\"kind\":\"dot\",\"layers\":[", list);
    assert_int_equal(open_with(&m, json, NULL, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "/energy/layers"));
    free(json);
    strcpy(values, "[\"0\"");
    for (int i = 1; i < 4095; i++)
        sprintf(values + strlen(values), ",\"%d\"", i);
    strcat(values, "]");
    json = replaced(good, "[\"0\",\"1\",\"2\"]", values);
    assert_int_equal(open_with(&m, json, NULL, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "4096"));
    free(json);
    free(values);
}

static void every_tensor_of_the_head_is_needed(void **state)
{
    (void)state;
    static const char *const names[] = {"e.0.weight", "e.0.bias", "e.2.weight", "e.2.bias"};
    for (int i = 0; i < 4; i++) {
        struct model *m;
        struct err e;
        assert_int_equal(open_with(&m, good, names[i], &e), -FAIL_BAD_MODEL);
        assert_non_null(strstr(e.text, names[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_has_a_head),
        cmocka_unit_test(a_wrong_energy_is_refused_saying_where),
        cmocka_unit_test(what_is_too_large_is_refused),
        cmocka_unit_test(every_tensor_of_the_head_is_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
