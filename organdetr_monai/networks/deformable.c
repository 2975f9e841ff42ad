/* Trilinear sampling for 3D deformable attention, one (image, head) at a time: see sampling.py and compiled.py.

   Arrays are float32, contiguous: value (B, S, H, C), points (B, Q, H, L, P, 3) in [0, 1], weights (B, Q, H, L, P),
   out and grad_out (B, Q, H, C). shapes (L, 3) and the start of each level in S are int64. A slice (image, head) writes
   only to its own part of every array, so slices may run side by side, and the order of additions is always the same. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t S, H, C, Q, L, P;
} Sizes;

typedef struct {
    int64_t row[8]; /* offset of the corner's first channel in value, -1 outside */
    float share[8]; /* trilinear weight */
    float side[3][2]; /* share of the lower and upper neighbour along each axis */
} Corners;

static inline void find_corners(const float *point, const int64_t *shape, int64_t first, int64_t step, Corners *c)
{
    int64_t low[3];
    for (int a = 0; a < 3; a++) {
        float at = point[a] * (float)shape[a] - 0.5f;
        /* Far outside, any place outside will do: the conversion to an integer must not overflow. */
        at = fminf(fmaxf(at, -2.0f), (float)shape[a] + 1.0f);
        float below = floorf(at);
        low[a] = (int64_t)below;
        c->side[a][0] = 1.0f - (at - below);
        c->side[a][1] = at - below;
    }
    for (int k = 0; k < 8; k++) {
        int64_t x = low[0] + (k >> 2), y = low[1] + ((k >> 1) & 1), z = low[2] + (k & 1);
        int inside = x >= 0 && x < shape[0] && y >= 0 && y < shape[1] && z >= 0 && z < shape[2];
        c->row[k] = inside ? (first + (x * shape[1] + y) * shape[2] + z) * step : -1;
        c->share[k] = c->side[0][k >> 2] * c->side[1][(k >> 1) & 1] * c->side[2][k & 1];
    }
}

void sample_forward(const Sizes *n, const int64_t *shapes, const int64_t *starts, int64_t image, int64_t head,
                    const float *value, const float *points, const float *weights, float *out)
{
    const int64_t step = n->H * n->C, per = n->L * n->P;
    const float *base = value + image * n->S * step + head * n->C;
    Corners c;
    for (int64_t q = 0; q < n->Q; q++) {
        const int64_t at = (image * n->Q + q) * n->H + head;
        float *sum = out + at * n->C;
        memset(sum, 0, n->C * sizeof(float));
        for (int64_t j = 0; j < per; j++) {
            const int64_t level = j / n->P;
            find_corners(points + (at * per + j) * 3, shapes + 3 * level, starts[level], step, &c);
            for (int k = 0; k < 8; k++) {
                if (c.row[k] < 0) continue;
                const float share = c.share[k] * weights[at * per + j];
                const float *row = base + c.row[k];
#pragma omp simd
                for (int64_t i = 0; i < n->C; i++) sum[i] += share * row[i];
            }
        }
    }
}

void sample_backward(const Sizes *n, const int64_t *shapes, const int64_t *starts, int64_t image, int64_t head,
                     const float *value, const float *points, const float *weights, const float *grad_out,
                     float *grad_value, float *grad_points, float *grad_weights)
{
    const int64_t step = n->H * n->C, per = n->L * n->P;
    const int64_t offset = image * n->S * step + head * n->C;
    Corners c;
    for (int64_t q = 0; q < n->Q; q++) {
        const int64_t at = (image * n->Q + q) * n->H + head;
        const float *grad = grad_out + at * n->C;
        for (int64_t j = 0; j < per; j++) {
            const int64_t level = j / n->P;
            const int64_t *shape = shapes + 3 * level;
            const float weight = weights[at * per + j];
            float along[3] = {0.0f, 0.0f, 0.0f}, total = 0.0f;
            find_corners(points + (at * per + j) * 3, shape, starts[level], step, &c);
            for (int k = 0; k < 8; k++) {
                if (c.row[k] < 0) continue;
                const float *row = value + offset + c.row[k];
                float *grad_row = grad_value + offset + c.row[k];
                const float share = c.share[k] * weight;
                float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
                for (int64_t i = 0; i < n->C; i++) {
                    dot += grad[i] * row[i];
                    grad_row[i] += share * grad[i];
                }
                const float x = c.side[0][k >> 2], y = c.side[1][(k >> 1) & 1], z = c.side[2][k & 1];
                total += dot * c.share[k];
                along[0] += (k >> 2 ? dot : -dot) * y * z;
                along[1] += ((k >> 1) & 1 ? dot : -dot) * x * z;
                along[2] += (k & 1 ? dot : -dot) * x * y;
            }
            grad_weights[at * per + j] = total;
            for (int a = 0; a < 3; a++) grad_points[(at * per + j) * 3 + a] = along[a] * weight * (float)shape[a];
        }
    }
}
