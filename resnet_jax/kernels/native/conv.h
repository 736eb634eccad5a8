// Convolutions of images [N, H, W, C].
//
// They work on tiles of the result that stay in vector registers while everything that
// is added to them streams past: a vector holds neighbouring output channels, and single
// numbers of the image are multiplied with it. Images are first copied, with their border
// of zeros, a few rows at a time, to where the cache holds them.

#pragma once

#include "parallel.h"

namespace {

// Floats of rows and of whole images that a task has in the cache.
constexpr int64_t kRowsInCache = 48 * 1024, kImagesInCache = 96 * 1024;

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
};

Conv Describe(ffi::Span<const int64_t> in, ffi::Span<const int64_t> kernel, ffi::Span<const int64_t> y,
              int64_t stride, int64_t padding) {
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

// T neighbouring pixels of V vectors of channels, the first of which are at `pixel` and
// `feature` of the output: sums over the taps of x times kernel.
template <int V, int T>
void ConvTile(const Conv& conv, const float* x, const float* kernel, const Output& output,
              int64_t pixel, int64_t feature) {
  Vector sums[T][V] = {};
  const int64_t step = conv.stride * conv.step();
  for (int64_t i = 0; i < conv.kh; ++i) {
    const float* row = x + i * conv.padded_w() * conv.step();
    // The taps of a row, and their channels, are neighbours in the image as in the kernel.
    for (int64_t k = 0; k < conv.kw * conv.c; ++k, kernel += V * kLanes) {
      Vector factors[V];
      for (int v = 0; v < V; ++v) factors[v] = Load(kernel + v * kLanes);
#pragma GCC unroll 32
      for (int t = 0; t < T; ++t) {
        const float value = row[t * step + k];
        for (int v = 0; v < V; ++v) sums[t][v] += value * factors[v];
      }
    }
  }
  const bool is_plain = output.IsPlain();
#pragma GCC unroll 32
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < V; ++v) {
      const int64_t p = pixel + t * conv.f, f = feature + v * kLanes;
      is_plain ? Store(output.y + p + f, sums[t][v]) : output(sums[t][v], p, f);
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

// Rows of `width` pixels as tiles, for one panel, a vector or two, of the features.
class Rows {
 public:
  Rows(const Conv& conv, int64_t width)
      : vectors(conv.f % (2 * kLanes) == 0 ? 2 : 1),
        panel(vectors * kLanes),
        panels(conv.f / panel),
        conv_(conv),
        tiles_(CeilDiv(width, kSums / vectors)),
        tile_(CeilDiv(width, tiles_)) {
    auto find = vectors == 2 ? FindConvTile<2> : FindConvTile<1>;
    most_ = find(tile_);
    last_ = find(width - (tiles_ - 1) * tile_);
  }

  void operator()(const float* x, const float* kernel, const Output& output, int64_t pixel,
                  int64_t feature) const {
    for (int64_t t = 0; t < tiles_; ++t) {
      (t + 1 < tiles_ ? most_ : last_)(conv_, x, kernel, output, pixel, feature);
      x += tile_ * conv_.stride * conv_.step();
      pixel += tile_ * conv_.f;
    }
  }

  const int64_t vectors, panel, panels;

 private:
  const Conv& conv_;
  const int64_t tiles_, tile_;
  ConvTileFn most_, last_;
};

// `ready` is the kernel as panels, see `pack` below; if it is null, `kernel` is packed here.
template <typename T>
void ConvForward(ffi::ThreadPool& pool, const Conv& conv, const T* x, const T* kernel,
                 const float* ready, const Output& output) {
  const Rows row(conv, conv.out_w);
  const int64_t panel = row.panel, panels = row.panels, taps = conv.taps();

  // A task has some rows of an image, or some whole images; each panel is read once for it.
  const int64_t row_size = conv.padded_w() * conv.step();
  const int64_t rows = Even(
      conv.out_h, std::clamp<int64_t>(kRowsInCache / (row_size * conv.stride), 1, conv.out_h));
  const int64_t copy_size = conv.in_rows(rows) * row_size;
  const int64_t blocks = CeilDiv(conv.out_h, rows);
  const int64_t images = std::clamp<int64_t>(
      blocks > 1 ? 1 : kImagesInCache / copy_size, 1, CeilDiv(conv.n, Threads(pool)));
  const int64_t groups = CeilDiv(conv.n, images) * blocks;
  // Few are also split by the channels of the output.
  const int64_t splits = std::min(panels, CeilDiv(2 * Threads(pool), groups));

  // The kernel, as [panels, taps, panel]; or each panel by the only task that has it.
  auto pack = [&](int64_t p, float* to) {
    for (int64_t i = 0; i < taps; ++i) {
      Copy(kernel + i * conv.f + p * panel, panel, to + i * panel);
    }
  };
  const float* packed = ready;
  if (!ready && groups > 1) {
    float* shared = Scratch<kPacked>(taps * conv.f);
    ParallelFor(pool, panels, [&](int64_t p) { pack(p, shared + p * taps * panel); });
    packed = shared;
  }

  ParallelFor(pool, groups * splits, [&](int64_t task) {
    const int64_t split = task % splits, group = task / splits;
    const int64_t n0 = group / blocks * images, n1 = std::min(n0 + images, conv.n);
    const int64_t first = group % blocks * rows, count = std::min(rows, conv.out_h - first);
    float* copies = Scratch<kCopy>(images * copy_size);
    for (int64_t n = n0; n < n1; ++n) {
      CopyPadded(conv, x + n * conv.h * conv.w * conv.c, first, count, 0, conv.c,
                 conv.step(), copies + (n - n0) * copy_size);
    }
    for (int64_t p = panels * split / splits; p < panels * (split + 1) / splits; ++p) {
      const float* factors = packed + p * taps * panel;
      if (!packed) {
        float* own = Scratch<kPartial>(taps * panel);
        pack(p, own);
        factors = own;
      }
      for (int64_t n = n0; n < n1; ++n) {
        for (int64_t r = 0; r < count; ++r) {
          row(copies + (n - n0) * copy_size + r * conv.stride * row_size,
              factors, output,
              ((n * conv.out_h + first + r) * conv.out_w) * conv.f, p * panel);
        }
      }
    }
  });
}

}  // namespace
