/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void three_tiles_in_two_columns_leave_a_white_place(void **state)
{
    (void)state;
    const unsigned char tiles[] = {1, 2, 3, 4, 5, 6};
    const struct image shape = {2, 1, 1, NULL};
    const unsigned char W = 255;
    const unsigned char expected[5][7] = {{W, W, W, W, W, W, W},
                                          {W, 1, 2, W, 3, 4, W},
                                          {W, W, W, W, W, W, W},
                                          {W, 5, 6, W, W, W, W},
                                          {W, W, W, W, W, W, W}};
    struct image grid;
    struct err e;
    assert_int_equal(image_grid(&grid, tiles, 3, &shape, 2, 1, 1, &e), 0);
    assert_int_equal(grid.width, 7);
    assert_int_equal(grid.height, 5);
    assert_int_equal(grid.channels, 1);
    assert_memory_equal(grid.data, expected, sizeof expected);
    image_fini(&grid);
}

static void each_pixel_is_repeated_in_both_directions(void **state)
{
    (void)state;
    const unsigned char tile[] = {10, 20, 30, 40, 50, 60};
    const unsigned char line[] = {10, 20, 30, 10, 20, 30, 40, 50, 60, 40, 50, 60};
    const struct image shape = {2, 1, 3, NULL};
    struct image grid;
    struct err e;
    assert_int_equal(image_grid(&grid, tile, 1, &shape, 1, 0, 2, &e), 0);
    assert_int_equal(grid.width, 4);
    assert_int_equal(grid.height, 2);
    assert_memory_equal(grid.data, line, sizeof line);
    assert_memory_equal(grid.data + sizeof line, line, sizeof line);
    image_fini(&grid);
}

static void a_grid_beyond_32_bits_is_refused(void **state)
{
    (void)state;
    const unsigned char tile[] = {0};
    const struct image shape = {1, 1, 1, NULL};
    struct image grid = {3, 4, 5, NULL};
    struct err e;
    assert_int_equal(image_grid(&grid, tile, 1, &shape, 65536, 0, 65536, &e),
                     -FAIL_IMAGE_TOO_LARGE);
    assert_int_equal(image_grid(&grid, tile, 1, &shape, 2, INT32_MAX, 1, &e),
                     -FAIL_IMAGE_TOO_LARGE);
    assert_int_equal(grid.width, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_tiles_in_two_columns_leave_a_white_place),
        cmocka_unit_test(each_pixel_is_repeated_in_both_directions),
        cmocka_unit_test(a_grid_beyond_32_bits_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
