/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the tests of the daemon's parts share: a folder of their own with model files in it, and
 * waiting with an end. */
#include "base/timing.h"
#include "ebm/model.h"
#include "unit/test_model.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

/* 1 x 4 x 4 images, colour (2 values) and shape (3); %s is the name, %d the version. */
static const char help_json[] =
    "{\"format\":1,\"name\":\"%s\",\"version\":\"%d\",\"family\":\"jem\","
    "\"input\":{\"channels\":1,\"height\":4,\"width\":4,\"range\":[0,1]},\"layers\":["
    "{\"kind\":\"conv\",\"weights\":\"c\",\"in\":1,\"out\":4,\"kernel\":3,\"pad\":1},"
    "{\"kind\":\"silu\"},{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"l\",\"in\":64,\"out\":5}],"
    "\"attributes\":[{\"name\":\"colour\",\"values\":[\"red\",\"blue\"]},"
    "{\"name\":\"shape\",\"values\":[\"disc\",\"ring\",\"star\"]}],"
    "\"sampler\":{\"kind\":\"sgld\",\"steps\":20,\"step_rule\":\"fixed\",\"step_size\":0.1,"
    "\"noise\":0.01,\"clamp\":[0,1]}}";

enum { HELP_ELEMENTS = 16, HELP_LOGITS = 5 };

static char folder[64];

static inline void make_folder(void)
{
    strcpy(folder, "/tmp/jemd-unit-XXXXXX");
    assert_non_null(mkdtemp(folder));
}

static inline const char *in_folder(const char *file)
{
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, file);
    return path[turn];
}

static inline void drop_folder(void)
{
    DIR *d = opendir(folder);
    const struct dirent *at;
    while (d && (at = readdir(d)))
        if (at->d_name[0] != '.')
            unlink(in_folder(at->d_name));
    if (d)
        closedir(d);
    rmdir(folder);
}

/* Puts a model file into the folder, by rename, as files in use must be. */
static inline void put_model(const char *file, const char *name, int version)
{
    char json[sizeof help_json + 80], made[64];
    struct test_weights w = {.seed = (uint64_t)version};
    struct err e;
    snprintf(json, sizeof json, help_json, name, version);
    test_model_draw_weights(json, &w);
    assert_int_equal(test_model_write(made, json, &w, NULL, 0, &e), 0);
    test_weights_free(&w);
    assert_int_equal(rename(made, in_folder(file)), 0);
}

static inline void put_text(const char *file, const char *text)
{
    FILE *f = fopen(in_folder(file), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static inline struct model *load_model(const char *name, int version)
{
    struct model *m;
    struct err e;
    put_model("one.safetensors", name, version);
    if (model_open(&m, in_folder("one.safetensors"), NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    return m;
}

/* Waits up to twenty seconds until x is true. */
#define wait_until(x)                                                                              \
    do {                                                                                           \
        bool wait_ok_ = false;                                                                     \
        for (int wait_i_ = 0; wait_i_ < 30000 && !(wait_ok_ = (x)); wait_i_++)                     \
            usleep(2000);                                                                          \
        assert_true(wait_ok_);                                                                     \
    } while (0)
