// Convolutions of images [N, H, W, C].
//
// They work on tiles of the result that stay in vector registers while everything that
// is added to them streams past: a vector holds neighbouring output channels, and single
// numbers of the image are multiplied with it. Images with a border are first copied, with
// its zeros, a few rows at a time, to where the cache holds them.

#pragma once

#include "parallel.h"

namespace {

// Floats of rows and of whole images that a task has in the cache.
constexpr int64_t kRowsInCache = 48 * 1024, kImagesInCache = 96 * 1024;
// Pixels of the smallest blocks: each reads the kernel anew.
constexpr int64_t kFewPixels = 96;
// Multiplications of a convolution that is not worth a second thread.
constexpr int64_t kSmall = 256 * 1024;
// Floats of a panel of the kernel that the first cache holds, and of one of its lines.
constexpr int64_t kPanelInCache = 4 * 1024, kCacheLine = 16;

struct Conv {
  int64_t n, h, w, c;     // Images and their channels,
  int64_t out_h, out_w, f;  // what comes out, its channels,
  int64_t kh, kw, stride, padding;

  // Floats from a pixel of a copy to the next. Those of a tile that are a multiple of 2 KB
  // apart would share few sets of the first cache.
  int64_t step() const { return kw == 1 && c % 512 == 0 ? c + kLanes : c; }
  int64_t padded_w() const { return (out_w - 1) * stride + kw; }
  int64_t in_rows(int64_t rows) const { return (rows - 1) * stride + kh; }
  int64_t taps() const { return kh * kw * c; }
  bool IsPointwise() const { return kh == 1 && kw == 1 && padding == 0; }
};

Conv Describe(const Shape& in, const Shape& kernel, const Shape& y, int64_t stride,
              int64_t padding) {
  return {in[0], in[1], in[2], in[3], y[1], y[2], y[3], kernel[0], kernel[1], stride, padding};
}

// Copies what `rows` rows of output from `first` on see of channels [c0, c0 + cs), with
// `step` floats for a pixel.
template <typename T>
void CopyPadded(const Conv& conv, const T* image, int64_t first, int64_t rows, int64_t c0,
                int64_t cs, int64_t step, float* copy) {
  const int64_t width = conv.padded_w();
  const int64_t copied = std::min(conv.w, width - conv.padding);
  for (int64_t r = 0; r < conv.in_rows(rows); ++r) {
    const int64_t row = first * conv.stride - conv.padding + r;
    float* to = copy + r * width * step;
    if (row < 0 || row >= conv.h) {
      std::memset(to, 0, 4 * width * step);
      continue;
    }
    float* inner = to + conv.padding * step;
    const T* from = image + row * conv.w * conv.c + c0;
    std::memset(to, 0, 4 * conv.padding * step);
    if (step == conv.c) {
      Copy(from, copied * step, inner);
    } else {
      for (int64_t i = 0; i < copied; ++i) {
        Copy(from + i * conv.c, cs, inner + i * step);
      }
    }
    std::memset(inner + copied * step, 0, 4 * (width - conv.padding - copied) * step);
  }
}

// Where sums go, and what becomes of them before.
struct Output {
  float* y;
  Half* halves = nullptr;  // Instead of y.
  // To add for each feature, and for each number; null for none.
  const float *shift = nullptr, *added = nullptr;
  bool relu = false;
  bool is_streamed = false;  // Stored past the caches.

  bool IsPlain() const { return !halves && !shift && !added && !relu && !is_streamed; }
  void operator()(Vector sum, int64_t pixel, int64_t feature) const {
    const int64_t i = pixel + feature;
    if (shift) sum += Load(shift + feature);
    if (added) sum += Load(added + i);
    if (relu) sum = sum < 0 ? Vector{} : sum;  // NaN stays.
    if (halves) {
      Store(halves + i, sum);
    } else {
      is_streamed ? Stream(y + i, sum) : Store(y + i, sum);
    }
  }
};

// Some of the taps that a tile adds up: `count` neighbours in each of some rows of the kernel.
struct Part {
  int64_t rows, count;
  int64_t first, row_step;  // Floats from a pixel to its first tap, and from a row to the next.
  bool is_first, is_last;
};

// T pixels of V vectors of channels: sums over the taps of a part of x times kernel.
// `pixels` are where their taps start in x; the output has them as neighbours, the first at
// `pixel` and `feature`. Between the parts, `so_far` keeps the sums.
template <int V, int T>
void ConvTile(const Part& part, const float* const* pixels, const float* kernel, float* so_far,
              const Output& output, int64_t pixel, int64_t feature, int64_t features) {
  Vector sums[T][V];
  const float* x[T];
#pragma GCC unroll 32
  for (int t = 0; t < T; ++t) {
    x[t] = pixels[t] + part.first;
    for (int v = 0; v < V; ++v) {
      sums[t][v] = part.is_first ? Vector{} : Load(so_far + (t * V + v) * kLanes);
    }
  }
  for (int64_t i = 0; i < part.rows; ++i) {
    for (int64_t k = 0; k < part.count; ++k, kernel += V * kLanes) {
      Vector factors[V];
      for (int v = 0; v < V; ++v) factors[v] = Load(kernel + v * kLanes);
#pragma GCC unroll 32
      for (int t = 0; t < T; ++t) {
        const float value = x[t][k];
        for (int v = 0; v < V; ++v) sums[t][v] += value * factors[v];
      }
    }
#pragma GCC unroll 32
    for (int t = 0; t < T; ++t) x[t] += part.row_step;
  }
  const bool is_plain = output.IsPlain();
#pragma GCC unroll 32
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < V; ++v) {
      const int64_t p = pixel + t * features, f = feature + v * kLanes;
      if (!part.is_last) {
        Store(so_far + (t * V + v) * kLanes, sums[t][v]);
      } else {
        is_plain ? Store(output.y + p + f, sums[t][v]) : output(sums[t][v], p, f);
      }
    }
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

// How features are split into panels, a vector or two, and pixels into tiles of about equal
// size. Taps are added up in parts whose kernel the first cache holds for all tiles; the order
// of the sums is that of the taps all the same.
class Panels {
 public:
  Panels(const Conv& conv)
      : panel((conv.f % (2 * kLanes) == 0 ? 2 : 1) * kLanes),
        count(conv.f / panel),
        conv_(conv),
        row_(conv.kw * conv.c),
        rows_(std::clamp<int64_t>(kPanelInCache / panel / row_, 1, conv.kh)),
        taps_(Even(row_, kPanelInCache / panel)) {}

  // Convolves `pixels` with a panel; in the output, the first is at `pixel` and `feature`.
  void operator()(const float* const* pixels, int64_t size, const float* kernel,
                  const Output& output, int64_t pixel, int64_t feature) const {
    const int64_t vectors = panel / kLanes, tiles = CeilDiv(size, kSums / vectors);
    const int64_t tile = size / tiles, larger = size % tiles;
    auto find = vectors == 2 ? FindConvTile<2> : FindConvTile<1>;
    const ConvTileFn smaller_tile = find(tile), larger_tile = find(tile + (larger > 0));
    float* so_far = Scratch<kSoFar>(size * panel);
    const int64_t row_step = conv_.padded_w() * conv_.step();
    for (int64_t i = 0; i < conv_.kh; i += rows_) {
      for (int64_t k = 0; k < row_; k += taps_) {
        const Part part = {std::min(rows_, conv_.kh - i), std::min(taps_, row_ - k),
                           i * row_step + k, row_step, i + k == 0,
                           i + rows_ >= conv_.kh && k + taps_ >= row_};
        const int64_t floats = part.rows * part.count * panel;
        const float *end = kernel + floats, *fetched = end;
        for (int64_t t = 0, p = 0; t < tiles; ++t) {
          // What comes next may still be in memory.
          for (; fetched < end + floats * (t + 1) / tiles; fetched += kCacheLine) {
            __builtin_prefetch(fetched, 0, 2);
          }
          (t < larger ? larger_tile : smaller_tile)(part, pixels + p, kernel, so_far + p * panel,
                                                    output, pixel + p * conv_.f, feature,
                                                    conv_.f);
          p += tile + (t < larger);
        }
        kernel = end;
      }
    }
  }

  const int64_t panel, count;

 private:
  const Conv& conv_;
  const int64_t row_, rows_, taps_;
};

// Writes where the taps start of each pixel in rows [first, first + count) of images [n0, n1):
// in x, if it can be read as it is, or in a copy. `conv` is how `whole` is computed, see below.
template <typename T>
void FindPixels(const Conv& whole, const Conv& conv, const T* x, int64_t n0, int64_t n1,
                int64_t first, int64_t count, const float** pixels) {
  if (whole.IsPointwise()) {
    const int64_t step = conv.step();
    const bool is_copied = !std::is_same_v<T, float> || step != conv.c;
    float* copy = is_copied ? Scratch<kCopy>(count * step) : nullptr;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / whole.out_w, w = (first + i) % whole.out_w;
      const int64_t n = row / whole.out_h, h = row % whole.out_h;
      const T* pixel =
          x + ((n * whole.h + h * whole.stride) * whole.w + w * whole.stride) * whole.c;
      if (is_copied) {
        Copy(pixel, whole.c, copy + i * step);
        pixels[i] = copy + i * step;
      } else {
        pixels[i] = reinterpret_cast<const float*>(pixel);
      }
    }
    return;
  }
  const int64_t row_size = conv.padded_w() * conv.step();
  const int64_t copy_size = conv.in_rows(count) * row_size;
  float* copy = Scratch<kCopy>((n1 - n0) * copy_size);
  for (int64_t n = n0; n < n1; ++n, copy += copy_size) {
    CopyPadded(conv, x + n * conv.h * conv.w * conv.c, first, count, 0, conv.c, conv.step(), copy);
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t w = 0; w < conv.out_w; ++w) {
        *pixels++ = copy + (r * row_size + w * conv.step()) * conv.stride;
      }
    }
  }
}

// `ready` is the kernel as panels, see `pack` below; if it is null, `kernel` is packed here.
template <typename T>
void ConvForward(const ThreadPool& pool, const Conv& whole, const T* x, const T* kernel,
                 const float* ready, const Output& output) {
  // Pixels that are convolved alone are rows of one image.
  const int64_t all = whole.n * whole.out_h * whole.out_w;
  const Conv conv =
      whole.IsPointwise() ? Conv{1, all, 1, whole.c, all, 1, whole.f, 1, 1, 1, 0} : whole;
  const Panels panels(conv);
  const int64_t panel = panels.panel, taps = conv.taps();

  // A task has some rows of an image, or some whole images; each panel is read once for it.
  const int64_t row_size = conv.padded_w() * conv.step();
  const int64_t most = std::max(kRowsInCache / (row_size * conv.stride), kFewPixels / conv.out_w);
  const int64_t least = CeilDiv(conv.out_h, std::clamp<int64_t>(most, 1, conv.out_h));
  // More blocks if threads would else be idle at the end.
  const int64_t tasks = all * taps * conv.f < kSmall ? 1 : 4 * pool.threads();
  const int64_t wanted = std::min(CeilDiv(tasks, conv.n), conv.out_h * conv.out_w / kFewPixels);
  const int64_t rows = CeilDiv(conv.out_h, std::max(least, wanted));
  const int64_t blocks = CeilDiv(conv.out_h, rows);
  const int64_t copy_size = conv.in_rows(rows) * row_size;
  const int64_t images = std::clamp<int64_t>(
      blocks > 1 ? 1 : kImagesInCache / copy_size, 1, CeilDiv(conv.n, pool.threads()));
  const int64_t groups = CeilDiv(conv.n, images) * blocks;
  // Few groups are also split by the channels of the output.
  const int64_t splits = std::min(panels.count, CeilDiv(tasks, groups));

  // The kernel, as [panels, taps, panel]; or each panel by the only task that has it.
  auto pack = [&](int64_t p, float* to) {
    for (int64_t i = 0; i < taps; ++i) {
      Copy(kernel + i * conv.f + p * panel, panel, to + i * panel);
    }
  };
  const float* packed = ready;
  if (!ready && groups > 1) {
    float* shared = Scratch<kPacked>(taps * conv.f);
    ParallelFor(pool, panels.count, [&](int64_t p) { pack(p, shared + p * taps * panel); });
    packed = shared;
  }

  ParallelFor(pool, groups * splits, [&](int64_t task) {
    const int64_t split = task % splits, group = task / splits;
    const int64_t n0 = group / blocks * images, n1 = std::min(n0 + images, conv.n);
    const int64_t first = group % blocks * rows, count = std::min(rows, conv.out_h - first);
    const int64_t size = (n1 - n0) * count * conv.out_w;
    const float** pixels = reinterpret_cast<const float**>(Scratch<kPixels>(2 * size));
    FindPixels(whole, conv, x, n0, n1, first, count, pixels);
    const int64_t start = (n0 * conv.out_h + first) * conv.out_w * conv.f;
    const int64_t end = panels.count * (split + 1) / splits;
    for (int64_t p = panels.count * split / splits; p < end; ++p) {
      const float* factors = packed + p * taps * panel;
      if (!packed) {
        float* own = Scratch<kPartial>(taps * panel);
        pack(p, own);
        factors = own;
      }
      panels(pixels, size, factors, output, start, p * panel);
    }
  });
}

}  // namespace
