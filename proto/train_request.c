/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/train_request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char name_characters[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

/* Text that can name a file or folder anywhere: "" and ".." among others cannot. */
static bool is_name(const char *text)
{
    return text[0] != '\0' && text[0] != '.' && text[strspn(text, name_characters)] == '\0';
}

struct blob *train_request_text(const json_t *root)
{
    char *text = json_text_exact(root);
    struct blob *made = text ? blob_copy(text, strlen(text)) : NULL;
    free(text);
    return made;
}

/* ---- what stands beside the recipe and belongs into it ---- */

/* The recipe's member of this name, made if it is missing and may be; NULL when it is no object. */
static json_t *part_of(json_t *root, const char *name)
{
    json_t *recipe = json_object_get(root, "recipe"), *part = json_object_get(recipe, name);
    if (json_is_object(recipe) && !part) {
        part = json_object();
        json_object_set_new(recipe, name, part);
    }
    return json_is_object(part) ? part : NULL;
}

static int move(json_t *root, const char *name, json_t *value, const char *part, struct err *e)
{
    json_t *to = part_of(root, part);
    char pointer[32];
    if (to && value && json_object_set(to, name, value) == 0)
        return json_object_del(root, name);
    snprintf(pointer, sizeof pointer, "/%s", name);
    fail(e, FAIL_MISSING_FIELD,
         "\"%s\" replaces a member of the recipe, and there is no \"recipe\"", name);
    return fail_at(e, pointer);
}

static int move_text(json_t *root, const char *name, struct err *e)
{
    json_t *value = json_object_get(root, name);
    char pointer[32];
    if (!value || json_is_null(value))
        return 0;
    if (json_is_string(value))
        return move(root, name, value, "model", e);
    fail(e, FAIL_WRONG_TYPE, "\"%s\" must be a string", name);
    snprintf(pointer, sizeof pointer, "/%s", name);
    return fail_at(e, pointer);
}

/* A string of digits or an integer, as in other jobs; a recipe's has 63 bits. */
static int move_seed(json_t *root, struct err *e)
{
    const json_t *value = json_object_get(root, "seed");
    const char *text = json_string_value(value);
    char *end = NULL;
    long long seed = json_is_integer(value) ? json_integer_value(value) : -1;
    if (!value || json_is_null(value))
        return 0;
    errno = 0;
    if (text && text[0] >= '0' && text[0] <= '9')
        seed = strtoll(text, &end, 10);
    if (seed < 0 || errno || (end && *end)) {
        fail(e, FAIL_OUT_OF_RANGE, "\"seed\" must be a number in [0, 2^63), as a string of digits");
        return fail_at(e, "/seed");
    }
    json_t *number = json_integer(seed);
    const int rc = move(root, "seed", number, "training", e);
    json_decref(number);
    return rc;
}

int train_request_complete(json_t *root, struct err *e)
{
    int rc = move_text(root, "name", e);
    if (rc == 0)
        rc = move_text(root, "version", e);
    return rc == 0 ? move_seed(root, e) : rc;
}

/* ---- parsing ---- */

long long train_request_parameters(const struct recipe *r)
{
    long long sum = 0;
    for (int i = 0; i < r->model.n_layers; i++) {
        const struct layer_spec *s = &r->model.layers[i];
        const long long kernel = (long long)s->kernel_h * s->kernel_w;
        if (s->kind == LAYER_CONV || s->kind == LAYER_LINEAR)
            sum += (long long)s->out * (s->in * (s->kind == LAYER_CONV ? kernel : 1) + 1);
    }
    return sum;
}

/* An error of recipe_parse as one of the request: its pointers begin in the recipe or, without
 * "/training", in its model. */
static int blame_recipe(struct err *e)
{
    char pointer[sizeof e->pointer + 32];
    if (!e)
        return -FAIL_BAD_RECIPE;
    if (e->code == FAIL_NO_MEMORY)
        return -FAIL_NO_MEMORY;
    const bool training = strncmp(e->pointer, "/training", 9) == 0;
    const bool model = e->code == FAIL_BAD_MODEL;
    snprintf(pointer, sizeof pointer, "/recipe%s%s%s",
             training || (!model && !e->pointer[0]) ? ""
             : model                                ? "/model"
                                                    : "/training/chains",
             e->pointer[0] && e->pointer[0] != '/' ? "/" : "", e->pointer);
    if (model)
        e->code = FAIL_BAD_RECIPE;
    pointer[sizeof e->pointer - 1] = '\0';
    return fail_at(e, pointer);
}

static int beyond(long long value, long long limit, const char *what, const char *pointer,
                  struct err *e)
{
    if (value <= limit)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "a training may have %lld %s here, this one has %lld", limit, what,
         value);
    fail_limit(e, limit);
    return fail_at(e, pointer);
}

static int read_recipe(struct train_request *q, struct json_reader *root,
                       const struct train_limits *limits, struct err *e)
{
    const json_t *recipe;
    int rc = json_get_object(root, "recipe", &recipe, e);
    if (rc <= 0)
        return rc < 0 ? rc : json_missing(root, "recipe", e);
    struct blob *text = train_request_text(recipe);
    if (!text)
        return fail(e, FAIL_NO_MEMORY, "no memory for the recipe");
    rc = beyond((long long)text->size, limits->recipe_bytes, "bytes of recipe", "/recipe", e);
    if (rc == 0) {
        rc = recipe_parse(&q->recipe, (const char *)text->bytes, text->size, "recipe", e);
        if (rc != 0) {
            q->recipe = (struct recipe){0};
            rc = blame_recipe(e);
        }
    }
    blob_put(text);
    if (rc == 0)
        rc = beyond(q->recipe.steps, limits->steps, "steps", "/recipe/training/steps", e);
    return rc == 0 ? beyond(train_request_parameters(&q->recipe), limits->parameters, "parameters",
                            "/recipe/model/layers", e)
                   : rc;
}

/* Below the root, and nowhere else: no empty, "." or ".." component. */
static bool is_path(const char *path)
{
    while (*path) {
        const size_t n = strcspn(path, "/");
        if (n == 0 || (n == 1 && path[0] == '.') || (n == 2 && strncmp(path, "..", 2) == 0))
            return false;
        path += n;
        if (*path == '/' && !*++path)
            return false;
    }
    return true;
}

static int read_data(struct train_request *q, struct json_reader *root, struct err *e)
{
    const json_t *data;
    struct json_reader r;
    int rc = json_get_object(root, "data", &data, e);
    if (rc <= 0)
        return rc < 0 ? rc : json_missing(root, "data", e);
    rc = json_reader_init(&r, data, "/data", e);
    if (rc == 0)
        rc = json_get_string(&r, "path", TRAIN_PATH_MAX, &q->data, e);
    if (rc == 0)
        return json_missing(&r, "path", e);
    if (rc > 0)
        rc = json_get_string(&r, "split", TRAIN_SPLIT_MAX, &q->split, e);
    if (rc >= 0)
        rc = json_get_number(&r, "split_calib", 0, TRAIN_CALIB_MAX, &q->calib_share, e);
    if (rc < 0)
        return rc;
    if (!q->data[0] || !is_path(q->data)) {
        fail(
            e, FAIL_OUT_OF_RANGE,
            "\"path\" names a folder below the daemon's data root: no \"..\" and no leading slash");
        return fail_at(e, "/data/path");
    }
    if (!is_name(q->split)) {
        fail(e, FAIL_OUT_OF_RANGE, "a split's name is made of A-Z a-z 0-9 . _ -");
        return fail_at(e, "/data/split");
    }
    if (q->calib_share > 0 && strcmp(q->split, "train") != 0) {
        fail(e, FAIL_OUT_OF_RANGE,
             "\"split_calib\" divides the split \"train\", and \"split\" is another");
        return fail_at(e, "/data/split_calib");
    }
    return json_reader_finish(&r, e);
}

static int read_rest(struct train_request *q, struct json_reader *root, int max_steps,
                     struct err *e)
{
    long long every = TRAIN_PREVIEW_STEPS;
    int rc = json_get_string(root, "run", TRAIN_RUN_MAX, &q->run, e);
    if (rc > 0 && !is_name(q->run)) {
        fail(e, FAIL_OUT_OF_RANGE,
             "a run's name is made of A-Z a-z 0-9 . _ - and does not begin with a dot");
        return fail_at(e, "/run");
    }
    if (rc >= 0)
        rc = json_get_string(root, "resume_from", 36, &q->resume_from, e);
    if (rc >= 0)
        rc = json_get_int(root, "preview_every_steps", 0, max_steps, &every, e);
    q->preview_every_steps = (int)every;
    return rc < 0 ? rc : job_members_read(&q->members, root, e);
}

/* Names that become those of files. */
static int check_names(const struct recipe *r, struct err *e)
{
    const bool name = is_name(r->model.name);
    if (name && is_name(r->model.version))
        return 0;
    fail(e, FAIL_BAD_RECIPE, "the model's %s must not begin with a dot", name ? "version" : "name");
    return fail_at(e, name ? "/recipe/model/version" : "/recipe/model/name");
}

int train_request_parse(struct train_request **out, const json_t *root,
                        const struct train_limits *limits, struct err *e)
{
    static const char *const types[] = {"train"};
    struct json_reader r;
    int type = 0;
    struct train_request *q = calloc(1, sizeof *q);
    if (!q)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a request");
    q->split = "train";
    int rc = json_reader_init(&r, root, "", e);
    if (rc == 0)
        rc = json_get_word(&r, "type", types, 1, &type, e);
    if (rc >= 0)
        rc = read_recipe(q, &r, limits, e);
    if (rc == 0)
        rc = check_names(&q->recipe, e);
    if (rc == 0)
        rc = read_data(q, &r, e);
    if (rc == 0)
        rc = read_rest(q, &r, 1000000, e);
    if (rc == 0)
        rc = json_reader_finish(&r, e);
    if (rc != 0)
        train_request_free(q);
    else
        *out = q;
    return rc;
}

void train_request_free(struct train_request *q)
{
    if (!q)
        return;
    recipe_fini(&q->recipe);
    free(q);
}
