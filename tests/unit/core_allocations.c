/* SPDX-License-Identifier: Apache-2.0 */
/* The bundled model's passes allocate nothing, neither in our code nor in OpenBLAS: its layers lie
 * on both sides of the size where products go to the library. */
#include "ebm/model.h"
#include "test_allocations.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

enum { IMAGES = 4 };

static void passes_of_the_bundled_model_allocate_nothing(void **state)
{
    (void)state;
    struct model *m;
    struct workspace *w;
    struct err e;
    static float x[IMAGES * 3 * 32 * 32], dx[IMAGES * 3 * 32 * 32], dlogits[IMAGES * 25];
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    const char *path = TEST_SOURCE_DIR "/models/sprites.safetensors";
    assert_int_equal(model_open(&m, path, NULL, false, &e), 0);
    assert_int_equal(model_elements(m), 3 * 32 * 32);
    assert_int_equal(model_logits(m), 25);
    assert_int_equal(workspace_open(&w, m->net, ops_openblas(), IMAGES, true, &e), 0);
    for (int i = 0; i < IMAGES * 25; i++)
        dlogits[i] = 1.0f;
    net_forward(w, IMAGES, x); /* OpenBLAS takes its own buffer once a thread */
    net_backward_input(w, IMAGES, dlogits, dx);
    const long before = allocations_made;
    for (int n = 1; n <= IMAGES; n++) {
        net_forward(w, n, x);
        net_backward_input(w, n, dlogits, dx);
    }
    assert_int_equal(allocations_made, before);
    workspace_close(w);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_of_the_bundled_model_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
