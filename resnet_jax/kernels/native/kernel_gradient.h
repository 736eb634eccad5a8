// The gradient of a convolution's kernel.

#pragma once

#include "conv.h"

namespace {

// Floats of a gradient, and its features, that a task has in the cache.
constexpr int64_t kGradientInCache = 96 * 1024, kFeaturesInCache = 256;
// Pixels of a gradient's block; tasks that it is split into, and floats of all they add up.
constexpr int64_t kPixelsInCache = 512, kTasks = 32;
constexpr int64_t kPartialGradients = 1024 * 1024;

// What a task adds at once to its part of the gradient, [taps, channels, features]: rows of
// some images, copied with their borders, and a vector or two of the features there.
struct Pixels {
  int64_t channels, features, images, rows, image_size;  // The last, of a copy.
  const float *x, *dy;
};

// Adds to KW taps of a row, C channels and V vectors of features of the gradient what
// the pixels give: x times dy.
template <int KW, int V, int C>
void GradientTile(const Conv& conv, const Pixels& pixels, const float* x, float* gradient) {
  Vector sums[KW][C][V] = {};
  const int64_t step = conv.stride * pixels.channels, row_step = conv.padded_w() * step;
  const float* dy = pixels.dy;
  for (int64_t n = 0; n < pixels.images; ++n) {
    for (int64_t r = 0; r < pixels.rows; ++r) {
      const float* pixel = x + n * pixels.image_size + r * row_step;
      for (int64_t i = 0; i < conv.out_w; ++i, pixel += step, dy += V * kLanes) {
        Vector factors[V];
        for (int v = 0; v < V; ++v) factors[v] = Load(dy + v * kLanes);
#pragma GCC unroll 32
        for (int j = 0; j < KW; ++j) {
#pragma GCC unroll 32
          for (int c = 0; c < C; ++c) {
            const float value = pixel[j * pixels.channels + c];
            for (int v = 0; v < V; ++v) sums[j][c][v] += value * factors[v];
          }
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int j = 0; j < KW; ++j) {
#pragma GCC unroll 32
    for (int c = 0; c < C; ++c) {
      // Added at the end: long sums in one float would lose more digits.
      float* to = gradient + (j * pixels.channels + c) * pixels.features;
      for (int v = 0; v < V; ++v) Store(to + v * kLanes, Load(to + v * kLanes) + sums[j][c][v]);
    }
  }
}

constexpr int PowerOfTwo(int most) { return most < 2 ? 1 : 2 * PowerOfTwo(most / 2); }

// The same for channels from `c` on, at taps that start at x.
template <int KW, int V, int C = PowerOfTwo(kSums / (KW * V))>
void GradientRow(const Conv& conv, const Pixels& pixels, const float* x, float* gradient,
                 int64_t c = 0) {
  for (; c + C <= pixels.channels; c += C) {
    GradientTile<KW, V, C>(conv, pixels, x + c, gradient + c * pixels.features);
  }
  if constexpr (C > 1) GradientRow<KW, V, C / 2>(conv, pixels, x, gradient, c);
}

// The same for all taps.
template <int V>
void GradientOfFeatures(const Conv& conv, const Pixels& pixels, float* gradient) {
  const int64_t tap = pixels.channels * pixels.features;
  for (int64_t i = 0; i < conv.kh; ++i, gradient += conv.kw * tap) {
    const float* row = pixels.x + i * conv.padded_w() * pixels.channels;
    if (conv.kw == 3) {
      GradientRow<3, V>(conv, pixels, row, gradient);
    } else if (conv.kw == 7 && 7 * V <= kSums) {
      GradientRow<7, V>(conv, pixels, row, gradient);
    } else {
      for (int64_t j = 0; j < conv.kw; ++j) {
        GradientRow<1, V>(conv, pixels, row + j * pixels.channels, gradient + j * tap);
      }
    }
  }
}

template <typename T>
void ConvKernelGradient(const ThreadPool& pool, Array<T> x, Array<T> dy, int64_t stride,
                        int64_t padding, Array<float> gradient) {
  const Conv conv = Describe(x.shape, gradient.shape, dy.shape, stride, padding);
  const int vectors = conv.f % (2 * kLanes) == 0 ? 2 : 1;
  const int64_t panel = vectors * kLanes, taps = conv.kh * conv.kw, size = conv.taps() * conv.f;
  // Parts of the gradient that stay in the cache; and images are split so that there is
  // work for many threads: what their parts give is added up at the end.
  const int64_t features = std::min(conv.f, kFeaturesInCache);
  const int64_t most = std::max<int64_t>(1, kGradientInCache / (taps * features));
  const int64_t channels = CeilDiv(Even(conv.c, most), 8) * 8;
  const int64_t c_parts = CeilDiv(conv.c, channels), f_parts = CeilDiv(conv.f, features);
  const int64_t parts = c_parts * f_parts;
  const int64_t splits = std::clamp<int64_t>(
      std::min(CeilDiv(kTasks, parts), kPartialGradients / size), 1, conv.n);
  float *others = Scratch<kPartial>((splits - 1) * size), *out = gradient.data;

  ParallelFor(pool, parts * splits, [&](int64_t task) {
    const int64_t split = task % splits, part = task / splits;
    const int64_t c0 = part % c_parts * channels, cs = std::min(channels, conv.c - c0);
    const int64_t f0 = part / c_parts * features, fs = std::min(features, conv.f - f0);
    const int64_t row_size = conv.padded_w() * cs;
    const int64_t rows = Even(
        conv.out_h, std::clamp<int64_t>(std::min(kRowsInCache / (row_size * stride),
                                                 kPixelsInCache / conv.out_w),
                                        1, conv.out_h));
    const int64_t image_size = conv.in_rows(rows) * row_size;
    const int64_t images = std::max<int64_t>(
        1, rows < conv.out_h ? 1
                             : std::min(kRowsInCache / image_size,
                                        kPixelsInCache / (conv.out_h * conv.out_w)));
    float* copies = Scratch<kCopy>(images * image_size);
    float* packed = Scratch<kPacked>(images * rows * conv.out_w * panel);
    float* sums = Scratch<kSumsOfPart>(taps * cs * fs);
    std::memset(sums, 0, 4 * taps * cs * fs);
    const int64_t end = conv.n * (split + 1) / splits;
    for (int64_t n = conv.n * split / splits; n < end; n += images) {
      for (int64_t first = 0; first < conv.out_h; first += rows) {
        const Pixels pixels = {
            cs, fs, std::min(images, end - n), std::min(rows, conv.out_h - first), image_size,
            copies, packed};
        for (int64_t i = 0; i < pixels.images; ++i) {
          CopyPadded(conv, x.data + (n + i) * conv.h * conv.w * conv.c, first,
                     pixels.rows, c0, cs, cs, copies + i * image_size);
        }
        // Of several images these are all rows, so they are neighbours.
        const T* from =
            dy.data + (n * conv.out_h + first) * conv.out_w * conv.f + f0;
        const int64_t count = pixels.images * pixels.rows * conv.out_w;
        for (int64_t f = 0; f < fs; f += panel) {
          for (int64_t i = 0; i < count; ++i) {
            Copy(from + i * conv.f + f, panel, packed + i * panel);
          }
          (vectors == 2 ? GradientOfFeatures<2> : GradientOfFeatures<1>)(conv, pixels, sums + f);
        }
      }
    }
    float* to = (split ? others + (split - 1) * size : out) + c0 * conv.f + f0;
    for (int64_t i = 0; i < taps * cs; ++i) {
      std::memcpy(to + (i / cs * conv.c + i % cs) * conv.f, sums + i * fs, 4 * fs);
    }
  });
  if (splits == 1) return;
  const int64_t pieces = CeilDiv(size, kRowsInCache);
  ParallelFor(pool, pieces, [&](int64_t piece) {
    for (int64_t s = 0; s + 1 < splits; ++s) {
      for (int64_t i = size * piece / pieces; i < size * (piece + 1) / pieces; ++i) {
        out[i] += others[s * size + i];
      }
    }
  });
}

}  // namespace
