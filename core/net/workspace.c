/* SPDX-License-Identifier: Apache-2.0 */
/* Workspaces: one face for the two ways of running a network. */
#include "net/net.h"
#include "net/runner.h"
#include "net/walk.h"

#include <stdlib.h>

/* One of the two. */
struct workspace {
    struct walk *walk;
    struct runner *runner;
};

static enum walk_passes passes_of(bool backward)
{
    return backward ? WALK_BACKWARD : WALK_FORWARD;
}

int workspace_open(struct workspace **out, const struct net *net, const struct ops *ops, int batch,
                   bool backward, struct err *e)
{
    struct workspace *w = calloc(1, sizeof *w);
    if (!w)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a workspace for %d images", batch);
    const int rc = walk_open(&w->walk, net, ops, batch, passes_of(backward), e);
    if (rc == 0)
        *out = w;
    else
        free(w);
    return rc;
}

int workspace_open_engine(struct workspace **out, const struct engine *engine, int batch,
                          bool backward, struct pool *team, struct err *e)
{
    struct workspace *w = calloc(1, sizeof *w);
    if (!w)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a workspace for %d images", batch);
    const int rc = runner_open(&w->runner, engine, batch, backward, team, e);
    if (rc == 0)
        *out = w;
    else
        free(w);
    return rc;
}

size_t workspace_bytes(const struct workspace *w)
{
    return w->walk ? walk_bytes(w->walk) : runner_bytes(w->runner);
}

size_t workspace_estimate(const struct net *net, const struct ops *ops, int batch, bool backward)
{
    return walk_estimate(net, ops, batch, passes_of(backward));
}

size_t workspace_estimate_engine(const struct engine *engine, int batch, bool backward, int threads)
{
    return runner_estimate(engine, batch, backward, threads);
}

void workspace_close(struct workspace *w)
{
    if (!w)
        return;
    walk_close(w->walk);
    runner_close(w->runner);
    free(w);
}

void workspace_profile(struct workspace *w, double *seconds)
{
    invariant(w->runner);
    runner_profile(w->runner, seconds);
}

const float *net_forward(struct workspace *w, int n, const float *x)
{
    return w->walk ? walk_forward(w->walk, n, x) : runner_forward(w->runner, n, x);
}

void net_backward_input(struct workspace *w, int n, const float *dlogits, float *dx)
{
    if (w->walk)
        walk_backward(w->walk, n, dlogits, dx, NULL);
    else
        runner_backward(w->runner, n, dlogits, dx);
}
