/* SPDX-License-Identifier: Apache-2.0 */
/* Model files: one good one, and every way in which it can be wrong. */
#include "base/rng.h"
#include "file/digest.h"
#include "unit/test_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include <cmocka.h>

static const char good[] =
    "{\"format\":1,\"name\":\"tiny\",\"version\":\"1.0\",\"family\":\"mixed\","
    "\"input\":{\"channels\":3,\"height\":4,\"width\":2,\"range\":[-1,1],"
    "\"pixel_scale\":0.00784313725490196,\"pixel_offset\":-1.0},"
    "\"layers\":[{\"kind\":\"conv\",\"weights\":\"c\",\"in\":3,\"out\":2,\"kernel\":[3,1],"
    "\"stride\":1,\"pad\":0},"
    "{\"kind\":\"lrelu\",\"slope\":0.25},{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"l\",\"in\":8,\"out\":5}],"
    "\"energy\":{\"kind\":\"logits\"},"
    "\"attributes\":[{\"name\":\"sex\",\"values\":[\"female\",\"male\"],\"temperature\":1.5},"
    "{\"name\":\"hair\",\"values\":[\"none\",\"long\",\"short\"]}],"
    "\"sampler\":{\"kind\":\"gibbs\",\"steps\":60,\"steps_buffer\":40,\"step_rule\":\"normalised\","
    "\"step_size\":10.0,\"step_norm\":0.015,\"noise\":0.01,\"cool_last\":15,\"clamp\":[-1,1],"
    "\"langevin_steps\":2,\"pixel_clamp\":null,\"temperature\":1.0,"
    "\"start\":{\"kind\":\"noise\",\"grid\":2,\"noise\":0.1}},"
    "\"replay_buffer\":{\"x\":\"buffer.x\",\"y\":\"buffer.y\",\"scale\":0.5,\"offset\":-1.0},"
    "\"calibration\":{\"energies\":\"calibration.energies\",\"n\":4,\"split\":\"calib\"},"
    "\"provenance\":{\"source\":\"a test\",\"anything\":[1,2]}}";

static const uint8_t buffer_x[2 * 24], buffer_y[4] = {0, 2, 255, 255}, bad_y[4] = {0, 3, 255, 255};
static const float energies[4] = {-2, -1, -1, 5}, unsorted[4] = {-2, -1, -3, 5};
static const float infinite[4] = {-2, -1, 1, INFINITY};

static const struct tensor extra[3] = {
    {.name = "calibration.energies",
     .dtype = TENSOR_F32,
     .n_dims = 1,
     .shape = {4},
     .data = energies},
    {.name = "buffer.x", .dtype = TENSOR_U8, .n_dims = 4, .shape = {2, 3, 4, 2}, .data = buffer_x},
    {.name = "buffer.y", .dtype = TENSOR_U8, .n_dims = 2, .shape = {2, 2}, .data = buffer_y}};

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

/* Opens a file of this description, tensors of the good one and `extras`. */
static int open_with(struct model **m, const char *json, const struct tensor *extras, size_t n,
                     struct err *e)
{
    char path[64];
    struct test_weights w = {.seed = 5};
    test_model_draw_weights(good, &w);
    int rc = test_model_write(path, json, &w, extras, n, e);
    if (rc != 0)
        fail_msg("%s", e->text);
    rc = model_open(m, path, NULL, false, e);
    if (rc != 0 && !strstr(e->text, path))
        print_error("the error does not name the file: %s\n", e->text);
    if (rc != 0)
        assert_non_null(strstr(e->text, path));
    unlink(path);
    test_weights_free(&w);
    return rc;
}

static struct model *opened(void)
{
    struct model *m;
    struct err e;
    if (open_with(&m, good, extra, 3, &e) != 0)
        fail_msg("%s", e.text);
    return m;
}

static void a_good_file_gives_all_its_fields(void **state)
{
    (void)state;
    struct model *m = opened();
    const struct description *d = &m->d;
    const struct sampler *s = &d->sampler;
    assert_string_equal(d->name, "tiny");
    assert_string_equal(d->version, "1.0");
    assert_string_equal(d->family, "mixed");
    assert_true(d->input.c == 3 && d->input.h == 4 && d->input.w == 2);
    assert_true(d->range_lo == -1.0f && d->range_hi == 1.0f);
    assert_true(d->pixel_scale == 0.00784313725490196f && d->pixel_offset == -1.0f);
    assert_int_equal(d->n_layers, 4);
    assert_true(d->layers[0].kernel_h == 3 && d->layers[0].kernel_w == 1);
    assert_true(d->layers[1].slope == 0.25f);
    assert_int_equal(d->attributes.n, 2);
    assert_int_equal(d->attributes.n_logits, 5);
    assert_int_equal(d->attributes.head, -1);
    assert_int_equal(d->attributes.list[1].first, 2);
    assert_string_equal(d->attributes.list[1].values[2], "short");
    assert_true(d->attributes.list[0].temperature == 1.5f);
    assert_true(d->attributes.list[1].temperature == 1.0f);
    assert_true(s->kind == SAMPLER_GIBBS && s->rule == SAMPLER_NORMALISED);
    assert_true(s->steps == 60 && d->steps_buffer == 40 && s->langevin_steps == 2);
    assert_true(s->step_size == 10.0f && s->step_norm == 0.015f && s->noise == 0.01f);
    assert_true(s->cool_last == 15 && s->clamp && s->clamp_lo == -1 && s->clamp_hi == 1);
    assert_true(s->pixel_clamp == 0 && s->temperature == 1);
    assert_true(s->start == START_NOISE && s->start_grid == 2 && s->start_noise == 0.1f);
    assert_int_equal(m->n_energies, 4);
    assert_memory_equal(m->energies, energies, sizeof energies);
    assert_int_equal(m->n_buffer, 2);
    assert_memory_equal(m->buffer_y, buffer_y, sizeof buffer_y);
    assert_int_equal(model_elements(m), 24);
    assert_int_equal(model_logits(m), 5);
    assert_int_equal(strlen(m->digest), 64);
    assert_int_equal(m->private_bytes, 0);
    assert_true(m->file_bytes > 0);
    model_put(m);
}

/* What may be left out, and what is then taken. */
static void the_defaults_are_those_of_the_paper(void **state)
{
    (void)state;
    static const char short_one[] =
        "{\"format\":1,\"name\":\"a\",\"version\":\"1\",\"input\":{\"channels\":3,\"height\":4,"
        "\"width\":2,\"range\":[0,1]},\"layers\":[{\"kind\":\"conv\",\"weights\":\"c\",\"in\":3,"
        "\"out\":2,\"kernel\":[3,1]},{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"l\","
        "\"in\":8,\"out\":5}],\"attributes\":[{\"name\":\"a\",\"values\":[\"0\",\"1\",\"2\",\"3\","
        "\"4\"]}],\"sampler\":null,\"replay_buffer\":null,\"calibration\":null,\"energy\":null}";
    struct model *m;
    struct err e;
    assert_int_equal(open_with(&m, short_one, NULL, 0, &e), 0);
    const struct sampler *s = &m->d.sampler;
    assert_true(s->kind == SAMPLER_SGLD && s->rule == SAMPLER_FIXED && s->steps == 100);
    assert_true(s->step_size == 1 && s->noise == 0.01f && !s->clamp && s->temperature == 1);
    assert_true(s->langevin_steps == 1 && s->start == START_NOISE && s->start_grid == 0);
    assert_true(m->d.pixel_scale == 1.0f / 255.0f && m->d.pixel_offset == 0);
    assert_true(m->n_buffer == 0 && !m->energies);
    model_put(m);
}

static void an_energy_head_is_one_more_logit(void **state)
{
    (void)state;
    struct model *m;
    struct err e;
    char *shorter = replaced(good, "[\"none\",\"long\",\"short\"]", "[\"none\",\"long\"]");
    char *head =
        replaced(shorter, "\"energy\":{\"kind\":\"logits\"}", "\"energy\":{\"kind\":\"head\"}");
    char *sgld = replaced(head, "\"kind\":\"gibbs\"", "\"kind\":\"sgld\"");
    const struct tensor y = {
        .name = "buffer.y", .dtype = TENSOR_U8, .n_dims = 2, .shape = {2, 2}, .data = "\0\1\0\1"};
    const struct tensor list[3] = {extra[0], extra[1], y};
    assert_int_equal(open_with(&m, sgld, list, 3, &e), 0);
    assert_int_equal(m->d.attributes.head, 4);
    assert_int_equal(model_logits(m), 5);
    model_put(m);
    assert_int_equal(open_with(&m, shorter, list, 3, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "the network has 5 outputs, its attributes need 4"));
    assert_int_equal(open_with(&m, head, list, 3, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "gibbs"));
    free(shorter);
    free(head);
    free(sgld);
}

struct mutation {
    const char *find, *with, *text; /* text must be in the message */
};

static const struct mutation mutations[] = {
    {"{\"format\"", "{\"format\":1,\"format\"", "format"},
    {"{\"format\":1", "{\"format\":1,", "line 1"},
    {"\"format\":1,", "", "format"},
    {"\"format\":1", "\"format\":2", "model format 2 is newer"},
    {"\"format\":1", "\"format\":\"1\"", "/format"},
    {"\"format\":1", "\"format\":1,\"colour\":3", "colour"},
    {"\"name\":\"tiny\",", "", "name"},
    {"\"name\":\"tiny\"", "\"name\":\"ti ny\"", "name and version use"},
    {"\"name\":\"tiny\"", "\"name\":\"../tiny\"", "name and version use"},
    {"\"name\":\"tiny\"", "\"name\":7", "/name"},
    {"\"version\":\"1.0\",", "", "version"},
    {"\"version\":\"1.0\"", "\"version\":\"1/0\"", "name and version use"},
    {"\"input\":{", "\"in_put\":{", "input"},
    {"\"channels\":3", "\"channels\":2", "input channels must be 1 or 3"},
    {"\"channels\":3", "\"channels\":-3", "/input/channels"},
    {"\"height\":4", "\"height\":4.5", "/input/height"},
    {"\"height\":4,", "", "height and width"},
    {"\"height\":4", "\"height\":5000", "input sides"},
    {"\"range\":[-1,1],", "", "range"},
    {"\"range\":[-1,1]", "\"range\":[1,-1]", "\"range\" must be [low, high]"},
    {"\"range\":[-1,1]", "\"range\":[1]", "\"range\" must be [low, high]"},
    {"\"range\":[-1,1]", "\"range\":[-1,1,2]", "range"},
    {"\"range\":[-1,1]", "\"range\":[-1e300,1e300]", "\"range\" must be [low, high]"},
    {"\"range\":[-1,1]", "\"range\":[1,1.000000000001]", "\"range\" must be [low, high]"},
    {"\"pixel_scale\":0.00784313725490196", "\"pixel_scale\":0", "pixel_scale must be positive"},
    {"\"pixel_scale\":0.00784313725490196", "\"pixel_scale\":1e-60", "pixel_scale must be"},
    {"\"pixel_offset\":-1.0", "\"pixel_offset\":\"-1\"", "/input/pixel_offset"},
    {"\"pixel_offset\":-1.0", "\"pixel_ofset\":-1.0", "pixel_ofset"},
    {"\"layers\":[", "\"layers\":7,\"x\":[", "\"layers\" must be an array"},
    {"\"kind\":\"conv\"", "\"kind\":\"convolution\"", "/layers/0/kind"},
    {"\"kind\":\"conv\",", "", "kind"},
    {"\"weights\":\"c\"", "\"weights\":\"d\"", "tensor \"d.weight\" is missing"},
    {"\"in\":3", "\"in\":4", "layer 0 (conv c)"},
    {"\"out\":2", "\"out\":3", "tensor \"c.weight\" is not F32 of the shape"},
    {"\"kernel\":[3,1]", "\"kernel\":[3]", "\"kernel\" must be"},
    {"\"kernel\":[3,1]", "\"kernel\":[3,1,1]", "\"kernel\" must be"},
    {"\"kernel\":[3,1]", "\"kernel\":[3,0]", "\"kernel\" must be"},
    {"\"kernel\":[3,1]", "\"kernel\":1.5", "\"kernel\" must be"},
    {"\"kernel\":[3,1]", "\"kernel\":[1,3]", "layer 0 (conv c)"},
    {"\"stride\":1", "\"stride\":0", "layer 0 (conv c)"},
    {"\"pad\":0", "\"pad\":-1", "/layers/0/pad"},
    {"\"pad\":0", "\"padding\":0", "padding"},
    {"\"slope\":0.25", "\"slope\":2", "layer 1 (lrelu)"},
    {"{\"kind\":\"flatten\"}", "{\"kind\":\"silu\"}", "layer 3 (linear l): its input is not flat"},
    {"{\"kind\":\"flatten\"}", "7", "/layers/2"},
    {"\"energy\":{\"kind\":\"logits\"}", "\"energy\":{\"kind\":\"log\"}", "/energy/kind"},
    {"\"energy\":{\"kind\":\"logits\"}", "\"energy\":[]", "/energy"},
    {"\"attributes\":[", "\"attributes\":{},\"x\":[", "\"attributes\" must be an array"},
    {"\"name\":\"sex\",", "", "name"},
    {"\"name\":\"sex\"", "\"name\":\"hair\"", "two attributes are called \"hair\""},
    {"\"values\":[\"female\",\"male\"]", "\"values\":[\"male\"]", "needs at least two values"},
    {"\"values\":[\"female\",\"male\"]", "\"values\":[\"m\",\"m\"]", "has the value \"m\" twice"},
    {"\"values\":[\"female\",\"male\"]", "\"values\":[\"m\",1]", "values of \"sex\" must be"},
    {"\"values\":[\"female\",\"male\"]", "\"values\":[\"\",\"f\"]", "values of \"sex\" must be"},
    {"\"values\":[\"female\",\"male\"],", "", "values"},
    {"\"temperature\":1.5", "\"temperature\":0", "temperature of \"sex\""},
    {"\"temperature\":1.5", "\"temperature\":1e9", "temperature of \"sex\""},
    {"\"temperature\":1.5", "\"temperatur\":1.5", "temperatur"},
    {"\"kind\":\"gibbs\"", "\"kind\":\"gibs\"", "/sampler/kind"},
    {"\"steps\":60", "\"steps\":100000000", "steps"},
    {"\"steps\":60", "\"steps\":10", "cool_last"},
    {"\"steps_buffer\":40", "\"steps_buffer\":100000000", "steps_buffer"},
    {"\"steps_buffer\":40", "\"steps_buffer\":14", "steps_buffer"},
    {"\"step_rule\":\"normalised\"", "\"step_rule\":\"normal\"", "/sampler/step_rule"},
    {"\"step_size\":10.0", "\"step_size\":-1", "step_size"},
    {"\"noise\":0.01", "\"noise\":\"x\"", "/sampler/noise"},
    {"\"clamp\":[-1,1]", "\"clamp\":[1,-1]", "\"clamp\" must be [low, high]"},
    {"\"clamp\":[-1,1]", "\"clamp\":[-1e39,1e39]", "\"clamp\" must be [low, high]"},
    {"\"clamp\":[-1,1]", "\"clamp\":true", "clamp"},
    {"\"langevin_steps\":2", "\"langevin_steps\":0", "langevin_steps"},
    {"\"temperature\":1.0,\"start\"", "\"temperature\":0.0,\"start\"", "temperature"},
    {"\"start\":{\"kind\":\"noise\"", "\"start\":{\"kind\":\"image\"", "noise, buffer or gaussian"},
    {"\"start\":{\"kind\":\"noise\"", "\"start\":{\"kind\":\"nose\"", "/sampler/start/kind"},
    {"\"start\":{\"kind\":\"noise\"", "\"start\":{\"kind\":\"gaussian\"",
     "there are no \"gaussians\""},
    {"\"calibration\":{", "\"gaussians\":{\"mean\":\"m\",\"spread\":\"s\"},\"calibration\":{",
     "factor"},
    {"\"grid\":2", "\"grid\":5", "grid"},
    {"\"grid\":2", "\"gird\":2", "gird"},
    {"\"replay_buffer\":{\"x\":\"buffer.x\"", "\"replay_buffer\":{\"z\":\"buffer.x\"", "x"},
    {"\"x\":\"buffer.x\"", "\"x\":\"buffer.z\"", "replay buffer \"buffer.z\""},
    {"\"x\":\"buffer.x\"", "\"x\":\"buffer.y\"", "replay buffer \"buffer.y\""},
    {"\"y\":\"buffer.y\"", "\"y\":\"buffer.x\"", "buffer labels \"buffer.x\""},
    {"\"y\":\"buffer.y\"", "\"y\":\"nothing\"", "buffer labels \"nothing\""},
    {"\"scale\":0.5", "\"scale\":[]", "/replay_buffer/scale"},
    {"\"energies\":\"calibration.energies\"", "\"energies\":\"e\"", "calibration energies \"e\""},
    {"\"energies\":\"calibration.energies\"", "\"energies\":\"buffer.y\"",
     "calibration energies \"buffer.y\""},
    {"\"energies\":\"calibration.energies\"", "\"energies\":3", "/calibration/energies"},
    {"\"calibration\":{", "\"calibration\":1,\"provenance_\":{", "/calibration"},
};

static void a_wrong_description_is_refused_saying_where(void **state)
{
    (void)state;
    int missed = 0;
    for (size_t i = 0; i < sizeof mutations / sizeof *mutations; i++) {
        const struct mutation *u = &mutations[i];
        char *json = replaced(good, u->find, u->with);
        struct model *const untouched = (struct model *)json;
        struct model *m = untouched;
        struct err e = {0};
        const int rc = open_with(&m, json, extra, 3, &e);
        if (rc != -FAIL_BAD_MODEL || e.code != FAIL_BAD_MODEL || !strstr(e.text, u->text)) {
            print_error("%s -> %s: %d, \"%s\" lacks \"%s\"\n", u->find, u->with, rc,
                        rc ? e.text : "", u->text);
            missed++;
        }
        if (rc == 0)
            model_put(m);
        else
            assert_ptr_equal(m, untouched);
        free(json);
    }
    assert_int_equal(missed, 0);
}

static void text_that_is_no_json_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "{", "[]", "null", "\"x\"", "{}{}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct model *m;
        struct err e;
        assert_int_equal(open_with(&m, texts[i], extra, 3, &e), -FAIL_BAD_MODEL);
    }
}

static void a_wrong_tensor_is_refused(void **state)
{
    (void)state;
    const struct {
        int index;
        struct tensor t;
        const char *text;
    } cases[] = {
        {0, {.dtype = TENSOR_F32, .n_dims = 1, .shape = {4}, .data = unsorted}, "ascending"},
        {0, {.dtype = TENSOR_F32, .n_dims = 1, .shape = {4}, .data = infinite}, "ascending"},
        {0, {.dtype = TENSOR_F32, .n_dims = 1, .shape = {0}, .data = energies}, "F32 vector"},
        {0, {.dtype = TENSOR_F32, .n_dims = 2, .shape = {2, 2}, .data = energies}, "F32 vector"},
        {0, {.dtype = TENSOR_I32, .n_dims = 1, .shape = {4}, .data = energies}, "F32 vector"},
        {1,
         {.dtype = TENSOR_U8, .n_dims = 4, .shape = {2, 3, 2, 4}, .data = buffer_x},
         "[n,3,4,2]"},
        {1, {.dtype = TENSOR_U8, .n_dims = 3, .shape = {2, 3, 8}, .data = buffer_x}, "[n,3,4,2]"},
        {1,
         {.dtype = TENSOR_I8, .n_dims = 4, .shape = {2, 3, 4, 2}, .data = buffer_x},
         "U8 or F32"},
        {1, {.dtype = TENSOR_U8, .n_dims = 4, .shape = {0, 3, 4, 2}, .data = buffer_x}, "n > 0"},
        {1, {.dtype = TENSOR_U8, .n_dims = 4, .shape = {1, 3, 4, 2}, .data = buffer_x}, "labels"},
        {2, {.dtype = TENSOR_U8, .n_dims = 2, .shape = {2, 2}, .data = bad_y}, "labels"},
        {2, {.dtype = TENSOR_U8, .n_dims = 2, .shape = {1, 4}, .data = buffer_y}, "labels"},
        {2, {.dtype = TENSOR_I8, .n_dims = 2, .shape = {2, 2}, .data = buffer_y}, "labels"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tensor list[3] = {extra[0], extra[1], extra[2]};
        struct model *m;
        struct err e = {0};
        list[cases[i].index] = cases[i].t;
        list[cases[i].index].name = extra[cases[i].index].name;
        const int rc = open_with(&m, good, list, 3, &e);
        if (rc != -FAIL_BAD_MODEL || !strstr(e.text, cases[i].text))
            fail_msg("case %zu: %d, \"%s\" lacks \"%s\"", i, rc, e.text, cases[i].text);
    }
}

static void a_plain_checkpoint_is_refused_with_advice(void **state)
{
    (void)state;
    char path[] = "/tmp/jemd-unit-XXXXXX";
    const float zero = 0;
    const struct tensor t = {
        .name = "x", .dtype = TENSOR_F32, .n_dims = 1, .shape = {1}, .data = &zero};
    struct model *m;
    struct err e;
    close(mkstemp(path));
    assert_int_equal(safetensors_write(path, &t, 1, NULL, 0, &e), 0);
    assert_int_equal(model_open(&m, path, NULL, false, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "import_torch.py"));
    assert_int_equal(truncate(path, 4), 0);
    assert_int_equal(model_open(&m, path, NULL, false, &e), -FAIL_BAD_FILE);
    unlink(path);
    assert_int_equal(model_open(&m, path, NULL, false, &e), -FAIL_IO);
    char *longer = calloc(5000, 1);
    memset(longer, 'a', 4999);
    assert_true(model_open(&m, longer, NULL, false, &e) < 0);
    free(longer);
}

/* Other writers put tensors anywhere: the weights of a file shifted by one byte are copied. */
static void misaligned_weights_are_copied_and_work_alike(void **state)
{
    (void)state;
    char path[64], other[64];
    struct test_weights w = {.seed = 5};
    struct model *m, *shifted;
    struct err e;
    struct stat st;
    test_model_draw_weights(good, &w);
    assert_int_equal(test_model_write(path, good, &w, extra, 3, &e), 0);
    assert_int_equal(stat(path, &st), 0);
    unsigned char *bytes = malloc((size_t)st.st_size + 1);
    const int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, bytes, (size_t)st.st_size), st.st_size);
    close(fd);
    uint64_t header;
    memcpy(&header, bytes, 8);
    memmove(bytes + 9 + header, bytes + 8 + header, (size_t)st.st_size - 8 - header);
    bytes[8 + header++] = ' '; /* one more byte of padding */
    memcpy(bytes, &header, 8);
    strcpy(other, "/tmp/jemd-unit-XXXXXX");
    const int out = mkstemp(other);
    assert_int_equal(write(out, bytes, (size_t)st.st_size + 1), st.st_size + 1);
    close(out);
    assert_int_equal(model_open(&m, path, NULL, false, &e), 0);
    if (model_open(&shifted, other, NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(m->private_bytes, 0);
    assert_int_equal(shifted->private_bytes, 4 * (18 + 2 + 40 + 5 + 4));
    assert_string_not_equal(m->digest, shifted->digest);
    float x[24], logits[2][5];
    struct model *both[2] = {m, shifted};
    test_fill(x, 24, 1);
    for (int i = 0; i < 2; i++) {
        struct workspace *ws;
        assert_int_equal(workspace_open(&ws, both[i]->net, ops_openblas(), 1, false, &e), 0);
        memcpy(logits[i], net_forward(ws, 1, x), sizeof logits[i]);
        workspace_close(ws);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    assert_memory_equal(shifted->energies, energies, sizeof energies);
    model_put(m);
    model_put(shifted);
    unlink(path);
    unlink(other);
    test_weights_free(&w);
    free(bytes);
}

/* Every precision: prepared once, or refused; the logits agree with the plain loops. */
static void a_model_is_prepared_once_in_the_precision_asked_for(void **state)
{
    static const double limits[PRECISIONS] = {1e-5, 1e-4, 3e-2};
    const struct model_compute later = {.precision = PRECISION_FLOAT};
    (void)state;
    for (enum precision p = 0; p < PRECISIONS; p++) {
        const struct model_compute c = {.precision = p};
        const struct engine *engine, *again, *single;
        struct model *m = opened();
        struct workspace *w, *plain;
        struct err e;
        float x[24];
        const int rc = model_prepare(m, &c, &e);
        if (rc != 0) {
            assert_int_equal(rc, -FAIL_UNSUPPORTED);
            assert_int_not_equal(p, PRECISION_FLOAT);
            model_put(m);
            continue;
        }
        assert_int_equal(model_engine(m, &engine, &e), 0);
        assert_int_equal(model_prepare(m, &later, &e), 0);
        assert_int_equal(model_engine(m, &again, &e), 0);
        assert_ptr_equal(engine, again);
        assert_int_equal(model_engine_single(m, &single, &e), 0);
        assert_int_equal(model_precision(m), p);
        assert_string_equal(model_fingerprint(m), model_fingerprint_of(p));
        assert_int_equal(workspace_open_engine(&w, single, 1, false, NULL, &e), 0);
        assert_int_equal(workspace_open(&plain, m->net, &ops_ref, 1, false, &e), 0);
        test_fill(x, 24, 1);
        assert_true(test_relative_f(net_forward(w, 1, x), net_forward(plain, 1, x),
                                    (size_t)model_logits(m)) < limits[p]);
        workspace_close(w);
        workspace_close(plain);
        model_put(m);
    }
}

static void references_are_counted(void **state)
{
    (void)state;
    struct model *m = opened();
    assert_ptr_equal(model_get(m), m);
    model_put(m);
    assert_string_equal(m->d.name, "tiny"); /* still there */
    model_put(m);
    model_put(NULL);
}

static void pixels_go_to_the_range_and_back(void **state)
{
    (void)state;
    struct model *m = opened();
    unsigned char pixels[24], back[24];
    float x[24];
    for (int first = 0; first < 256; first++) {
        for (int i = 0; i < 24; i++)
            pixels[i] = (unsigned char)(first + i * 11);
        model_from_pixels(m, pixels, x);
        for (int c = 0; c < 3; c++)
            for (int i = 0; i < 8; i++) {
                const double v = (double)pixels[i * 3 + c] * 2 / 255 - 1;
                assert_true(fabs((double)x[c * 8 + i] - v) < 1e-6);
            }
        model_to_pixels(m, x, back);
        assert_memory_equal(back, pixels, sizeof pixels);
    }
    for (int i = 0; i < 24; i++)
        x[i] = i % 3 == 0 ? 7.0f : i % 3 == 1 ? -7.0f : NAN;
    model_to_pixels(m, x, back);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 8; i++)
            assert_int_equal(back[i * 3 + c], (c * 8 + i) % 3 == 0 ? 255 : 0);
    model_put(m);
}

static void buffer_images_of_bytes_and_floats_are_decoded(void **state)
{
    (void)state;
    uint8_t bytes[48];
    float values[48], x[24];
    for (int i = 0; i < 48; i++) {
        bytes[i] = (uint8_t)(3 * i);
        values[i] = (float)(3 * i);
    }
    for (int kind = 0; kind < 2; kind++) {
        struct tensor list[3] = {extra[0], extra[1], extra[2]};
        struct model *m;
        struct err e;
        list[1].dtype = kind ? TENSOR_F32 : TENSOR_U8;
        list[1].data = kind ? (const void *)values : bytes;
        assert_int_equal(open_with(&m, good, list, 3, &e), 0);
        model_buffer_image(m, 1, x);
        for (int i = 0; i < 24; i++)
            assert_true(x[i] == 0.5f * (float)(3 * (24 + i)) - 1.0f);
        model_put(m);
    }
}

static void names_and_values_are_found_or_suggested(void **state)
{
    (void)state;
    struct model *m = opened();
    struct err e;
    const struct attributes *a = &m->d.attributes;
    assert_int_equal(attributes_find(a, "hair", &e), 1);
    assert_int_equal(attributes_find(a, "hiar", &e), -FAIL_UNKNOWN_ATTRIBUTE);
    assert_string_equal(e.did_you_mean, "hair");
    assert_non_null(strstr(e.text, "hiar"));
    assert_int_equal(attributes_find(a, "zebra", &e), -FAIL_UNKNOWN_ATTRIBUTE);
    assert_string_equal(e.did_you_mean, "");
    assert_int_equal(attribute_find_value(&a->list[1], "short", &e), 2);
    assert_int_equal(attribute_find_value(&a->list[1], "shrot", &e), -FAIL_UNKNOWN_VALUE);
    assert_string_equal(e.did_you_mean, "short");
    assert_true(attribute_find_value(&a->list[1], "x", NULL) < 0);
    assert_true(attributes_find(a, "x", NULL) < 0);
    model_put(m);
}

static void the_demo_model_opens(void **state)
{
    (void)state;
    struct model *m;
    struct err e;
    const char *path = TEST_SOURCE_DIR "/models/sprites.safetensors";
    if (access(path, R_OK) != 0) {
        print_message("skipped: %s is absent\n", path);
        return;
    }
    if (model_open(&m, path, NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    assert_string_equal(m->d.name, "sprites");
    assert_int_equal(m->d.attributes.n, 7);
    assert_int_equal(model_logits(m), 25);
    assert_int_equal(m->n_buffer, 1300);
    assert_true(net_parameters(m->net) > 160000 && net_macs(m->net) > 6000000);
    assert_int_equal(m->private_bytes, 0);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_gives_all_its_fields),
        cmocka_unit_test(the_defaults_are_those_of_the_paper),
        cmocka_unit_test(an_energy_head_is_one_more_logit),
        cmocka_unit_test(a_wrong_description_is_refused_saying_where),
        cmocka_unit_test(text_that_is_no_json_is_refused),
        cmocka_unit_test(a_wrong_tensor_is_refused),
        cmocka_unit_test(a_plain_checkpoint_is_refused_with_advice),
        cmocka_unit_test(misaligned_weights_are_copied_and_work_alike),
        cmocka_unit_test(a_model_is_prepared_once_in_the_precision_asked_for),
        cmocka_unit_test(references_are_counted),
        cmocka_unit_test(pixels_go_to_the_range_and_back),
        cmocka_unit_test(buffer_images_of_bytes_and_floats_are_decoded),
        cmocka_unit_test(names_and_values_are_found_or_suggested),
        cmocka_unit_test(the_demo_model_opens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
