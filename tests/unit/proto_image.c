/* SPDX-License-Identifier: Apache-2.0 */
#include "image_samples.h"
#include "proto/image.h"
#include "proto/image_codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct image_limits roomy = {4096, 1 << 20, 16 << 20};

/* Decodes what must be decodable; the caller frees. */
static struct image must_decode(const void *bytes, size_t size, int channels)
{
    struct image im;
    struct err e;
    if (image_decode(&im, bytes, size, channels, &roomy, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(im.channels, channels);
    return im;
}

static void assert_pixels(const void *bytes, size_t size, int channels, uint32_t width,
                          uint32_t height, const unsigned char *expected)
{
    struct image im = must_decode(bytes, size, channels);
    assert_int_equal(im.width, width);
    assert_int_equal(im.height, height);
    assert_memory_equal(im.data, expected, (size_t)width * height * (size_t)channels);
    image_fini(&im);
}

/* Refused with `code` and a sentence that contains `word`; the output is untouched. */
static struct err assert_refused(const void *bytes, size_t size, const struct image_limits *limits,
                                 enum fail_code code, const char *word)
{
    struct image im = {7, 8, 9, NULL};
    struct err e;
    assert_int_equal(image_decode(&im, bytes, size, 3, limits, &e), -(int)code);
    assert_int_equal(e.code, code);
    if (!strstr(e.text, word))
        fail_msg("\"%s\" does not say \"%s\"", e.text, word);
    assert_int_equal(im.width, 7);
    assert_null(im.data);
    return e;
}

static void assert_over_limit(const void *bytes, size_t size, struct image_limits limits,
                              long long limit)
{
    const struct err e = assert_refused(bytes, size, &limits, FAIL_IMAGE_TOO_LARGE, "");
    assert_true(e.has_limit);
    assert_int_equal(e.limit, limit);
}

static unsigned char *copy_of(const void *bytes, size_t size)
{
    unsigned char *const copy = malloc(size);
    assert_non_null(copy);
    return memcpy(copy, bytes, size);
}

static void ramp(unsigned char *pixels)
{
    for (int y = 0; y < 3; y++)
        for (int x = 0; x < 5; x++, pixels += 3) {
            pixels[0] = (unsigned char)(40 * x);
            pixels[1] = (unsigned char)(60 * y);
            pixels[2] = (unsigned char)(200 - 30 * x);
        }
}

static void the_format_is_what_the_magic_bytes_say(void **state)
{
    (void)state;
    enum image_format f;
    assert_int_equal(image_sniff(png_rgb, sizeof png_rgb, &f), 0);
    assert_int_equal(f, IMAGE_PNG);
    assert_int_equal(image_sniff(jpeg_rgb, sizeof jpeg_rgb, &f), 0);
    assert_int_equal(f, IMAGE_JPEG);
    assert_int_equal(image_sniff(png_rgb, 7, &f), -1);
    assert_int_equal(image_sniff(jpeg_rgb, 2, &f), -1);
    assert_int_equal(image_sniff(NULL, 0, &f), -1);
    assert_string_equal(image_format_name(IMAGE_PNG), "png");
    assert_string_equal(image_format_name(IMAGE_JPEG), "jpeg");
}

static void what_is_no_png_or_jpeg_is_refused_by_name(void **state)
{
    (void)state;
    assert_refused("", 0, &roomy, FAIL_BAD_IMAGE, "empty");
    assert_refused("GIF89a", 6, &roomy, FAIL_BAD_IMAGE, "GIF");
    assert_refused("RIFF\0\0\0\0WEBPVP8 ", 16, &roomy, FAIL_BAD_IMAGE, "WebP");
    assert_refused("II*\0\0\0\0\0", 8, &roomy, FAIL_BAD_IMAGE, "TIFF");
    assert_refused("\0\0\0\x18"
                   "ftypavif",
                   12, &roomy, FAIL_BAD_IMAGE, "AVIF");
    assert_refused("hello", 5, &roomy, FAIL_BAD_IMAGE, "68 65 6c 6c 6f");
}

static void png_pixels_come_out_as_they_are(void **state)
{
    (void)state;
    unsigned char expected[45];
    ramp(expected);
    assert_pixels(png_rgb, sizeof png_rgb, 3, 5, 3, expected);
    assert_pixels(png_text, sizeof png_text, 3, 5, 3, expected);
}

static void an_interlaced_png_gives_the_same_pixels(void **state)
{
    (void)state;
    unsigned char expected[45];
    ramp(expected);
    assert_pixels(png_interlaced, sizeof png_interlaced, 3, 5, 3, expected);
}

static void colour_becomes_grey_by_luma(void **state)
{
    (void)state;
    unsigned char colour[45], expected[15];
    ramp(colour);
    for (int i = 0; i < 15; i++) {
        const unsigned char *const p = colour + (ptrdiff_t)3 * i;
        expected[i] = (unsigned char)((299 * p[0] + 587 * p[1] + 114 * p[2] + 500) / 1000);
    }
    assert_pixels(png_rgb, sizeof png_rgb, 1, 5, 3, expected);
    assert_pixels(png_interlaced, sizeof png_interlaced, 1, 5, 3, expected);
}

static void a_palette_with_transparency_is_composed_over_white(void **state)
{
    (void)state;
    const unsigned char expected[] = {255, 0, 0, 127, 255, 127, 255, 255, 255, 10, 20, 30};
    assert_pixels(png_palette, sizeof png_palette, 3, 4, 1, expected);
}

static void few_bit_grey_spans_the_whole_range(void **state)
{
    (void)state;
    const unsigned char one[] = {255, 0, 255, 255, 0, 0, 0, 255, 0, 255};
    const unsigned char two[] = {0, 85, 170, 255};
    assert_pixels(png_grey1, sizeof png_grey1, 1, 10, 1, one);
    assert_pixels(png_grey2, sizeof png_grey2, 1, 4, 1, two);
}

static void sixteen_bit_samples_are_rounded(void **state)
{
    (void)state;
    const unsigned char grey[] = {0, 0, 1, 1, 2, 255};
    const unsigned char rgba[] = {255, 0, 100, 255, 127, 177, 255, 255, 255};
    assert_pixels(png_grey16, sizeof png_grey16, 1, 6, 1, grey);
    assert_pixels(png_rgba16, sizeof png_rgba16, 3, 3, 1, rgba);
}

static void a_transparent_colour_and_grey_alpha_are_composed_over_white(void **state)
{
    (void)state;
    const unsigned char key[] = {255, 255, 255, 1, 2, 4}, grey[] = {100, 225};
    assert_pixels(png_colour_key, sizeof png_colour_key, 3, 2, 1, key);
    assert_pixels(png_grey_alpha, sizeof png_grey_alpha, 1, 2, 1, grey);
}

static void a_png_is_turned_as_its_exif_says(void **state)
{
    (void)state;
    unsigned char upright[45], expected[45];
    ramp(upright);
    for (int y = 0; y < 5; y++)
        for (int x = 0; x < 3; x++)
            memcpy(expected + (ptrdiff_t)3 * (3 * y + x),
                   upright + (ptrdiff_t)3 * (5 * (2 - x) + y), 3);
    assert_pixels(png_rotated, sizeof png_rotated, 3, 3, 5, expected);
    for (int i = 0; i < 15; i++)
        memcpy(expected + (ptrdiff_t)3 * i, upright + (ptrdiff_t)3 * (14 - i), 3);
    assert_pixels(png_rotated_late, sizeof png_rotated_late, 3, 5, 3, expected);
}

static void assert_near(int got, int want)
{
    if (abs(got - want) > 3)
        fail_msg("pixel is %d, not near %d", got, want);
}

/* The corners (top left, top right, bottom left, bottom right) that each orientation shows of a
 * stored image with the corners A B / C D. */
static void a_jpeg_is_turned_by_each_of_the_eight_orientations(void **state)
{
    (void)state;
    static const char *const seen[] = {"ABCD", "BADC", "DCBA", "CDAB",
                                       "ACBD", "CADB", "DBCA", "BDAC"};
    const int level[] = {20, 90, 160, 230};
    static const unsigned char entry[] = {0x01, 0x12, 0x00, 0x03, 0x00, 0x00, 0x00, 0x01, 0x00};
    unsigned char *const jpeg = copy_of(jpeg_quarters, sizeof jpeg_quarters);
    unsigned char *const at = memmem(jpeg, sizeof jpeg_quarters, entry, sizeof entry);
    assert_non_null(at);
    for (int o = 1; o <= 8; o++) {
        at[sizeof entry] = (unsigned char)o;
        struct image im = must_decode(jpeg, sizeof jpeg_quarters, 1);
        assert_int_equal(im.width, o >= 5 ? 16 : 24);
        assert_int_equal(im.height, o >= 5 ? 24 : 16);
        const size_t right = im.width - 1, bottom = (size_t)im.width * (im.height - 1);
        const size_t corner[] = {0, right, bottom, bottom + right};
        for (int i = 0; i < 4; i++)
            assert_near(im.data[corner[i]], level[seen[o - 1][i] - 'A']);
        image_fini(&im);
    }
    free(jpeg);
}

static void hostile_exif_is_read_as_upright(void **state)
{
    (void)state;
    static const unsigned char good[] = {'I',  'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12,
                                         0x01, 3,   0,  1, 0, 0, 0, 6, 0, 0, 0};
    struct {
        int at;
        unsigned char value;
        int expected;
    } const changes[] = {
        {0, 'I', 6}, {0, 'M', 1},  {2, 43, 1}, {4, 0, 1},    {4, 20, 1},    {4, 21, 1},
        {4, 255, 1}, {7, 0xff, 1}, {8, 0, 1},  {9, 0xff, 6}, {10, 0x13, 1}, {12, 4, 1},
        {14, 2, 1},  {17, 1, 1},   {18, 0, 1}, {18, 9, 1},   {18, 8, 8},    {19, 1, 1},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        unsigned char *const tiff = copy_of(good, sizeof good);
        tiff[changes[i].at] = changes[i].value;
        assert_int_equal(image_exif_orientation(tiff, sizeof good), changes[i].expected);
        free(tiff);
    }
    for (size_t size = 0; size < sizeof good; size++) {
        unsigned char *const cut = copy_of(good, size ? size : 1);
        assert_int_equal(image_exif_orientation(cut, size), 1);
        free(cut);
    }
}

static void jpeg_pixels_are_near_what_was_encoded(void **state)
{
    (void)state;
    const int left[] = {200, 40, 60}, right[] = {30, 160, 90};
    struct image plain = must_decode(jpeg_rgb, sizeof jpeg_rgb, 3);
    struct image progressive = must_decode(jpeg_progressive, sizeof jpeg_progressive, 3);
    assert_int_equal(plain.width, 16);
    assert_int_equal(plain.height, 8);
    for (int i = 0; i < 16 * 8; i++)
        for (int c = 0; c < 3; c++)
            assert_near(plain.data[3 * i + c], i % 16 < 8 ? left[c] : right[c]);
    assert_memory_equal(plain.data, progressive.data, 16 * 8 * 3);
    struct image grey = must_decode(jpeg_rgb, sizeof jpeg_rgb, 1);
    for (int i = 0; i < 16 * 8; i++)
        assert_int_equal(grey.data[i], image_grey(plain.data[3 * i], plain.data[3 * i + 1],
                                                  plain.data[3 * i + 2]));
    image_fini(&plain);
    image_fini(&progressive);
    image_fini(&grey);
}

static void a_grey_jpeg_becomes_rgb_of_equal_channels(void **state)
{
    (void)state;
    struct image im = must_decode(jpeg_two_scans, sizeof jpeg_two_scans, 3);
    for (int i = 0; i < 16 * 8; i++) {
        assert_int_equal(im.data[3 * i], im.data[3 * i + 1]);
        assert_int_equal(im.data[3 * i], im.data[3 * i + 2]);
    }
    image_fini(&im);
}

/* Each prefix is decoded from a buffer of its very size, so that a sanitizer sees an overrun. */
static void assert_every_prefix_ends_early(const unsigned char *bytes, size_t size, size_t magic)
{
    for (size_t cut = 0; cut < size; cut++) {
        unsigned char *const part = copy_of(bytes, cut ? cut : 1);
        assert_refused(part, cut, &roomy, FAIL_BAD_IMAGE, cut < magic ? "" : "ends early");
        free(part);
    }
}

static void a_truncated_png_is_refused(void **state)
{
    (void)state;
    assert_every_prefix_ends_early(png_rgb, sizeof png_rgb, 8);
    assert_every_prefix_ends_early(png_interlaced, sizeof png_interlaced, 8);
    assert_every_prefix_ends_early(png_rotated, sizeof png_rotated, 8);
}

static void a_truncated_jpeg_is_refused(void **state)
{
    (void)state;
    assert_every_prefix_ends_early(jpeg_rgb, sizeof jpeg_rgb, 3);
    assert_every_prefix_ends_early(jpeg_progressive, sizeof jpeg_progressive, 3);
    assert_every_prefix_ends_early(jpeg_quarters, sizeof jpeg_quarters, 3);
}

static void bytes_after_the_end_are_tolerated(void **state)
{
    (void)state;
    unsigned char expected[45], longer[sizeof png_rgb + 100], jpeg[sizeof jpeg_rgb + 100];
    ramp(expected);
    memset(longer, 0xff, sizeof longer);
    memcpy(longer, png_rgb, sizeof png_rgb);
    assert_pixels(longer, sizeof longer, 3, 5, 3, expected);
    memset(jpeg, 0x55, sizeof jpeg);
    memcpy(jpeg, jpeg_rgb, sizeof jpeg_rgb);
    struct image im = must_decode(jpeg, sizeof jpeg, 3);
    image_fini(&im);
}

/* From IHDR's length to the end of IDAT's CRC there is no bit that may change. */
static void a_flipped_bit_in_a_critical_chunk_is_refused(void **state)
{
    (void)state;
    const size_t first = 8, last = sizeof png_rgb - 12;
    for (size_t bit = 8 * first; bit < 8 * last; bit++) {
        unsigned char *const png = copy_of(png_rgb, sizeof png_rgb);
        struct image im;
        png[bit / 8] ^= (unsigned char)(1u << bit % 8);
        const int rc = image_decode(&im, png, sizeof png_rgb, 3, &roomy, NULL);
        assert_true(rc == -FAIL_BAD_IMAGE || rc == -FAIL_IMAGE_TOO_LARGE);
        free(png);
    }
    assert_refused(png_critical, sizeof png_critical, &roomy, FAIL_BAD_IMAGE, "JEMD");
}

static void a_damaged_comment_does_not_matter(void **state)
{
    (void)state;
    unsigned char expected[45];
    unsigned char *const png = copy_of(png_text, sizeof png_text);
    ramp(expected);
    png[45] ^= 0x20;
    assert_pixels(png, sizeof png_text, 3, 5, 3, expected);
    free(png);
}

static void a_jpeg_whose_codes_break_off_is_refused(void **state)
{
    (void)state;
    unsigned char *const jpeg = copy_of(jpeg_rgb, sizeof jpeg_rgb);
    unsigned char *const end = jpeg + sizeof jpeg_rgb - 2;
    end[-4] = 0xff;
    end[-3] = 0xd9;
    assert_refused(jpeg, sizeof jpeg_rgb, &roomy, FAIL_BAD_IMAGE, "Corrupt JPEG data");
    free(jpeg);
}

static void cmyk_is_refused_by_name(void **state)
{
    (void)state;
    assert_refused(jpeg_cmyk, sizeof jpeg_cmyk, &roomy, FAIL_BAD_IMAGE, "CMYK");
}

static void a_size_over_the_limit_is_refused_with_the_limit(void **state)
{
    (void)state;
    assert_over_limit(png_rgb, sizeof png_rgb, (struct image_limits){4, 1000, 1 << 20}, 4);
    assert_over_limit(png_rgb, sizeof png_rgb, (struct image_limits){100, 14, 1 << 20}, 14);
    assert_over_limit(png_rgb, sizeof png_rgb, (struct image_limits){100, 15, 44}, 44);
    assert_over_limit(png_rgb, sizeof png_rgb, (struct image_limits){100, 15, 8000}, 8000);
    assert_over_limit(jpeg_rgb, sizeof jpeg_rgb, (struct image_limits){15, 1000, 1 << 20}, 15);
    assert_over_limit(jpeg_rgb, sizeof jpeg_rgb, (struct image_limits){100, 127, 1 << 20}, 127);
    assert_over_limit(jpeg_rgb, sizeof jpeg_rgb, (struct image_limits){100, 128, 8000}, 8000);
}

/* Side and pixel limits that let everything through leave the memory limit to refuse the size. */
static void a_header_bomb_is_refused_by_its_header(void **state)
{
    (void)state;
    unsigned char *const png = copy_of(png_rgb, sizeof png_rgb);
    memcpy(png + 16, "\x7f\xff\xff\xff\x7f\xff\xff\xff", 8);
    const struct image_limits wide = {UINT32_MAX, UINT64_MAX, 1 << 20};
    assert_over_limit(png, sizeof png_rgb, wide, 1 << 20);
    assert_over_limit(png, sizeof png_rgb, roomy, roomy.max_side);
    memset(png + 16, 0, 4);
    assert_refused(png, sizeof png_rgb, &roomy, FAIL_BAD_IMAGE, "no pixels");
    free(png);
}

static void a_huge_text_chunk_is_refused(void **state)
{
    (void)state;
    unsigned char *const png = copy_of(png_text, sizeof png_text);
    memcpy(png + 33, "\x7f\xff\xff\xff", 4);
    assert_over_limit(png, sizeof png_text, roomy, 4 << 20);
    free(png);
}

static void a_jpeg_of_very_many_scans_is_refused(void **state)
{
    (void)state;
    enum { MANY = 120 };
    const unsigned char *const scan = memmem(jpeg_two_scans, sizeof jpeg_two_scans, "\xff\xda", 2);
    assert_non_null(scan);
    const size_t head = (size_t)(scan - jpeg_two_scans);
    const unsigned char *const next =
        memmem(scan + 2, sizeof jpeg_two_scans - head - 2, "\xff\xc4", 2);
    assert_non_null(next);
    const size_t length = (size_t)(next - scan);
    unsigned char *const jpeg = malloc(sizeof jpeg_two_scans + MANY * length);
    assert_non_null(jpeg);
    memcpy(jpeg, jpeg_two_scans, head);
    size_t size = head;
    for (int i = 0; i < 50; i++, size += length)
        memcpy(jpeg + size, scan, length);
    memcpy(jpeg + size, scan, sizeof jpeg_two_scans - head);
    struct image im = must_decode(jpeg, size + sizeof jpeg_two_scans - head, 1);
    image_fini(&im);
    for (int i = 50; i < MANY; i++, size += length)
        memcpy(jpeg + size, scan, length);
    memcpy(jpeg + size, scan, sizeof jpeg_two_scans - head);
    assert_over_limit(jpeg, size + sizeof jpeg_two_scans - head, roomy, 100);
    free(jpeg);
}

static void an_encoded_png_decodes_to_the_same_pixels(void **state)
{
    (void)state;
    unsigned char pixels[45];
    ramp(pixels);
    for (int channels = 1; channels <= 3; channels += 2) {
        const struct image im = {5, channels == 3 ? 3 : 9, channels, pixels};
        for (int level = 0; level <= 9; level++) {
            struct blob *blob, *again;
            struct err e;
            assert_int_equal(image_encode_png(&blob, &im, level, &e), 0);
            assert_int_equal(image_encode_png(&again, &im, level, &e), 0);
            assert_int_equal(blob->size, again->size);
            assert_memory_equal(blob->bytes, again->bytes, blob->size);
            assert_pixels(blob->bytes, blob->size, channels, im.width, im.height, pixels);
            blob_put(blob);
            blob_put(again);
        }
    }
}

static void an_encoded_png_holds_nothing_but_the_image(void **state)
{
    (void)state;
    unsigned char pixels[45];
    ramp(pixels);
    const struct image im = {5, 3, 3, pixels};
    struct blob *blob;
    struct err e;
    assert_int_equal(image_encode_png(&blob, &im, 6, &e), 0);
    assert_memory_equal(blob->bytes + 12, "IHDR", 4);
    assert_memory_equal(blob->bytes + 37, "IDAT", 4);
    const size_t idat = (size_t)blob->bytes[35] << 8 | blob->bytes[36];
    assert_memory_equal(blob->bytes + 33 + 12 + idat + 4, "IEND", 4);
    assert_int_equal(blob->size, 33 + 12 + idat + 12);
    blob_put(blob);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_format_is_what_the_magic_bytes_say),
        cmocka_unit_test(what_is_no_png_or_jpeg_is_refused_by_name),
        cmocka_unit_test(png_pixels_come_out_as_they_are),
        cmocka_unit_test(an_interlaced_png_gives_the_same_pixels),
        cmocka_unit_test(colour_becomes_grey_by_luma),
        cmocka_unit_test(a_palette_with_transparency_is_composed_over_white),
        cmocka_unit_test(few_bit_grey_spans_the_whole_range),
        cmocka_unit_test(sixteen_bit_samples_are_rounded),
        cmocka_unit_test(a_transparent_colour_and_grey_alpha_are_composed_over_white),
        cmocka_unit_test(a_png_is_turned_as_its_exif_says),
        cmocka_unit_test(a_jpeg_is_turned_by_each_of_the_eight_orientations),
        cmocka_unit_test(hostile_exif_is_read_as_upright),
        cmocka_unit_test(jpeg_pixels_are_near_what_was_encoded),
        cmocka_unit_test(a_grey_jpeg_becomes_rgb_of_equal_channels),
        cmocka_unit_test(a_truncated_png_is_refused),
        cmocka_unit_test(a_truncated_jpeg_is_refused),
        cmocka_unit_test(bytes_after_the_end_are_tolerated),
        cmocka_unit_test(a_flipped_bit_in_a_critical_chunk_is_refused),
        cmocka_unit_test(a_damaged_comment_does_not_matter),
        cmocka_unit_test(a_jpeg_whose_codes_break_off_is_refused),
        cmocka_unit_test(cmyk_is_refused_by_name),
        cmocka_unit_test(a_size_over_the_limit_is_refused_with_the_limit),
        cmocka_unit_test(a_header_bomb_is_refused_by_its_header),
        cmocka_unit_test(a_huge_text_chunk_is_refused),
        cmocka_unit_test(a_jpeg_of_very_many_scans_is_refused),
        cmocka_unit_test(an_encoded_png_decodes_to_the_same_pixels),
        cmocka_unit_test(an_encoded_png_holds_nothing_but_the_image),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
