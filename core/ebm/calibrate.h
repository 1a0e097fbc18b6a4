/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Calibration: one temperature an attribute (Guo et al. 2017), the sorted energies of images the
 * model was not trained on (for conformal p-values), and the model file that carries both.
 * Temperatures change probabilities only, never log p(x). Used by `jemd eval --fit`.
 */
#include "ebm/evaluate.h"
#include "ebm/model.h"

#define CALIBRATE_MIN 0.2
#define CALIBRATE_MAX 5.0
/* The tensor that calibrate_write puts the energies into. */
#define CALIBRATE_ENERGIES "calibration.energies"

/* The float T in [CALIBRATE_MIN, CALIBRATE_MAX] of least evaluate_nll, by golden section on log T
 * (the NLL is convex in 1/T). Where it makes no difference, CALIBRATE_MIN; images none of which is
 * misclassified lead there too. 1 when none is labelled. */
float calibrate_temperature(const struct evaluate_set *s);

/* Sorts ascending. Errors: OUT_OF_RANGE when one is not finite, or n = 0. */
int calibrate_sort(float *energies, size_t n, struct err *e);
/* The q-quantile, 0 <= q <= 1, of ascending v[n], n >= 1, linear between neighbours. */
double calibrate_quantile(const float *v, size_t n, double q);

struct calibration {
    const float *temperatures; /* [K] */
    const float *energies;     /* [n], ascending */
    size_t n;
    json_t *card; /* description.calibration, without "energies" and "n" */
};

/* Writes the file of `m` again, to `path` (as safetensors_write does it; it may be m's own), with
 * these temperatures, energies and card in the place of its old ones. Tensors are ordered by the
 * width of their elements; of __metadata__ "format" and "jemd" are kept. Errors: IO, NO_MEMORY,
 * BAD_FILE. */
int calibrate_write(const struct model *m, const struct calibration *c, const char *path,
                    struct err *e);
