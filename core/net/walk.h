/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The network layer by layer, every value a dense [n][C][H][W] array, with the arithmetic of a
 * table of ops: the reference that engines are tested against. Private to core/net: behind a
 * workspace opened with ops. Contracts as in net/net.h.
 */
#include "net/net.h"

struct walk;

int walk_open(struct walk **out, const struct net *net, const struct ops *ops, int batch,
              bool backward, struct err *e);
size_t walk_bytes(const struct walk *w);
size_t walk_estimate(const struct net *net, const struct ops *ops, int batch, bool backward);
void walk_close(struct walk *w);

const float *walk_forward(struct walk *w, int n, const float *x);
void walk_backward(struct walk *w, int n, const float *dlogits, float *dx);
