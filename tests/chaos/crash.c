/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A shared object to preload before a daemon, so that it crashes over certain jobs of the model bowl
 * (load.py): as a kernel or a library with a bug would, at a place where only such a job comes by.
 * JEMD_CRASH says which:
 *   worker  a chain that begins with an image whose first pixels are black, white, black, white: the
 *           thread of the engine crashes that copies it, with chains of others in its slots
 *   render  a picture wider than 250 pixels, hence a grid of more than four samples
 *   kill    as worker, but the process is killed from outside, as for want of memory
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIDE = 4, WIDE = 250 };

static bool is(const char *what)
{
    const char *asked = getenv("JEMD_CRASH");
    return asked && strcmp(asked, what) == 0;
}

/* Not by memmove's own memcpy, nor by what a compiler makes of a loop. */
void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    static const float marked[] = {-6, 6, -6, 6};
    static int *volatile nowhere = NULL;
    if (size == SIDE * SIDE * sizeof(float) && memcmp(from, marked, sizeof marked) == 0) {
        if (is("worker"))
            *nowhere = 1;
        if (is("kill"))
            kill(getpid(), SIGKILL);
    }
    return memmove(to, from, size);
}

/* libpng's, which a picture's size passes through. */
void png_set_IHDR(void *png, void *info, uint32_t width, uint32_t height, int depth, int colour,
                  int interlace, int compression, int filter);

void png_set_IHDR(void *png, void *info, uint32_t width, uint32_t height, int depth, int colour,
                  int interlace, int compression, int filter)
{
    void (*next)(void *, void *, uint32_t, uint32_t, int, int, int, int, int);
    *(void **)&next = dlsym(RTLD_NEXT, "png_set_IHDR");
    if (is("render") && width > WIDE)
        abort();
    next(png, info, width, height, depth, colour, interlace, compression, filter);
}
