/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/job_members.h"
#include "proto/sample_request.h"
#include "unit/tiny_model.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ONE "\"type\":\"sample\",\"conditions\":[{}]"
/* a 1x1 grey PNG */
#define PNG                                                                                        \
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGPwBQAATwBOaYsBbAAAAABJRU5ErkJggg=="

/* 2x2 and 4x4 pixels: an image, a mask of a corner, one of a barely blue pixel, of none; a white 1x1; an
 * image and a mask of one faint pixel */
#define SQUARE                                                                                     \
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR42mPgOsHA8B8ABFcB0hY6IiwA"             \
    "AAAASUVORK5CYII="
#define CORNER                                                                                     \
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR42mNg+M/AwAAABAIBAI0aWAIA"             \
    "AAAASUVORK5CYII="
#define FAINT                                                                                      \
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAD0lEQVR42mNggAFGBgYGAAASAAKt/upB"             \
    "AAAAAElFTkSuQmCC"
#define BLACK                                                                                      \
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR42mNgYGBgYAAAAAYAAW/q15wA"             \
    "AAAASUVORK5CYII="
#define DOT                                                                                        \
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJ"             \
    "RU5ErkJggg=="
#define WIDE                                                                                       \
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAE0lEQVR42mPk4uLiYmJgYGBAEAADIAAw"             \
    "HIIlEwAAAABJRU5ErkJggg=="
#define WIDEDOT                                                                                    \
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAD0lEQVR42mNgYGBgZ0AFAACEAAjhQGIV"             \
    "AAAAAElFTkSuQmCC"

static const struct sample_limits limits = {
    .max_images = 20,
    .max_steps = 1000,
    .image = {.max_side = 64, .max_pixels = 4096, .max_memory_bytes = 1 << 20}};
static struct model *model;
static json_t *root;

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/jemd-unit-XXXXXX";
    struct err e;
    close(mkstemp(path));
    int rc = tiny_model_write(path, &e);
    if (rc == 0)
        rc = model_open(&model, path, NULL, false, &e);
    unlink(path);
    return rc;
}

static int close_model(void **state)
{
    (void)state;
    model_put(model);
    return 0;
}

/* The request borrows from root, which the next call replaces. */
static int parse(const char *json, struct sample_request **q, struct err *e)
{
    memset(e, 0, sizeof *e);
    json_decref(root);
    if (json_parse(json, strlen(json), &root, e) != 0)
        fail_msg("%s: %s", json, e->text);
    return sample_request_parse(q, root, model, &limits, e);
}

static struct sample_request *good(const char *json)
{
    struct sample_request *q = NULL;
    struct err e;
    if (parse(json, &q, &e) != 0)
        fail_msg("%s: %s", json, e.text);
    return q;
}

static int drop_root(void **state)
{
    (void)state;
    json_decref(root);
    root = NULL;
    assert_int_equal(model->refs, 1);
    return 0;
}

static void the_least_request_takes_the_models_defaults(void **state)
{
    (void)state;
    struct sample_request *q = good("{" ONE "}");
    assert_int_equal(q->n_chains, 1);
    assert_int_equal(q->n_conditions, 1);
    assert_true(condition_is_marginal(&q->conditions[0]));
    assert_memory_equal(&q->sampler, &model->d.sampler, sizeof q->sampler);
    assert_int_equal(q->outputs, SAMPLE_GRID | SAMPLE_IMAGES);
    assert_true(!q->seed_given && q->members.priority == 1 && q->members.deadline_ms == 0 &&
                !q->members.labels);
    assert_int_equal(q->preview_every_steps, 0);
    assert_null(q->image);
    assert_null(q->mask);
    sample_request_free(q);
}

static void a_full_request_is_understood(void **state)
{
    (void)state;
    struct sample_request *q = good(
        "{\"type\":\"sample\",\"model\":\"tiny\",\"conditions\":[{\"count\":3,\"attributes\":{"
        "\"shape\":\"ring\"}},{\"count\":2,\"any_of\":[{\"attributes\":{\"colour\":\"red\"}},"
        "{\"attributes\":{\"colour\":[\"red\",\"blue\"]}}]}],"
        "\"sampler\":{\"kind\":\"gibbs\",\"step_rule\":\"normalised\",\"steps\":7,\"cool_last\":7,"
        "\"step_size\":0.5,\"step_norm\":0.25,\"noise\":0,\"temperature\":2,\"pixel_clamp\":1,"
        "\"langevin_steps\":2,\"clamp\":[-1,2],\"start\":{\"kind\":\"noise\",\"grid\":2,"
        "\"noise\":0.5}},\"seed\":\"18446744073709551615\",\"outputs\":[\"tensor\",\"trace\","
        "\"tensor\"],\"preview_every_steps\":5,\"priority\":\"high\","
        "\"deadline\":\"2030-01-02T03:04:05.678+01:30\",\"labels\":{\"a\":\"b\"},\"mask\":null}");
    assert_int_equal(q->n_chains, 5);
    for (int i = 0; i < 5; i++)
        assert_ptr_equal(q->of_chain[i], &q->conditions[i >= 3]);
    const struct sampler *s = &q->sampler;
    assert_true(s->kind == SAMPLER_GIBBS && s->rule == SAMPLER_NORMALISED && s->steps == 7);
    assert_true(s->cool_last == 7 && s->step_size == 0.5f && s->step_norm == 0.25f);
    assert_true(s->noise == 0 && s->temperature == 2 && s->pixel_clamp == 1);
    assert_true(s->langevin_steps == 2 && s->clamp && s->clamp_lo == -1 && s->clamp_hi == 2);
    assert_true(s->start == START_NOISE && s->start_grid == 2 && s->start_noise == 0.5f);
    assert_true(q->seed_given && q->seed == UINT64_MAX);
    assert_int_equal(q->outputs, SAMPLE_TENSOR | SAMPLE_TRACE);
    assert_true(q->preview_every_steps == 5 && q->members.priority == 2);
    assert_int_equal(q->members.deadline_ms, 1893548045678); /* 2030-01-02T01:34:05.678Z */
    assert_int_equal(json_object_size(q->members.labels), 1);
    assert_int_equal(q->n_warnings, 1); /* the alternatives overlap */
    sample_request_free(q);
}

static void a_start_image_becomes_the_models_input(void **state)
{
    (void)state;
    struct sample_request *q =
        good("{" ONE ",\"sampler\":{\"start\":\"image\"},\"image\":{\"b64\":\"" PNG "\"}}");
    assert_int_equal(q->sampler.start, START_IMAGE);
    for (int i = 1; i < 4; i++)
        assert_true(q->image[i] == q->image[0]);
    assert_true(q->image[0] >= 0 && q->image[0] <= 1);
    sample_request_free(q);
}

#define MASKED(start, image, mask)                                                                 \
    "{" ONE ",\"sampler\":{\"start\":\"" start "\"},\"image\":{\"b64\":\"" image "\"},"            \
    "\"mask\":{\"b64\":\"" mask "\"}}"

/* `wanted`: '1' where a pixel moves. */
static void check_mask(const char *json, const char *wanted, enum start_kind start)
{
    struct sample_request *q = good(json);
    assert_true(q->image && q->mask && q->sampler.start == start);
    for (int i = 0; i < 4; i++)
        assert_int_equal(q->mask[i], wanted[i] - '0');
    sample_request_free(q);
}

static void a_mask_says_what_moves(void **state)
{
    (void)state;
    check_mask(MASKED("image", SQUARE, CORNER), "0100", START_IMAGE);
    check_mask(MASKED("noise", SQUARE, CORNER), "0100", START_NOISE);
    check_mask(MASKED("buffer", SQUARE, FAINT), "0010", START_BUFFER);
    check_mask(MASKED("image", SQUARE, SQUARE), "1101", START_IMAGE);
    check_mask(MASKED("image", WIDE, WIDEDOT), "0100", START_IMAGE);
    struct sample_request *q = good(MASKED("noise", SQUARE, CORNER));
    assert_true(fabsf(q->image[0] - 10 / 255.0f) < 1e-6f && fabsf(q->image[3] - 1) < 1e-6f);
    sample_request_free(q);
}

static void mala_and_hmc_take_steps_start_and_range_of_the_model(void **state)
{
    (void)state;
    struct sample_request *q = good("{" ONE ",\"sampler\":{\"kind\":\"mala\"}}");
    const struct sampler *s = &q->sampler, *d = &model->d.sampler;
    assert_true(s->kind == SAMPLER_MALA && s->rule == SAMPLER_FIXED && s->steps == d->steps);
    assert_true(s->step_size == 0.5f * d->noise * d->noise && s->noise == 0 && !s->clamp);
    assert_true(s->range_lo == 0 && s->range_hi == 1 && s->leapfrog_steps == 0);
    sample_request_free(q);
    q = good("{" ONE ",\"sampler\":{\"kind\":\"hmc\",\"step_size\":0.25,\"leapfrog_steps\":7,"
             "\"range\":[-2,3],\"temperature\":2,\"steps\":70,\"cool_last\":0,\"noise\":0,"
             "\"step_rule\":\"fixed\",\"clamp\":null,\"start\":\"buffer\"}}");
    s = &q->sampler;
    assert_true(s->kind == SAMPLER_HMC && s->step_size == 0.25f && s->leapfrog_steps == 7);
    assert_true(s->range_lo == -2 && s->range_hi == 3 && s->temperature == 2 && s->steps == 70);
    assert_int_equal(s->start, START_BUFFER);
    sample_request_free(q);
    q = good("{" ONE ",\"sampler\":{\"kind\":\"hmc\",\"range\":null}}");
    assert_int_equal(q->sampler.leapfrog_steps, SAMPLER_LEAPFROG_STEPS);
    assert_true(q->sampler.range_lo == -INFINITY && q->sampler.range_hi == INFINITY);
    sample_request_free(q);
    q = good("{" ONE ",\"sampler\":{\"kind\":\"sgld\",\"range\":null}}");
    assert_memory_equal(&q->sampler, &model->d.sampler, sizeof q->sampler);
    sample_request_free(q);
}

static void a_clamp_can_be_switched_off(void **state)
{
    (void)state;
    struct sample_request *q = good("{" ONE ",\"sampler\":{\"clamp\":null}}");
    assert_false(q->sampler.clamp);
    sample_request_free(q);
}

static void the_buffer_can_be_a_start_and_an_early_end_cools_less(void **state)
{
    (void)state;
    struct sample_request *q = good("{" ONE ",\"sampler\":{\"start\":\"buffer\",\"steps\":0}}");
    assert_true(q->sampler.start == START_BUFFER && q->sampler.steps == 0);
    assert_int_equal(q->sampler.cool_last, 0);
    sample_request_free(q);
}

static void seeds_are_64_bits_as_text_or_an_integer(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        uint64_t seed;
    } seeds[] = {{"0", 0},
                 {"\"0\"", 0},
                 {"7", 7},
                 {"\"007\"", 7},
                 {"9223372036854775807", INT64_MAX},
                 {"\"9223372036854775808\"", 1ull << 63}};
    for (size_t i = 0; i < sizeof seeds / sizeof seeds[0]; i++) {
        char json[128];
        snprintf(json, sizeof json, "{" ONE ",\"seed\":%s}", seeds[i].json);
        struct sample_request *q = good(json);
        assert_true(q->seed_given && q->seed == seeds[i].seed);
        sample_request_free(q);
    }
    struct sample_request *q = good("{" ONE ",\"seed\":null}");
    assert_false(q->seed_given);
    sample_request_free(q);
}

struct refusal {
    const char *json;
    enum fail_code code;
    const char *pointer, *meant;
};

static void expect(const struct refusal *r)
{
    struct sample_request *q = (struct sample_request *)&limits;
    struct err e;
    const int rc = parse(r->json, &q, &e);
    if (rc != -(int)r->code || strcmp(e.pointer, r->pointer) != 0 ||
        strcmp(e.did_you_mean, r->meant ? r->meant : "") != 0 || !e.text[0])
        fail_msg("%s: %s at \"%s\", did you mean \"%s\": %s", r->json,
                 rc ? fail_name(e.code) : "ok", e.pointer, e.did_you_mean, e.text);
    assert_ptr_equal(q, &limits);
    assert_int_equal(model->refs, 1);
}

static void bad_conditions_are_refused_with_their_place(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"[]", FAIL_WRONG_TYPE, "", NULL},
        {"{\"type\":\"sample\"}", FAIL_MISSING_FIELD, "/conditions", NULL},
        {"{\"type\":\"sample\",\"conditions\":[]}", FAIL_MISSING_FIELD, "/conditions", NULL},
        {"{\"type\":\"sample\",\"conditions\":{}}", FAIL_WRONG_TYPE, "/conditions", NULL},
        {"{\"type\":\"sample\",\"conditions\":[7]}", FAIL_WRONG_TYPE, "/conditions/0", NULL},
        {"{\"type\":\"sample\",\"conditions\":[{\"count\":0}]}", FAIL_OUT_OF_RANGE,
         "/conditions/0/count", NULL},
        {"{\"type\":\"sample\",\"conditions\":[{\"count\":21}]}", FAIL_OUT_OF_RANGE,
         "/conditions/0/count", NULL},
        {"{\"type\":\"sample\",\"conditions\":[{\"count\":11},{\"count\":10}]}", FAIL_OUT_OF_RANGE,
         "/conditions", NULL},
        {"{\"type\":\"sample\",\"conditions\":[{},{\"attributes\":{\"color\":\"red\"}}]}",
         FAIL_UNKNOWN_ATTRIBUTE, "/conditions/1/attributes/color", "colour"},
        {"{\"type\":\"sample\",\"conditions\":[{\"attributes\":{\"shape\":\"rung\"}}]}",
         FAIL_UNKNOWN_VALUE, "/conditions/0/attributes/shape", "ring"},
        {"{\"type\":\"sample\",\"conditions\":[{\"cuont\":1}]}", FAIL_UNKNOWN_FIELD,
         "/conditions/0/cuont", "count"},
        {"{\"type\":\"sample\",\"conditions\":[{},{},{\"count\":1.5}]}", FAIL_WRONG_TYPE,
         "/conditions/2/count", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect(&bad[i]);
}

#define SAMPLER(x) "{" ONE ",\"sampler\":{" x "}}"
#define MALA(x) SAMPLER("\"kind\":\"mala\"," x)

static void bad_samplers_are_refused_with_their_place(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"{" ONE ",\"sampler\":[]}", FAIL_WRONG_TYPE, "/sampler", NULL},
        {SAMPLER("\"kind\":\"sgdl\""), FAIL_OUT_OF_RANGE, "/sampler/kind", "sgld"},
        {SAMPLER("\"kind\":3"), FAIL_WRONG_TYPE, "/sampler/kind", NULL},
        {SAMPLER("\"steps\":1001"), FAIL_OUT_OF_RANGE, "/sampler/steps", NULL},
        {SAMPLER("\"steps\":-1"), FAIL_OUT_OF_RANGE, "/sampler/steps", NULL},
        {SAMPLER("\"steps\":5,\"cool_last\":6"), FAIL_OUT_OF_RANGE, "/sampler/cool_last", NULL},
        {SAMPLER("\"step_size\":-0.1"), FAIL_OUT_OF_RANGE, "/sampler/step_size", NULL},
        {SAMPLER("\"step_size\":\"1\""), FAIL_WRONG_TYPE, "/sampler/step_size", NULL},
        {SAMPLER("\"noise\":1e300"), FAIL_OUT_OF_RANGE, "/sampler/noise", NULL},
        {SAMPLER("\"noise\":5000"), FAIL_OUT_OF_RANGE, "/sampler/noise", NULL},
        {SAMPLER("\"temperature\":0"), FAIL_OUT_OF_RANGE, "/sampler/temperature", NULL},
        {SAMPLER("\"langevin_steps\":0"), FAIL_OUT_OF_RANGE, "/sampler/langevin_steps", NULL},
        {SAMPLER("\"start\":\"gaussian\""), FAIL_UNSUPPORTED, "/sampler/start", NULL},
        {SAMPLER("\"kind\":\"ula\",\"noise\":0.1"), FAIL_UNSUPPORTED, "/sampler/noise", NULL},
        {SAMPLER("\"clamp\":[0]"), FAIL_WRONG_TYPE, "/sampler/clamp", NULL},
        {SAMPLER("\"clamp\":[0,\"1\"]"), FAIL_WRONG_TYPE, "/sampler/clamp", NULL},
        {SAMPLER("\"clamp\":true"), FAIL_WRONG_TYPE, "/sampler/clamp", NULL},
        {SAMPLER("\"clamp\":[1,1]"), FAIL_OUT_OF_RANGE, "/sampler/clamp", NULL},
        {SAMPLER("\"clamp\":[0,1e300]"), FAIL_OUT_OF_RANGE, "/sampler/clamp", NULL},
        {SAMPLER("\"start\":\"nosie\""), FAIL_OUT_OF_RANGE, "/sampler/start", "noise"},
        {SAMPLER("\"start\":[1]"), FAIL_WRONG_TYPE, "/sampler/start", NULL},
        {SAMPLER("\"start\":{\"gird\":1}"), FAIL_UNKNOWN_FIELD, "/sampler/start/gird", "grid"},
        {SAMPLER("\"start\":{\"grid\":5000}"), FAIL_OUT_OF_RANGE, "/sampler/start/grid", NULL},
        {SAMPLER("\"stpes\":5"), FAIL_UNKNOWN_FIELD, "/sampler/stpes", "steps"},
        {SAMPLER("\"start\":\"image\""), FAIL_MISSING_FIELD, "/image", NULL},
        {SAMPLER("\"kind\":\"mal\""), FAIL_OUT_OF_RANGE, "/sampler/kind", "mala"},
        {MALA("\"clamp\":[0,1]"), FAIL_UNSUPPORTED, "/sampler/clamp", NULL},
        {MALA("\"cool_last\":1"), FAIL_UNSUPPORTED, "/sampler/cool_last", NULL},
        {MALA("\"step_rule\":\"normalised\""), FAIL_UNSUPPORTED, "/sampler/step_rule", NULL},
        {MALA("\"step_norm\":1"), FAIL_UNSUPPORTED, "/sampler/step_norm", NULL},
        {MALA("\"noise\":1"), FAIL_UNSUPPORTED, "/sampler/noise", NULL},
        {MALA("\"pixel_clamp\":1"), FAIL_UNSUPPORTED, "/sampler/pixel_clamp", NULL},
        {MALA("\"langevin_steps\":2"), FAIL_UNSUPPORTED, "/sampler/langevin_steps", NULL},
        {MALA("\"leapfrog_steps\":2"), FAIL_UNSUPPORTED, "/sampler/leapfrog_steps", NULL},
        {MALA("\"step_size\":0"), FAIL_OUT_OF_RANGE, "/sampler/step_size", NULL},
        {MALA("\"range\":[1,1]"), FAIL_OUT_OF_RANGE, "/sampler/range", NULL},
        {MALA("\"range\":[0,1e300]"), FAIL_OUT_OF_RANGE, "/sampler/range", NULL},
        {MALA("\"range\":[0]"), FAIL_WRONG_TYPE, "/sampler/range", NULL},
        {SAMPLER("\"range\":[0,1]"), FAIL_UNSUPPORTED, "/sampler/range", NULL},
        {SAMPLER("\"leapfrog_steps\":3"), FAIL_UNSUPPORTED, "/sampler/leapfrog_steps", NULL},
        {SAMPLER("\"kind\":\"hmc\",\"leapfrog_steps\":0"), FAIL_OUT_OF_RANGE,
         "/sampler/leapfrog_steps", NULL},
        {SAMPLER("\"kind\":\"hmc\",\"leapfrog_steps\":1001"), FAIL_OUT_OF_RANGE,
         "/sampler/leapfrog_steps", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect(&bad[i]);
}

#define IMAGE(x) "{" ONE ",\"sampler\":{\"start\":\"image\"},\"image\":" x "}"

static void bad_images_and_the_rest_are_refused_with_their_place(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"{" ONE ",\"image\":{\"b64\":\"" PNG "\"}}", FAIL_UNSUPPORTED, "/image", NULL},
        {IMAGE("7"), FAIL_WRONG_TYPE, "/image", NULL},
        {IMAGE("{}"), FAIL_MISSING_FIELD, "/image/b64", NULL},
        {IMAGE("{\"b64\":\"?\"}"), FAIL_BAD_BASE64, "/image/b64", NULL},
        {IMAGE("{\"b64\":\"\"}"), FAIL_BAD_IMAGE, "/image/b64", NULL},
        {IMAGE("{\"b64\":\"Zm9vYmFy\"}"), FAIL_BAD_IMAGE, "/image/b64", NULL},
        {IMAGE("{\"b64\":\"" PNG "\",\"id\":1}"), FAIL_UNKNOWN_FIELD, "/image/id", NULL},
        {"{" ONE ",\"mask\":{}}", FAIL_MISSING_FIELD, "/image", NULL},
        {"{" ONE ",\"mask\":7}", FAIL_WRONG_TYPE, "/mask", NULL},
        {"{" ONE ",\"image\":{\"b64\":\"" PNG "\"},\"mask\":{}}", FAIL_MISSING_FIELD, "/mask/b64",
         NULL},
        {MASKED("image", "", CORNER), FAIL_BAD_IMAGE, "/image/b64", NULL},
        {MASKED("image", SQUARE, "?"), FAIL_BAD_BASE64, "/mask/b64", NULL},
        {MASKED("image", SQUARE, "Zm9vYmFy"), FAIL_BAD_IMAGE, "/mask/b64", NULL},
        {MASKED("image", SQUARE, DOT), FAIL_IMAGE_SIZE_MISMATCH, "/mask/b64", NULL},
        {MASKED("noise", SQUARE, WIDEDOT), FAIL_IMAGE_SIZE_MISMATCH, "/mask/b64", NULL},
        {MASKED("image", SQUARE, BLACK), FAIL_OUT_OF_RANGE, "/mask", NULL},
        {"{" ONE ",\"seed\":-1}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"seed\":1.5}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"seed\":\"\"}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"seed\":\" 7\"}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"seed\":\"7x\"}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"seed\":\"18446744073709551616\"}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"seed\":true}", FAIL_OUT_OF_RANGE, "/seed", NULL},
        {"{" ONE ",\"outputs\":[\"gird\"]}", FAIL_OUT_OF_RANGE, "/outputs", "grid"},
        {"{" ONE ",\"outputs\":[1]}", FAIL_OUT_OF_RANGE, "/outputs", NULL},
        {"{" ONE ",\"outputs\":\"grid\"}", FAIL_WRONG_TYPE, "/outputs", NULL},
        {"{" ONE ",\"priority\":\"urgent\"}", FAIL_OUT_OF_RANGE, "/priority", NULL},
        {"{" ONE ",\"preview_every_steps\":-1}", FAIL_OUT_OF_RANGE, "/preview_every_steps", NULL},
        {"{" ONE ",\"deadline\":\"tomorrow\"}", FAIL_OUT_OF_RANGE, "/deadline", NULL},
        {"{" ONE ",\"deadline\":1}", FAIL_WRONG_TYPE, "/deadline", NULL},
        {"{" ONE ",\"labels\":{\"a\":1}}", FAIL_OUT_OF_RANGE, "/labels", NULL},
        {"{" ONE ",\"labels\":[]}", FAIL_WRONG_TYPE, "/labels", NULL},
        {"{" ONE ",\"condition\":[]}", FAIL_UNKNOWN_FIELD, "/condition", "conditions"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect(&bad[i]);
}

static void labels_have_limits(void **state)
{
    (void)state;
    char json[2048], key[65];
    memset(key, 'k', 64);
    key[64] = '\0';
    snprintf(json, sizeof json, "{" ONE ",\"labels\":{\"%s\":\"\"}}", key + 1);
    sample_request_free(good(json));
    snprintf(json, sizeof json, "{" ONE ",\"labels\":{\"%s\":\"\"}}", key);
    const struct refusal bad = {json, FAIL_OUT_OF_RANGE, "/labels", NULL};
    expect(&bad);
    for (int n = JOB_LABELS_MAX; n <= JOB_LABELS_MAX + 1; n++) {
        size_t at = (size_t)snprintf(json, sizeof json, "{" ONE ",\"labels\":{");
        for (int i = 0; i < n; i++)
            at += (size_t)snprintf(json + at, sizeof json - at, "%s\"%d\":\"\"", i ? "," : "", i);
        snprintf(json + at, sizeof json - at, "}}");
        if (n <= JOB_LABELS_MAX)
            sample_request_free(good(json));
        else
            expect(&bad);
    }
}

static void the_head_knows_type_and_model(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        int rc;
        const char *pointer, *model;
    } heads[] = {{"{\"type\":\"sample\"}", 0, "", NULL},
                 {"{\"type\":\"sample\",\"model\":\"m\",\"x\":1}", 0, "", "m"},
                 {"{\"type\":\"sample\",\"model\":null}", 0, "", NULL},
                 {"{\"model\":\"m\"}", -FAIL_MISSING_FIELD, "/type", NULL},
                 {"{\"type\":\"simple\"}", -FAIL_UNSUPPORTED, "/type", NULL},
                 {"{\"type\":1}", -FAIL_WRONG_TYPE, "/type", NULL},
                 {"{\"type\":\"sample\",\"model\":1}", -FAIL_WRONG_TYPE, "/model", NULL},
                 {"7", -FAIL_WRONG_TYPE, "", NULL}};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        const char *name = "?";
        struct err e = {0};
        json_decref(root);
        assert_int_equal(json_parse(heads[i].json, strlen(heads[i].json), &root, &e), 0);
        assert_int_equal(sample_request_head(root, &name, &e), heads[i].rc);
        assert_string_equal(e.pointer, heads[i].pointer);
        if (heads[i].model)
            assert_string_equal(name, heads[i].model);
        else
            assert_null(name);
    }
}

static void times_are_rfc_3339_and_nothing_else(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t ms;
    } times[] = {{"1970-01-01T00:00:01Z", 1000},
                 {"2026-01-02T03:04:05Z", 1767323045000},
                 {"2026-01-02T03:04:05.6Z", 1767323045600},
                 {"2026-01-02T03:04:05.6789Z", 1767323045678},
                 {"2026-01-02T05:04:05+02:00", 1767323045000},
                 {"2026-01-01T21:34:05-05:30", 1767323045000},
                 {"2024-02-29T00:00:00Z", 1709164800000},
                 {"9999-12-31T23:59:59Z", 253402300799000}};
    static const char *const bad[] = {"",
                                      "2026",
                                      "2026-01-02",
                                      "2026-01-02T03:04:05",
                                      "2026-01-02 03:04:05Z",
                                      "2026-1-2T3:4:5Z",
                                      "2026-02-29T00:00:00Z",
                                      "2026-13-01T00:00:00Z",
                                      "2026-01-32T00:00:00Z",
                                      "2026-01-02T24:00:00Z",
                                      "2026-01-02T00:60:00Z",
                                      "2026-01-02T00:00:61Z",
                                      "2026-01-02T03:04:05.Z",
                                      "2026-01-02T03:04:05Zulu",
                                      "2026-01-02T03:04:05+2:00",
                                      "2026-01-02T03:04:05+0200",
                                      "2026-01-02T03:04:05+-1:00",
                                      "2026-01-02T03:04:05+24:00",
                                      "+026-01-02T03:04:05Z",
                                      " 2026-01-02T03:04:05Z",
                                      "1970-01-01T00:00:00Z",
                                      "1969-12-31T23:59:59Z",
                                      "1970-01-01T00:00:01+01:00",
                                      "12026-01-02T03:04:05Z"};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        int64_t ms = 0;
        assert_int_equal(sample_request_time(times[i].text, &ms), 0);
        assert_int_equal(ms, times[i].ms);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int64_t ms = 77;
        if (sample_request_time(bad[i], &ms) != -1 || ms != 77)
            fail_msg("\"%s\" is taken for a time", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(the_least_request_takes_the_models_defaults, drop_root),
        cmocka_unit_test_teardown(a_full_request_is_understood, drop_root),
        cmocka_unit_test_teardown(a_start_image_becomes_the_models_input, drop_root),
        cmocka_unit_test_teardown(a_mask_says_what_moves, drop_root),
        cmocka_unit_test_teardown(mala_and_hmc_take_steps_start_and_range_of_the_model, drop_root),
        cmocka_unit_test_teardown(a_clamp_can_be_switched_off, drop_root),
        cmocka_unit_test_teardown(the_buffer_can_be_a_start_and_an_early_end_cools_less, drop_root),
        cmocka_unit_test_teardown(seeds_are_64_bits_as_text_or_an_integer, drop_root),
        cmocka_unit_test_teardown(bad_conditions_are_refused_with_their_place, drop_root),
        cmocka_unit_test_teardown(bad_samplers_are_refused_with_their_place, drop_root),
        cmocka_unit_test_teardown(bad_images_and_the_rest_are_refused_with_their_place, drop_root),
        cmocka_unit_test_teardown(labels_have_limits, drop_root),
        cmocka_unit_test_teardown(the_head_knows_type_and_model, drop_root),
        cmocka_unit_test(times_are_rfc_3339_and_nothing_else),
    };
    return cmocka_run_group_tests_name("sample_request", tests, open_model, close_model);
}
