/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Expected pixels: PIL 9.4, Image.resize(BILINEAR) for fill, ImageOps.fit for center_crop, and for
 * fit ImageOps.contain followed by numpy.pad(mode="edge"). Inputs are random bytes. */
struct reference {
    uint32_t width, height, to_width, to_height;
    int channels;
    enum image_resize how;
    unsigned char in[40], want[64];
};

static const struct reference references[] = {
    {5,
     4,
     3,
     3,
     1,
     IMAGE_FILL,
     {168, 229, 184, 171, 238, 171, 20, 206, 245, 153, 204, 5, 37, 53, 213, 206, 192, 173, 6, 120},
     {168, 186, 204, 113, 103, 168, 176, 108, 93}},
    {3,
     2,
     5,
     4,
     3,
     IMAGE_FILL,
     {63, 96, 236, 131, 118, 4, 87, 161, 124, 71, 42, 73, 237, 16, 194, 250, 10, 103},
     {63, 96, 236, 90,  105, 143, 131, 118, 4,   105, 144, 76,  87,  161, 124,
      65, 83, 195, 102, 87,  138, 158, 93,  52,  140, 111, 92,  128, 123, 119,
      69, 56, 114, 125, 50,  127, 211, 42,  147, 210, 45,  123, 209, 48,  108,
      71, 42, 73,  137, 32,  121, 237, 16,  194, 245, 12,  139, 250, 10,  103}},
    {16,
     2,
     3,
     2,
     1,
     IMAGE_FILL,
     {120, 134, 31, 216, 14,  127, 160, 29,  208, 161, 116, 100, 83, 151, 198, 160,
      173, 193, 54, 126, 126, 57,  118, 170, 107, 131, 59,  173, 52, 139, 181, 169},
     {108, 124, 139, 122, 117, 130}},
    {6,
     2,
     4,
     4,
     1,
     IMAGE_FIT,
     {143, 2, 38, 71, 133, 118, 36, 98, 196, 35, 57, 146},
     {75, 88, 74, 119, 75, 88, 74, 119, 75, 88, 74, 119, 75, 88, 74, 119}},
    {2,
     5,
     5,
     3,
     1,
     IMAGE_FIT,
     {50, 179, 145, 104, 206, 53, 141, 33, 181, 39},
     {119, 119, 119, 119, 119, 119, 119, 119, 119, 119, 100, 100, 100, 100, 100}},
    {7,
     3,
     2,
     2,
     1,
     IMAGE_CENTER_CROP,
     {180, 138, 66, 0, 165, 98, 123, 12, 144, 184, 24, 38, 129, 1, 202, 255, 85, 54, 228, 48, 127},
     {80, 81, 106, 110}},
    {2,
     6,
     2,
     2,
     3,
     IMAGE_CENTER_CROP,
     {109, 247, 16, 192, 78,  220, 8,  60, 189, 181, 64, 72, 8,   185, 88,  111, 191, 138,
      99,  67,  48, 68,  100, 249, 67, 40, 127, 45,  33, 51, 206, 229, 217, 85,  53,  204},
     {8, 185, 88, 111, 191, 138, 99, 67, 48, 68, 100, 249}},
};

static struct image must_resize(const struct image *in, uint32_t width, uint32_t height,
                                enum image_resize how)
{
    struct image out;
    struct err e;
    if (image_resize(&out, in, width, height, how, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(out.width, width);
    assert_int_equal(out.height, height);
    assert_int_equal(out.channels, in->channels);
    return out;
}

static struct image flat(uint32_t width, uint32_t height, int channels, int level)
{
    struct image im;
    struct err e;
    assert_int_equal(image_init(&im, width, height, channels, &e), 0);
    memset(im.data, level, (size_t)width * height * (size_t)channels);
    return im;
}

static void assert_flat(const struct image *im, int level)
{
    const size_t bytes = (size_t)im->width * im->height * (size_t)im->channels;
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(im->data[i], level);
}

static void the_words_of_the_surface_are_parsed(void **state)
{
    (void)state;
    enum image_resize how;
    assert_int_equal(image_resize_parse("fit", &how), 0);
    assert_int_equal(how, IMAGE_FIT);
    assert_int_equal(image_resize_parse("fill", &how), 0);
    assert_int_equal(how, IMAGE_FILL);
    assert_int_equal(image_resize_parse("center_crop", &how), 0);
    assert_int_equal(how, IMAGE_CENTER_CROP);
    assert_int_equal(image_resize_parse("reject", &how), 0);
    assert_int_equal(how, IMAGE_REJECT);
    assert_int_equal(image_resize_parse("stretch", &how), -1);
    assert_int_equal(image_resize_parse("", &how), -1);
}

static void pixels_agree_with_pil_within_one_level(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof references / sizeof *references; i++) {
        const struct reference *const r = &references[i];
        unsigned char pixels[sizeof r->in];
        memcpy(pixels, r->in, sizeof pixels);
        const struct image in = {r->width, r->height, r->channels, pixels};
        struct image out = must_resize(&in, r->to_width, r->to_height, r->how);
        for (uint32_t k = 0; k < r->to_width * r->to_height * (uint32_t)r->channels; k++)
            if (abs(out.data[k] - r->want[k]) > 1)
                fail_msg("case %zu byte %u: %d, PIL has %d", i, k, out.data[k], r->want[k]);
        image_fini(&out);
    }
}

static void the_same_size_is_a_copy_whatever_was_asked(void **state)
{
    (void)state;
    unsigned char pixels[] = {1, 2, 3, 4, 5, 6};
    const struct image in = {2, 1, 3, pixels};
    for (int how = IMAGE_FIT; how <= IMAGE_REJECT; how++) {
        struct image out = must_resize(&in, 2, 1, (enum image_resize)how);
        assert_ptr_not_equal(out.data, pixels);
        assert_memory_equal(out.data, pixels, sizeof pixels);
        image_fini(&out);
    }
}

static void reject_names_both_sizes(void **state)
{
    (void)state;
    struct image in = flat(40, 50, 1, 0), out = {1, 2, 3, NULL};
    struct err e;
    assert_int_equal(image_resize(&out, &in, 32, 33, IMAGE_REJECT, &e), -FAIL_IMAGE_SIZE_MISMATCH);
    assert_non_null(strstr(e.text, "40x50"));
    assert_non_null(strstr(e.text, "32x33"));
    assert_int_equal(out.height, 2);
    image_fini(&in);
}

/* Weights that do not sum to one, or a pixel taken from outside, would show. */
static void a_flat_image_stays_flat(void **state)
{
    (void)state;
    static const uint32_t sides[] = {1, 2, 3, 7, 31, 32, 33, 100, 257};
    enum { SIDES = sizeof sides / sizeof *sides };
    for (int i = 0; i < SIDES * SIDES; i++) {
        struct image in = flat(sides[i / SIDES], sides[i % SIDES], i % 2 ? 3 : 1, 255 - i % 3);
        for (int how = IMAGE_FIT; how <= IMAGE_CENTER_CROP; how++) {
            struct image out = must_resize(&in, sides[(i + how) % SIDES], sides[(7 * i) % SIDES],
                                           (enum image_resize)how);
            assert_flat(&out, 255 - i % 3);
            image_fini(&out);
        }
        image_fini(&in);
    }
}

static void extreme_shapes_are_resized(void **state)
{
    (void)state;
    struct {
        uint32_t width, height, to_width, to_height;
    } const shapes[] = {{1, 10000, 32, 32}, {10000, 1, 32, 32},       {1, 10000, 10000, 1},
                        {1, 1, 1000, 1},    {1, 1 << 20, 1 << 15, 1}, {1 << 20, 1, 1, 1 << 15}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct image in = flat(shapes[i].width, shapes[i].height, 3, 200);
        for (int how = IMAGE_FIT; how <= IMAGE_CENTER_CROP; how++) {
            struct image out =
                must_resize(&in, shapes[i].to_width, shapes[i].to_height, (enum image_resize)how);
            const uint32_t last = out.width * out.height * 3 - 1;
            assert_in_range(out.data[0], 199, 201);
            assert_in_range(out.data[last / 2], 199, 201);
            assert_in_range(out.data[last], 199, 201);
            image_fini(&out);
        }
        image_fini(&in);
    }
}

/* Tall made flat: the vertical pass goes first, and has to average the whole column. */
static void a_column_becomes_a_row_of_its_mean(void **state)
{
    (void)state;
    enum { LENGTH = 4096 };
    struct image in = flat(1, LENGTH, 1, 0);
    for (int y = 0; y < LENGTH; y++)
        in.data[y] = (unsigned char)(y % 2 ? 80 : 20);
    struct image out = must_resize(&in, LENGTH, 1, IMAGE_FILL);
    for (int x = 0; x < LENGTH; x++)
        assert_in_range(out.data[x], 49, 51);
    image_fini(&out);
    image_fini(&in);
}

static void a_side_over_the_maximum_is_refused(void **state)
{
    (void)state;
    struct image in = flat((1 << 20) + 1, 1, 1, 0), out;
    struct err e;
    assert_int_equal(image_resize(&out, &in, 2, 2, IMAGE_FILL, &e), -FAIL_IMAGE_TOO_LARGE);
    assert_int_equal(e.limit, 1 << 20);
    image_fini(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_words_of_the_surface_are_parsed),
        cmocka_unit_test(pixels_agree_with_pil_within_one_level),
        cmocka_unit_test(the_same_size_is_a_copy_whatever_was_asked),
        cmocka_unit_test(reject_names_both_sizes),
        cmocka_unit_test(a_flat_image_stays_flat),
        cmocka_unit_test(extreme_shapes_are_resized),
        cmocka_unit_test(a_column_becomes_a_row_of_its_mean),
        cmocka_unit_test(a_side_over_the_maximum_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
