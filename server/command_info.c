/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd info MODEL`: what is inside a model file, and how this machine would compute it. */
#include "server/commands.h"
#include "server/models.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_layers(const struct layer_spec *layers, int n)
{
    for (int i = 0; i < n; i++) {
        const struct layer_spec *l = &layers[i];
        printf("  %3d %-8s", i, layer_kind_names[l->kind]);
        if (l->kind == LAYER_CONV)
            printf(" %d -> %d, %dx%d stride %d pad %d, %s", l->in, l->out, l->kernel_h, l->kernel_w,
                   l->stride, l->pad, l->weights);
        else if (l->kind == LAYER_LINEAR)
            printf(" %d -> %d, %s", l->in, l->out, l->weights);
        else if (l->kind == LAYER_LRELU)
            printf(" slope %g", (double)l->slope);
        else if (l->kind == LAYER_AVGPOOL || l->kind == LAYER_SUMPOOL)
            printf(" %dx%d", l->kernel_h, l->kernel_h);
        if (l->id[0])
            printf(" id=%s", l->id);
        if (l->from[0])
            printf(" from=%s", l->from);
        if (l->with[0])
            printf(" with=%s", l->with);
        printf("\n");
    }
}

static void print_attributes(const struct attributes *a)
{
    printf("attributes:\n");
    for (int k = 0; k < a->n; k++) {
        printf("  %-16s temperature %.4g:", a->list[k].name, (double)a->list[k].temperature);
        for (int v = 0; v < a->list[k].n_values; v++)
            printf("%s %s", v ? "," : "", a->list[k].values[v]);
        printf("\n");
    }
    if (a->head >= 0)
        printf("  energy: a head of its own (unconditional sampling only)\n");
}

/* The head of a general energy. */
static void print_joint(const struct model *m)
{
    long long image, label;
    const size_t labels = joint_labels(m->joint, NULL);
    joint_macs(m->joint, &image, &label);
    printf("energy:      %s of %d features and the attributes, %lld parameters, %.3f MMAC an image "
           "and %.3f a combination of values\n",
           m->d.energy.kind == JOINT_DOT ? "dot" : "mlp", joint_features(m->joint),
           joint_parameters(m->joint), (double)image * 1e-6, (double)label * 1e-6);
    if (labels > 0)
        printf("             exact sums over %zu combinations\n", labels);
    else
        printf("             too many combinations to sum up: sampled by gibbs, no predictions\n");
    print_layers(m->d.energy.layers, m->d.energy.n_layers);
}

static void print_sampler(const struct description *d)
{
    const struct sampler *s = &d->sampler;
    printf("sampler: %s, %d steps (%d from the buffer), %s step %g (norm %g), noise %g, last %d "
           "cooled, start %s",
           sampler_kind_names[s->kind], s->steps, d->steps_buffer, sampler_rule_names[s->rule],
           (double)s->step_size, (double)s->step_norm, (double)s->noise, s->cool_last,
           start_kind_names[s->start]);
    if (s->clamp)
        printf(", clamp [%g, %g]", (double)s->clamp_lo, (double)s->clamp_hi);
    printf("\n");
}

/* What computing with it takes, and each convolution's algorithm. */
static void print_compute(const struct model *m)
{
    const struct engine_options o = {.backward = true, .plan_only = true};
    const double mb = 1.0 / (1 << 20);
    struct engine *plan;
    struct err e;
    if (engine_open(&plan, m->net, &o, &e) != 0) {
        printf("compute:     %s\n", e.text);
        return;
    }
    printf("compute:     %s; packed weights %.1f MB, workspace %.1f MB for one image, %.1f MB for "
           "16\n",
           model_fingerprint(m), (double)engine_packed_bytes(plan) * mb,
           (double)workspace_estimate_engine(plan, 1, true, 1) * mb,
           (double)workspace_estimate_engine(plan, 16, true, 1) * mb);
    printf("kernels:     %s\n", engine_detail(plan));
    for (int i = 0; i < engine_stages(plan); i++) {
        struct engine_stage s;
        engine_stage(plan, i, &s);
        printf("  %-8s %-11s %4d x %3d x %3d %9.3f MMAC %8.2f MB  %s\n",
               s.backward ? "backward" : "forward", s.algorithm, s.shape.c, s.shape.h, s.shape.w,
               (double)s.macs * 1e-6, (double)s.packed_bytes * mb, s.name);
    }
    engine_close(plan);
}

static void print_model(const struct model *m, bool whole)
{
    const struct description *d = &m->d;
    printf("model:       %s, version %s, family %s\n", d->name, d->version, d->family);
    printf("file:        %s, %zu bytes, sha256 %s\n", m->path, m->file_bytes, m->digest);
    printf("input:       %d x %d x %d (C,H,W), range [%g, %g]\n", d->input.c, d->input.h,
           d->input.w, (double)d->range_lo, (double)d->range_hi);
    printf("network:     %d layers, %lld parameters, %.3f MMAC a forward pass\n",
           net_layers(m->net), net_parameters(m->net), (double)net_macs(m->net) * 1e-6);
    printf("calibration: ");
    if (m->energies)
        printf("%zu energies, %.4g to %.4g\n", m->n_energies, (double)m->energies[0],
               (double)m->energies[m->n_energies - 1]);
    else
        printf("none (no p-values)\n");
    printf("buffer:      %zu entries%s\n", m->n_buffer, m->buffer_y ? ", labelled" : "");
    print_compute(m);
    print_sampler(d);
    print_attributes(&d->attributes);
    printf("layers:\n");
    print_layers(d->layers, d->n_layers);
    if (m->joint)
        print_joint(m);
    if (whole) {
        char *text = json_text(d->root, NULL);
        printf("description: %s\n", text ? text : "");
        free(text);
    }
}

int command_info(int argc, char **argv)
{
    const bool whole = argc == 3 && strcmp(argv[1], "--json") == 0;
    struct model *m;
    struct err e;
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        printf("usage: jemd info [--json] MODEL.safetensors\n\nPrints what is inside a model file; "
               "--json adds the whole description.\n");
        return 0;
    }
    if (argc != 2 && !whole) {
        fprintf(stderr, "usage: jemd info [--json] MODEL.safetensors\n");
        return 2;
    }
    if (model_open(&m, argv[argc - 1], NULL, false, &e) != 0) {
        fprintf(stderr, "jemd info: %s\n", e.text);
        return 1;
    }
    print_model(m, whole);
    model_put(m);
    return 0;
}
