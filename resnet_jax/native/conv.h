// Convolutions of images [N, H, W, C].
//
// Both work on tiles of the result that stay in vector registers while everything that
// is added to them streams past: a vector holds neighbouring output channels, and single
// numbers of the image are multiplied with it. Images are first copied, with their border
// of zeros, a few rows at a time, to where the cache holds them.

#pragma once

#include "parallel.h"

namespace {

// Floats of rows, of whole images and of a kernel's gradient that a task has in the cache.
constexpr int64_t kRowsInCache = 48 * 1024, kImagesInCache = 96 * 1024;
constexpr int64_t kGradientInCache = 96 * 1024;
// Floats of all parts of a gradient that are added up.
constexpr int64_t kPartialGradients = 4 * 1024 * 1024;

struct Conv {
  int64_t n, h, w, c;     // Images and their channels,
  int64_t out_h, out_w, f;  // what comes out, its channels,
  int64_t kh, kw, stride, padding;

  int64_t padded_w() const { return (out_w - 1) * stride + kw; }
  int64_t in_rows(int64_t rows) const { return (rows - 1) * stride + kh; }
  int64_t taps() const { return kh * kw * c; }
};

Conv Describe(const Array& x, ffi::Span<const int64_t> kernel, ffi::Span<const int64_t> y,
              int64_t stride, int64_t padding) {
  auto in = x.dimensions();
  return {in[0], in[1], in[2], in[3], y[1], y[2], y[3], kernel[0], kernel[1], stride, padding};
}

// Copies what `rows` rows of output from `first` on see of channels [c0, c0 + cs).
void CopyPadded(const Conv& conv, const float* image, int64_t first, int64_t rows, int64_t c0,
                int64_t cs, float* copy) {
  const int64_t width = conv.padded_w();
  const int64_t copied = std::min(conv.w, width - conv.padding);
  for (int64_t r = 0; r < conv.in_rows(rows); ++r) {
    const int64_t row = first * conv.stride - conv.padding + r;
    float* to = copy + r * width * cs;
    if (row < 0 || row >= conv.h) {
      std::memset(to, 0, 4 * width * cs);
      continue;
    }
    float* inner = to + conv.padding * cs;
    const float* from = image + row * conv.w * conv.c + c0;
    std::memset(to, 0, 4 * conv.padding * cs);
    if (cs == conv.c) {
      std::memcpy(inner, from, 4 * copied * cs);
    } else {
      for (int64_t i = 0; i < copied; ++i) {
        std::memcpy(inner + i * cs, from + i * conv.c, 4 * cs);
      }
    }
    std::memset(inner + copied * cs, 0, 4 * (width - conv.padding - copied) * cs);
  }
}

// ---- The convolution ----

// T neighbouring pixels of V vectors of channels: y = sum over taps of x times kernel.
template <int V, int T>
void ConvTile(const Conv& conv, const float* x, const float* kernel, float* y) {
  Vector sums[T][V] = {};
  for (int64_t i = 0; i < conv.kh; ++i) {
    const float* row = x + i * conv.padded_w() * conv.c;
    // The taps of a row, and their channels, are neighbours in the image as in the kernel.
    for (int64_t k = 0; k < conv.kw * conv.c; ++k, kernel += V * kLanes) {
      Vector factors[V];
      for (int v = 0; v < V; ++v) factors[v] = Load(kernel + v * kLanes);
#pragma GCC unroll 32
      for (int t = 0; t < T; ++t) {
        const float value = row[t * conv.stride * conv.c + k];
        for (int v = 0; v < V; ++v) sums[t][v] += value * factors[v];
      }
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < V; ++v) Store(y + t * conv.f + v * kLanes, sums[t][v]);
  }
}

using ConvTileFn = decltype(&ConvTile<1, 1>);

template <int V, int T = kSums / V>
ConvTileFn FindConvTile(int64_t t) {
  if constexpr (T > 1) {
    if (t < T) return FindConvTile<V, T - 1>(t);
  }
  return ConvTile<V, T>;
}

ffi::Error ConvForward(ffi::ThreadPool pool, Array x, Array kernel, int64_t stride,
                       int64_t padding, Result y) {
  const Conv conv = Describe(x, kernel.dimensions(), y->dimensions(), stride, padding);
  const int vectors = conv.f % (2 * kLanes) == 0 ? 2 : 1;
  const int64_t panel = vectors * kLanes, panels = conv.f / panel, taps = conv.taps();
  const int64_t tiles = CeilDiv(conv.out_w, kSums / vectors);
  const int64_t tile = CeilDiv(conv.out_w, tiles);
  auto find = vectors == 2 ? FindConvTile<2> : FindConvTile<1>;
  const ConvTileFn most = find(tile), last = find(conv.out_w - (tiles - 1) * tile);

  // The kernel, as [panels, taps, panel].
  float* packed = Scratch<kPacked>(taps * conv.f);
  ParallelFor(pool, panels, [&](int64_t p) {
    for (int64_t i = 0; i < taps; ++i) {
      std::memcpy(packed + (p * taps + i) * panel,
                  kernel.typed_data() + i * conv.f + p * panel, 4 * panel);
    }
  });

  // A task has some rows of an image, or some whole images; each panel is read once for it.
  const int64_t row_size = conv.padded_w() * conv.c;
  const int64_t rows = std::clamp<int64_t>(kRowsInCache / (row_size * stride), 1, conv.out_h);
  const int64_t copy_size = conv.in_rows(rows) * row_size;
  const int64_t blocks = CeilDiv(conv.out_h, rows);
  const int64_t images = std::clamp<int64_t>(
      blocks > 1 ? 1 : kImagesInCache / copy_size, 1, CeilDiv(conv.n, Threads(pool)));
  const int64_t groups = CeilDiv(conv.n, images) * blocks;
  // Few are also split by the channels of the output.
  const int64_t splits = std::min(panels, CeilDiv(2 * Threads(pool), groups));
  ParallelFor(pool, groups * splits, [&](int64_t task) {
    const int64_t split = task % splits, group = task / splits;
    const int64_t n0 = group / blocks * images, n1 = std::min(n0 + images, conv.n);
    const int64_t first = group % blocks * rows, count = std::min(rows, conv.out_h - first);
    float* copies = Scratch<kCopy>(images * copy_size);
    for (int64_t n = n0; n < n1; ++n) {
      CopyPadded(conv, x.typed_data() + n * conv.h * conv.w * conv.c, first, count, 0, conv.c,
                 copies + (n - n0) * copy_size);
    }
    for (int64_t p = panels * split / splits; p < panels * (split + 1) / splits; ++p) {
      for (int64_t n = n0; n < n1; ++n) {
        for (int64_t r = 0; r < count; ++r) {
          const float* in = copies + (n - n0) * copy_size + r * stride * row_size;
          float* out = y->typed_data() +
                       ((n * conv.out_h + first + r) * conv.out_w) * conv.f + p * panel;
          for (int64_t t = 0; t < tiles; ++t) {
            (t + 1 < tiles ? most : last)(conv, in + t * tile * stride * conv.c,
                                          packed + p * taps * panel, out + t * tile * conv.f);
          }
        }
      }
    }
  });
  return ffi::Error::Success();
}

// ---- The gradient of its kernel ----

// Adds to KW taps of a row, C channels and V vectors of features of the gradient what
// `rows` rows of pixels give: x times dy.
template <int KW, int V, int C>
void GradientTile(const Conv& conv, const float* x, int64_t channels, const float* dy,
                  int64_t rows, float* gradient) {
  Vector sums[KW][C][V] = {};
  const int64_t row_step = conv.stride * conv.padded_w() * channels;
  for (int64_t r = 0; r < rows; ++r) {
    const float* pixel = x + r * row_step;
    for (int64_t i = 0; i < conv.out_w; ++i, pixel += conv.stride * channels, dy += conv.f) {
      Vector factors[V];
      for (int v = 0; v < V; ++v) factors[v] = Load(dy + v * kLanes);
#pragma GCC unroll 32
      for (int j = 0; j < KW; ++j) {
#pragma GCC unroll 32
        for (int c = 0; c < C; ++c) {
          const float value = pixel[j * channels + c];
          for (int v = 0; v < V; ++v) sums[j][c][v] += value * factors[v];
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int j = 0; j < KW; ++j) {
#pragma GCC unroll 32
    for (int c = 0; c < C; ++c) {
      // Added at the end: long sums in one float would lose more digits.
      float* to = gradient + (j * conv.c + c) * conv.f;
      for (int v = 0; v < V; ++v) Store(to + v * kLanes, Load(to + v * kLanes) + sums[j][c][v]);
    }
  }
}

constexpr int PowerOfTwo(int most) { return most < 2 ? 1 : 2 * PowerOfTwo(most / 2); }

// The same for all `channels`, and for features [f, f + V vectors).
template <int KW, int V, int C = PowerOfTwo(kSums / (KW * V))>
void GradientRow(const Conv& conv, const float* x, int64_t channels, const float* dy,
                 int64_t rows, float* gradient, int64_t c = 0) {
  for (; c + C <= channels; c += C) {
    GradientTile<KW, V, C>(conv, x + c, channels, dy, rows, gradient + c * conv.f);
  }
  if constexpr (C > 1) GradientRow<KW, V, C / 2>(conv, x, channels, dy, rows, gradient, c);
}

template <int KW>
void GradientOfTaps(const Conv& conv, const float* x, int64_t channels, const float* dy,
                    int64_t rows, float* gradient) {
  int64_t f = 0;
  if constexpr (2 * KW <= kSums) {
    for (; f + 2 * kLanes <= conv.f; f += 2 * kLanes) {
      GradientRow<KW, 2>(conv, x, channels, dy + f, rows, gradient + f);
    }
  }
  for (; f < conv.f; f += kLanes) {
    GradientRow<KW, 1>(conv, x, channels, dy + f, rows, gradient + f);
  }
}

ffi::Error ConvKernelGradient(ffi::ThreadPool pool, Array x, Array dy, int64_t stride,
                              int64_t padding, Result gradient) {
  const Conv conv =
      Describe(x, gradient->dimensions(), dy.dimensions(), stride, padding);
  // Channels are split so that a part of the gradient stays in the cache, and images so
  // that there is work for many threads; what their parts give is added up at the end.
  const int64_t size = conv.taps() * conv.f;
  const int64_t channels = std::max<int64_t>(8, conv.c * kGradientInCache / size / 8 * 8);
  const int64_t parts = CeilDiv(conv.c, channels);
  const int64_t splits =
      std::clamp<int64_t>(kPartialGradients / size, 1, std::min<int64_t>(conv.n, 32));
  float *others = Scratch<kPartial>((splits - 1) * size), *out = gradient->typed_data();

  ParallelFor(pool, parts * splits, [&](int64_t task) {
    const int64_t split = task % splits, c0 = task / splits * channels;
    const int64_t cs = std::min(channels, conv.c - c0);
    float* sums = (split ? others + (split - 1) * size : out) + c0 * conv.f;
    for (int64_t tap = 0; tap < conv.kh * conv.kw; ++tap) {
      std::memset(sums + tap * conv.c * conv.f, 0, 4 * cs * conv.f);
    }
    const int64_t rows = std::clamp<int64_t>(
        kRowsInCache / (conv.padded_w() * cs * stride + conv.out_w * conv.f), 1, conv.out_h);
    for (int64_t n = conv.n * split / splits; n < conv.n * (split + 1) / splits; ++n) {
      for (int64_t first = 0; first < conv.out_h; first += rows) {
        const int64_t count = std::min(rows, conv.out_h - first);
        float* in = Scratch<kCopy>(conv.in_rows(count) * conv.padded_w() * cs);
        CopyPadded(conv, x.typed_data() + n * conv.h * conv.w * conv.c, first, count, c0, cs,
                   in);
        const float* from = dy.typed_data() + (n * conv.out_h + first) * conv.out_w * conv.f;
        for (int64_t i = 0; i < conv.kh; ++i) {
          const float* row = in + i * conv.padded_w() * cs;
          float* to = sums + i * conv.kw * conv.c * conv.f;
          if (conv.kw == 3) {
            GradientOfTaps<3>(conv, row, cs, from, count, to);
          } else if (conv.kw == 7) {
            GradientOfTaps<7>(conv, row, cs, from, count, to);
          } else {
            for (int64_t j = 0; j < conv.kw; ++j) {
              GradientOfTaps<1>(conv, row + j * cs, cs, from, count, to + j * conv.c * conv.f);
            }
          }
        }
      }
    }
  });
  if (splits == 1) return ffi::Error::Success();
  ParallelFor(pool, conv.kh, [&](int64_t row) {
    for (int64_t s = 0; s + 1 < splits; ++s) {
      for (int64_t i = size * row / conv.kh; i < size * (row + 1) / conv.kh; ++i) {
        out[i] += others[s * size + i];
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
