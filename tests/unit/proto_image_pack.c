/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image_pack.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <string.h>

static struct err e;

static struct blob *packed(const struct image_pack_head *h, const char *const *names,
                           const char *const *data)
{
    struct image_packer p;
    size_t sum = 0;
    for (int i = 0; i < h->n; i++)
        sum += strlen(names[i]) + strlen(data[i]);
    assert_int_equal(image_packer_init(&p, h, sum, &e), 0);
    for (int i = 0; i < h->n; i++)
        image_packer_add(&p, names[i], data[i], strlen(data[i]));
    return image_packer_end(&p);
}

static struct blob *three_files(void)
{
    static const char *const names[] = {"a.png", "", "\xc3\xa9"}, *const data[] = {"one", "two2",
                                                                                   ""};
    const struct image_pack_head h = {.kind = IMAGE_PACK_FILES, .n = 3};
    return packed(&h, names, data);
}

static struct blob *tensor(void)
{
    static const char *const names[] = {"", ""}, *const data[] = {"abcdefghijkl", "mnopqrstuvwx"};
    const struct image_pack_head h = {IMAGE_PACK_UINT8, 2, 2, 2, 3};
    return packed(&h, names, data);
}

static void what_is_packed_comes_back_in_order(void **state)
{
    (void)state;
    static const char *const names[] = {"a.png", "", "\xc3\xa9"}, *const data[] = {"one", "two2",
                                                                                   ""};
    struct image_pack p;
    struct image_pack_item item;
    struct blob *b = three_files();
    assert_int_equal(image_pack_open(&p, b, &e), 0);
    blob_put(b); /* the pack has its own */
    assert_int_equal(p.head.kind, IMAGE_PACK_FILES);
    assert_int_equal(p.head.n, 3);
    for (int i = 2; i >= 0; i--) {
        image_pack_item(&p, i, &item);
        assert_string_equal(item.name, names[i]);
        assert_int_equal(item.size, strlen(data[i]));
        assert_memory_equal(item.bytes, data[i], item.size);
    }
    image_pack_close(&p);
    b = tensor();
    assert_int_equal(image_pack_open(&p, b, &e), 0);
    assert_int_equal(p.head.height * 100 + p.head.width * 10 + p.head.channels, 223);
    image_pack_item(&p, 1, &item);
    assert_int_equal(item.size, 12);
    assert_memory_equal(item.bytes, "mnopqrstuvwx", 12);
    image_pack_close(&p);
    blob_put(b);
}

static void a_name_that_is_too_long_is_cut_at_a_character(void **state)
{
    (void)state;
    char name[80];
    struct image_packer w;
    struct image_pack p;
    struct image_pack_item item;
    const struct image_pack_head h = {.kind = IMAGE_PACK_FILES, .n = 1};
    memset(name, 'x', sizeof name);
    memcpy(name + 62, "\xe2\x82\xac", 4); /* the 63rd byte is in the middle of it */
    assert_int_equal(image_packer_init(&w, &h, 100, &e), 0);
    image_packer_add(&w, name, "1", 1);
    struct blob *b = image_packer_end(&w);
    assert_int_equal(image_pack_open(&p, b, &e), 0);
    image_pack_item(&p, 0, &item);
    assert_int_equal(strlen(item.name), 62);
    image_pack_close(&p);
    blob_put(b);
}

static void refused(const struct blob *whole, size_t size, size_t at, int change)
{
    struct image_pack p;
    struct blob *b = blob_copy(whole->bytes, size);
    if (change)
        b->bytes[at] = (unsigned char)(b->bytes[at] + change);
    if (image_pack_open(&p, b, &e) != -FAIL_BAD_FILE)
        fail_msg("%zu bytes, %zu changed by %d", size, at, change);
    blob_put(b);
}

static void what_is_cut_or_damaged_is_refused(void **state)
{
    (void)state;
    struct blob *const whole[] = {three_files(), tensor()};
    for (int i = 0; i < 2; i++) {
        for (size_t n = 0; n < whole[i]->size; n++)
            refused(whole[i], n, 0, 0);
        for (size_t at = 0; at < 28; at++) /* magic, kind, n, sides */
            refused(whole[i], whole[i]->size, at, 100);
        for (size_t at = 32; at < 40; at++) /* the sizes of the first */
            refused(whole[i], whole[i]->size, at, 100);
        blob_put(whole[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_packed_comes_back_in_order),
        cmocka_unit_test(a_name_that_is_too_long_is_cut_at_a_character),
        cmocka_unit_test(what_is_cut_or_damaged_is_refused),
    };
    return cmocka_run_group_tests_name("image_pack", tests, NULL, NULL);
}
