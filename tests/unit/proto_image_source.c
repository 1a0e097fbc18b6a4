/* SPDX-License-Identifier: Apache-2.0 */
/* Data sets of image files: folders by class and tables, in the model's size. */
#include "base/pool.h"
#include "ebm/attributes.h"
#include "proto/image_source.h"
#include "unit/image_samples.h"
#include "unit/test_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { SIDE = 4 };

static struct files folder;
static const char *animals[] = {"cat", "dog", "newt"};
static struct attribute list[] = {{.name = "animal", .n_values = 3, .values = animals},
                                  {.name = "other", .n_values = 3, .values = animals}};
static const struct attributes one = {.n = 1, .head = -1, .list = list};
static const struct attributes two = {.n = 2, .head = -1, .list = list};

static int open_folder(void **state)
{
    (void)state;
    files_open(&folder);
    return 0;
}

static int close_folder(void **state)
{
    (void)state;
    files_close(&folder);
    return 0;
}

/* A picture of one level, brighter in its left half by 100. */
static void put_picture(const char *name, uint32_t width, uint32_t height, int channels, int level)
{
    struct image im;
    struct blob *png;
    assert_int_equal(image_init(&im, width, height, channels, NULL), 0);
    for (uint32_t i = 0; i < width * height * (uint32_t)channels; i++)
        im.data[i] =
            (unsigned char)(level + (i / (uint32_t)channels % width < width / 2 ? 100 : 0));
    assert_int_equal(image_encode_png(&png, &im, 1, NULL), 0);
    files_put(&folder, name, png->bytes, png->size);
    blob_put(png);
    image_fini(&im);
}

static int attempt(struct source **out, const char *split, const struct attributes *a, int channels,
                   struct err *e)
{
    const struct image_source_request r = {
        .from = {.dir = folder.dir, .split = split, .attributes = a, .max_bytes = 1 << 20},
        .input = {channels, SIDE, SIDE},
        .resize = IMAGE_FIT};
    return image_source_open(out, &r, e);
}

static struct source *opened(const char *split, const struct attributes *a, int channels)
{
    struct source *s;
    struct err e;
    if (attempt(&s, split, a, channels, &e) != 0)
        fail_msg("%s", e.text);
    return s;
}

/* Row `row` is the picture of this level. */
static void assert_picture(const struct source *s, size_t row, int level)
{
    unsigned char image[SIDE * SIDE * 3];
    struct err e;
    if (source_load(s, row, image, &e) != 0)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < source_image_bytes(s); i++) {
        const size_t x = i / (size_t)s->channels % SIDE;
        if (x == 0 || x == SIDE - 1)
            assert_in_range(image[i], level + (x ? 0 : 100) - 1, level + (x ? 0 : 100) + 1);
    }
}

static void put_animals(void)
{
    put_picture("train/dog/b.PNG", SIDE, SIDE, 3, 40);
    put_picture("train/dog/a.png", 8, 8, 1, 30);
    put_picture("train/cat/z.png", 16, 16, 3, 20);
    put_picture("train/loose.png", SIDE, SIDE, 3, 10);
    files_put(&folder, "train/newt/n.jpeg", jpeg_rgb, sizeof jpeg_rgb);
    files_text(&folder, "train/dog/notes.txt", "not an image");
    files_text(&folder, "train/dog/.hidden.png", "not an image");
    files_text(&folder, "train/LICENSE", "text");
}

static void folders_are_classes_and_names_give_the_order(void **state)
{
    struct source *s, *grey;
    (void)state;
    put_animals();
    s = opened("train", &one, 3);
    assert_int_equal(s->n, 5);
    assert_int_equal(s->columns, 1);
    static const unsigned char labels[] = {0, 1, 1, SOURCE_MISSING,
                                           2}; /* cat, dog, dog, loose, newt */
    assert_memory_equal(s->labels, labels, 5);
    assert_picture(s, 2, 40);
    assert_picture(s, 3, 10);
    assert_false(*s->resized);
    assert_picture(s, 0, 20);
    assert_true(*s->resized);
    assert_picture(s, 1, 30);
    grey = opened("train", &one, 1);
    assert_picture(grey, 0, 20);
    assert_picture(grey, 2, 40);
    assert_string_not_equal(grey->sha256, s->sha256);
    source_close(grey);
    source_close(s);
    s = opened("train", NULL, 3);
    assert_null(s->labels);
    assert_int_equal(s->n, 5);
    source_close(s);
}

static void the_digest_is_of_names_bytes_and_labels(void **state)
{
    struct source *s = opened("train", &one, 3), *again = opened("train", &one, 3);
    (void)state;
    assert_string_equal(s->sha256, again->sha256);
    source_close(again);
    put_picture("train/cat/z.png", 16, 16, 3, 21);
    again = opened("train", &one, 3);
    assert_string_not_equal(s->sha256, again->sha256);
    source_close(again);
    put_picture("train/cat/z.png", 16, 16, 3, 20);
    again = opened("train", &one, 3);
    assert_string_equal(s->sha256, again->sha256);
    source_close(again);
    source_close(s);
}

static void refused(const char *split, const struct attributes *a, enum fail_code code,
                    const char *text)
{
    struct source *s;
    struct err e;
    assert_int_equal(attempt(&s, split, a, 3, &e), -(int)code);
    if (!strstr(e.text, text))
        fail_msg("%s is not in: %s", text, e.text);
}

static void what_is_wrong_with_folders_is_named(void **state)
{
    (void)state;
    refused("nope", &one, FAIL_NOT_FOUND, "/nope");
    refused("..", &one, FAIL_OUT_OF_RANGE, "split");
    refused("train", &two, FAIL_OUT_OF_RANGE, "2 attributes");
    files_text(&folder, "train/dgo/x.txt", "");
    refused("train", &one, FAIL_UNKNOWN_VALUE, "/train/dgo: the attribute \"animal\" has no value");
    refused("train", &one, FAIL_UNKNOWN_VALUE, "the nearest is \"dog\"");
    files_remove(&folder, "train/dgo/x.txt");
    files_remove(&folder, "train/dgo");
    files_text(&folder, "train/cat/deep/x.txt", "");
    refused("train", &one, FAIL_BAD_FILE, "/train/cat/deep: is a folder");
    files_remove(&folder, "train/cat/deep/x.txt");
    files_remove(&folder, "train/cat/deep");
    files_text(&folder, "empty/cat/x.txt", "");
    refused("empty", &one, FAIL_NOT_FOUND, "no PNG or JPEG");
    files_text(&folder, "train/cat/bad.png", "GIF89a");
    refused("train", &one, FAIL_BAD_IMAGE, "/train/cat/bad.png: ");
    files_text(&folder, "train/cat/bad.png", "");
    refused("train", &one, FAIL_BAD_IMAGE, "/train/cat/bad.png: ");
    files_remove(&folder, "train/cat/bad.png");
}

static void symbolic_links_are_not_followed(void **state)
{
    (void)state;
    files_link(&folder, "z.png", "train/cat/link.png");
    refused("train", &one, FAIL_FORBIDDEN, "/train/cat/link.png: is a symbolic link");
    files_remove(&folder, "train/cat/link.png");
    files_link(&folder, "cat", "train/newt2");
    refused("train", &one, FAIL_FORBIDDEN, "/train/newt2: is a symbolic link");
    files_remove(&folder, "train/newt2");
    files_link(&folder, "train", "linked");
    refused("linked", &one, FAIL_NOT_FOUND, "/linked");
    files_remove(&folder, "linked");
}

static void a_file_that_breaks_later_is_named(void **state)
{
    struct source *s = opened("train", &one, 3);
    unsigned char image[SIDE * SIDE * 3];
    struct err e;
    (void)state;
    files_cut(&folder, "train/dog/a.png", 50);
    assert_int_equal(source_load(s, 1, image, &e), -FAIL_BAD_IMAGE);
    assert_non_null(strstr(e.text, "/train/dog/a.png: "));
    files_remove(&folder, "train/dog/a.png");
    assert_int_equal(source_load(s, 1, image, &e), -FAIL_NOT_FOUND);
    assert_non_null(strstr(e.text, "train/dog/a.png: "));
    put_picture("train/dog/a.png", 8, 8, 1, 30);
    assert_picture(s, 1, 30);
    source_close(s);
}

static int look_through(struct source **out, enum image_resize how, const _Atomic bool *stop,
                        struct err *e)
{
    const struct image_source_request r = {.from = {.dir = folder.dir,
                                                    .split = "train",
                                                    .attributes = &one,
                                                    .max_bytes = 1 << 20,
                                                    .stop = stop},
                                           .input = {3, SIDE, SIDE},
                                           .resize = how,
                                           .decode = true};
    return image_source_open(out, &r, e);
}

static void a_broken_file_is_found_at_once_where_that_is_asked_for(void **state)
{
    struct source *s = opened("train", &one, 3), *whole;
    _Atomic bool stop = false;
    struct err e;
    (void)state;
    assert_int_equal(look_through(&whole, IMAGE_FIT, &stop, &e), 0);
    assert_string_equal(whole->sha256, s->sha256);
    source_close(whole);
    source_close(s);
    stop = true;
    assert_int_equal(look_through(&s, IMAGE_FIT, &stop, &e), -FAIL_SHUTTING_DOWN);
    assert_int_equal(look_through(&s, IMAGE_REJECT, NULL, &e), -FAIL_IMAGE_SIZE_MISMATCH);
    assert_non_null(strstr(e.text, "/train/cat/z.png: "));
    files_cut(&folder, "train/dog/b.PNG", 60);
    source_close(opened("train", &one, 3)); /* it still begins as an image does */
    assert_int_equal(look_through(&s, IMAGE_FIT, NULL, &e), -FAIL_BAD_IMAGE);
    assert_non_null(strstr(e.text, "/train/dog/b.PNG: "));
    put_picture("train/dog/b.PNG", SIDE, SIDE, 3, 40);
    assert_int_equal(look_through(&s, IMAGE_FIT, NULL, &e), 0);
    source_close(s);
}

struct loads {
    const struct source *s;
    _Atomic int wrong;
};

static void load_item(void *ctx, int item, int worker)
{
    static const int levels[] = {20, 30, 40, 10};
    struct loads *l = ctx;
    unsigned char image[SIDE * SIDE * 3];
    struct err e;
    (void)worker;
    const int level = levels[item % 4];
    if (source_load(l->s, (size_t)item % 4, image, &e) != 0 || abs(image[0] - level - 100) > 1)
        l->wrong++;
}

static void rows_may_be_loaded_by_several_threads(void **state)
{
    struct pool *pool;
    struct err e;
    struct source *s;
    (void)state;
    assert_int_equal(pool_open(&pool, 4, &e), 0);
    const struct image_source_request r = {
        .from = {.dir = folder.dir, .split = "train", .attributes = &one, .max_bytes = 1 << 20},
        .input = {3, SIDE, SIDE},
        .pool = pool};
    assert_int_equal(image_source_open(&s, &r, &e), 0);
    struct source *alone = opened("train", &one, 3);
    assert_string_equal(alone->sha256, s->sha256);
    struct loads l = {.s = s};
    pool_run(pool, 400, load_item, &l);
    assert_int_equal(l.wrong, 0);
    source_close(alone);
    source_close(s);
    pool_close(pool);
}

/* ---- tables ---- */

static void a_table_gives_the_labels_of_images_beside_it(void **state)
{
    struct source *s;
    (void)state;
    assert_false(image_source_table_found(folder.dir, "train"));
    put_picture("images/x/1.png", SIDE, SIDE, 3, 50);
    put_picture("images/2.png", 8, 8, 3, 60);
    files_text(&folder, "attributes.csv",
               "file,other,split,animal\nx/1.png,newt,train,cat\n2.png,,test,dog\n"
               "x/1.png,1,test,\n");
    assert_true(image_source_table_found(folder.dir, "train"));
    s = opened("test", &two, 3); /* before the folders */
    assert_int_equal(s->n, 2);
    static const unsigned char labels[] = {1, SOURCE_MISSING, SOURCE_MISSING, 1};
    assert_memory_equal(s->labels, labels, 4);
    assert_picture(s, 0, 60);
    assert_picture(s, 1, 50);
    source_close(s);
    files_text(&folder, "test.csv", "file,animal\n2.png,newt\n"); /* the split's own comes first */
    s = opened("test", &two, 3);
    assert_int_equal(s->n, 1);
    assert_int_equal(s->labels[0], 2);
    assert_non_null(strstr(s->note, "other"));
    source_close(s);
    files_text(&folder, "test.csv", "file,animal\n2.png,newt\n3.png,newt\n");
    refused("test", &two, FAIL_NOT_FOUND, "/test.csv:3: images/3.png: cannot be opened");
    put_picture("images/3.png", SIDE, SIDE, 3, 70);
    s = opened("test", &two, 3);
    files_cut(&folder, "images/3.png", 60);
    unsigned char image[SIDE * SIDE * 3];
    struct err e;
    assert_int_equal(source_load(s, 1, image, &e), -FAIL_BAD_IMAGE);
    assert_non_null(strstr(e.text, "/test.csv:3: images/3.png: "));
    source_close(s);
    files_text(&folder, "images/3.png", "GIF89a");
    refused("test", &two, FAIL_BAD_IMAGE, "/test.csv:3: images/3.png: is neither");
    files_remove(&folder, "images/3.png");
    files_text(&folder, "test.csv", "file,animal\n2.png,newt\n../secret.png,newt\n");
    files_text(&folder, "secret.png", "x");
    refused("test", &two, FAIL_BAD_FILE, "/test.csv:3: \"../secret.png\"");
    files_link(&folder, "../secret.png", "images/3.png");
    files_text(&folder, "test.csv", "file,animal\n3.png,newt\n");
    refused("test", &two, FAIL_FORBIDDEN, "/test.csv:2: images/3.png: is a symbolic link");
    files_remove(&folder, "images/3.png");
    files_remove(&folder, "test.csv");
    files_remove(&folder, "attributes.csv");
}

static void celeba_comes_as_it_is_published(void **state)
{
    static const char *no_yes[] = {"no", "yes"};
    struct attribute smile = {.name = "Smiling", .n_values = 2, .values = no_yes};
    const struct attributes a = {.n = 1, .head = -1, .list = &smile};
    struct source *s;
    (void)state;
    put_picture("img_align_celeba/000001.jpg", 8, 8, 3, 70);
    put_picture("img_align_celeba/000002.jpg", 8, 8, 3, 80);
    files_text(&folder, "list_attr_celeba.txt",
               "2\nBald Smiling\n000001.jpg -1  1\n000002.jpg -1 -1\n");
    files_text(&folder, "list_eval_partition.txt", "000001.jpg 0\n000002.jpg 2\n");
    s = opened("test", &a, 3);
    assert_int_equal(s->n, 1);
    assert_int_equal(s->labels[0], 0);
    assert_picture(s, 0, 80);
    source_close(s);
    s = opened("train", &a, 3);
    assert_int_equal(s->labels[0], 1);
    assert_picture(s, 0, 70);
    source_close(s);
    files_remove(&folder, "img_align_celeba/000002.jpg");
    refused("test", &a, FAIL_NOT_FOUND,
            "/list_attr_celeba.txt:4: img_align_celeba/000002.jpg: cannot be opened");
}

/* ---- another size ---- */

static void any_source_is_brought_to_another_size(void **state)
{
    unsigned char images[2 * 64], row[SIDE * SIDE * 3];
    struct source from = {
        .n = 2, .height = 8, .width = 8, .channels = 1, .images = images, .sha256 = "x"};
    const struct net_shape same = {1, 8, 8}, colour = {3, 8, 8}, small = {3, SIDE, SIDE};
    struct source *s, *other;
    struct err e;
    (void)state;
    for (int i = 0; i < 2 * 64; i++)
        images[i] = (unsigned char)(10 * (i / 64) + i % 8);
    assert_int_equal(image_source_resize(&s, &from, same, IMAGE_REJECT, &e), 0);
    assert_ptr_equal(s, &from);
    assert_int_equal(image_source_resize(&s, &from, colour, IMAGE_REJECT, &e), 0);
    assert_string_equal(s->note, "");
    assert_false(*s->resized);
    unsigned char all[192];
    assert_int_equal(source_load(s, 1, all, &e), 0);
    for (int i = 0; i < 192; i++)
        assert_int_equal(all[i], 10 + i / 3 % 8);
    source_close(s);
    assert_int_equal(image_source_resize(&s, &from, small, IMAGE_FILL, &e), 0);
    assert_int_equal(image_source_resize(&other, &from, small, IMAGE_FIT, &e), 0);
    assert_string_not_equal(s->sha256, other->sha256);
    assert_non_null(strstr(s->note, "8 x 8 pixels are resized to 4 x 4 (fill)"));
    assert_true(*s->resized);
    assert_int_equal(source_load(s, 1, row, &e), 0);
    for (int i = 0; i < SIDE * SIDE * 3; i++) /* halved: the mean of two columns, about */
        assert_in_range(row[i], 10 + 2 * (i / 3 % SIDE), 11 + 2 * (i / 3 % SIDE));
    source_close(other);
    source_close(s);
    assert_int_equal(image_source_resize(&s, &from, small, IMAGE_REJECT, &e),
                     -FAIL_IMAGE_SIZE_MISMATCH);
}

static void colour_becomes_grey_as_when_it_is_decoded(void **state)
{
    static const unsigned char pixel[3] = {10, 20, 30};
    const struct source from = {.n = 1, .height = 1, .width = 1, .channels = 3, .images = pixel};
    struct source copy = from, *s;
    unsigned char grey;
    struct err e;
    (void)state;
    assert_int_equal(image_source_resize(&s, &copy, (struct net_shape){1, 1, 1}, IMAGE_FIT, &e), 0);
    assert_int_equal(source_load(s, 0, &grey, &e), 0);
    assert_int_equal(grey, (299 * 10 + 587 * 20 + 114 * 30 + 500) / 1000);
    source_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_are_classes_and_names_give_the_order),
        cmocka_unit_test(the_digest_is_of_names_bytes_and_labels),
        cmocka_unit_test(what_is_wrong_with_folders_is_named),
        cmocka_unit_test(symbolic_links_are_not_followed),
        cmocka_unit_test(a_file_that_breaks_later_is_named),
        cmocka_unit_test(a_broken_file_is_found_at_once_where_that_is_asked_for),
        cmocka_unit_test(rows_may_be_loaded_by_several_threads),
        cmocka_unit_test(a_table_gives_the_labels_of_images_beside_it),
        cmocka_unit_test(celeba_comes_as_it_is_published),
        cmocka_unit_test(any_source_is_brought_to_another_size),
        cmocka_unit_test(colour_becomes_grey_as_when_it_is_decoded),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
