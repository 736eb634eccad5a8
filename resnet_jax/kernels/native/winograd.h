// 3x3 convolutions at stride 1 in 16 multiplications instead of 36 for four pixels: F(2x2, 3x3)
// of Lavin & Gray 2015, "Fast algorithms for convolutional neural networks", section 4.1.
//
// A tile is 2x2 pixels of output and the 4x4 of input that they see. Transformed tiles and
// kernels have 16 places each; the products at a place, summed over the channels, are a
// product of matrices, [tiles, channels] and [channels, features].

#pragma once

#include "conv.h"

namespace {

constexpr int64_t kPlaces = 16;
// Floats of transformed images that a task has in the cache, and tiles that it has at the most
// if those are fewer, or at the least: all kernels are read for them.
constexpr int64_t kTransformedInCache = 96 * 1024, kManyTiles = 64, kFewTiles = 16;
// Tiles and channels for which the products that are saved are worth the transformations.
constexpr int64_t kEnoughTiles = 16, kWide = 32;
constexpr int64_t kFeaturesOfTask = 32;

// `pack` in Python must agree.
bool IsForWinograd(const Conv& conv) {
  const int64_t tiles = conv.n * CeilDiv(conv.out_h, 2) * CeilDiv(conv.out_w, 2);
  return conv.kh == 3 && conv.kw == 3 && conv.stride == 1 && conv.c % kLanes == 0 &&
         conv.c >= kWide && tiles >= kEnoughTiles;
}

// Four vectors, a column of a tile or a row, to four that are `step` vectors apart.
template <typename Row>
void TransformImage(const Row& from, Vector* to, int64_t step) {
  to[0] = from(0) - from(2);
  to[step] = from(1) + from(2);
  to[2 * step] = from(2) - from(1);
  to[3 * step] = from(1) - from(3);
}

// A tile's pixels, null outside the image, to `places`, which are `step` floats apart.
template <typename T>
void TransformTile(const T* const pixels[16], int64_t channels, int64_t step,
                   float* places) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector rows[16], columns[16];
    for (int j = 0; j < 4; ++j) {
      TransformImage(
          [&](int i) {
            const T* pixel = pixels[4 * i + j];
            return pixel ? Load(pixel + c) : Vector{};
          },
          rows + j, 4);
    }
    for (int i = 0; i < 4; ++i) {
      TransformImage([&](int j) { return rows[4 * i + j]; }, columns + 4 * i, 1);
    }
    for (int place = 0; place < kPlaces; ++place) {
      Store(places + place * step + c, columns[place]);
    }
  }
}

// Three vectors of taps to four.
void TransformTaps(Vector a, Vector b, Vector c, Vector* to, int64_t step) {
  to[0] = a;
  to[step] = 0.5f * (a + b + c);
  to[2 * step] = 0.5f * (a - b + c);
  to[3 * step] = c;
}

// A vector of features of a kernel, whose taps are `tap` floats apart, to its places.
template <typename T>
void TransformKernel(const T* kernel, int64_t tap, int64_t step, float* places) {
  Vector rows[12], columns[16];
  for (int j = 0; j < 3; ++j) {
    const T* column = kernel + j * tap;
    TransformTaps(Load(column), Load(column + 3 * tap), Load(column + 6 * tap), rows + j, 3);
  }
  for (int i = 0; i < 4; ++i) {
    const Vector* row = rows + 3 * i;
    TransformTaps(row[0], row[1], row[2], columns + 4 * i, 1);
  }
  for (int place = 0; place < kPlaces; ++place) Store(places + place * step, columns[place]);
}

// The sums at the places of a tile to its four pixels.
void TransformSums(const float* places, int64_t step, Vector pixels[4]) {
  Vector rows[8];
  for (int j = 0; j < 4; ++j) {
    Vector sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = Load(places + (4 * i + j) * step);
    rows[j] = sums[0] + sums[1] + sums[2];
    rows[4 + j] = sums[1] - sums[2] - sums[3];
  }
  for (int i = 0; i < 2; ++i) {
    const Vector* row = rows + 4 * i;
    pixels[2 * i] = row[0] + row[1] + row[2];
    pixels[2 * i + 1] = row[1] - row[2] - row[3];
  }
}

// As `ConvForward`; `ready` is the transformed kernel, see `packed` below.
template <typename T>
void WinogradForward(const ThreadPool& pool, const Conv& conv, const T* x, const T* kernel,
                     const float* ready, const Output& output) {
  const int64_t tiles_h = CeilDiv(conv.out_h, 2), tiles_w = CeilDiv(conv.out_w, 2);
  const int64_t tiles = conv.n * tiles_h * tiles_w;
  // As a 1x1 convolution of rows of tiles.
  const Conv product = {1, 1, 1, conv.c, 1, 1, conv.f, 1, 1, 1, 0};

  const int64_t step = product.step();
  const int64_t most =
      std::max(kManyTiles, kTransformedInCache / (kPlaces * std::max(conv.c, conv.f)));
  const int64_t part =
      Even(tiles, std::clamp(CeilDiv(tiles, pool.threads()), kFewTiles, most));
  const Panels panels(product);
  const int64_t panel = panels.panel;

  // The kernel, as [places, panels, channels, panel].
  const int64_t place_size = conv.c * conv.f;
  const float* packed = ready;
  if (!ready) {
    float* shared = Scratch<kPacked>(kPlaces * place_size);
    ParallelFor(pool, panels.count, [&](int64_t p) {
      for (int64_t c = 0; c < conv.c; ++c) {
        for (int64_t f = 0; f < panel; f += kLanes) {
          TransformKernel(kernel + c * conv.f + p * panel + f, place_size, place_size,
                          shared + (p * conv.c + c) * panel + f);
        }
      }
    });
    packed = shared;
  }

  // Few parts are also split by the channels of the output. Each task transforms the images,
  // so there are two for each thread only if the products take far longer than that.
  const int64_t parts = CeilDiv(tiles, part), threads = pool.threads();
  const int64_t tasks = std::clamp(conv.f / kFeaturesOfTask, threads, 2 * threads);
  const int64_t splits = parts < threads ? std::min(panels.count, CeilDiv(tasks, parts)) : 1;
  ParallelFor(pool, parts * splits, [&](int64_t task) {
    const int64_t split = task % splits;
    const int64_t p0 = panels.count * split / splits, p1 = panels.count * (split + 1) / splits;
    const int64_t first = task / splits * part, count = std::min(part, tiles - first);
    float* transformed = Scratch<kCopy>(kPlaces * count * step);
    float* sums = Scratch<kSumsOfPart>(kPlaces * count * conv.f);
    auto each_tile = [&](auto&& function) {
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = first + t, h = tile / tiles_w;
        function(t, h / tiles_h, h % tiles_h * 2, tile % tiles_w * 2);
      }
    };
    each_tile([&](int64_t t, int64_t n, int64_t h, int64_t w) {
      const T* pixels[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t r = h + i / 4 - conv.padding, s = w + i % 4 - conv.padding;
        const bool inside = r >= 0 && r < conv.h && s >= 0 && s < conv.w;
        pixels[i] = inside ? x + ((n * conv.h + r) * conv.w + s) * conv.c : nullptr;
      }
      TransformTile(pixels, conv.c, count * step, transformed + t * step);
    });
    const float** pixels = reinterpret_cast<const float**>(Scratch<kPixels>(2 * count));
    for (int64_t place = 0; place < kPlaces; ++place) {
      for (int64_t t = 0; t < count; ++t) pixels[t] = transformed + (place * count + t) * step;
      for (int64_t p = p0; p < p1; ++p) {
        panels(pixels, count, packed + place * place_size + p * conv.c * panel,
               {sums + place * count * conv.f}, 0, p * panel);
      }
    }
    each_tile([&](int64_t t, int64_t n, int64_t h, int64_t w) {
      for (int64_t f = p0 * panel; f < p1 * panel; f += kLanes) {
        Vector pixels[4];
        TransformSums(sums + t * conv.f + f, count * conv.f, pixels);
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t r = h + i / 2, s = w + i % 2;
          if (r >= conv.out_h || s >= conv.out_w) continue;
          const int64_t pixel = ((n * conv.out_h + r) * conv.out_w + s) * conv.f;
          output(pixels[i], pixel, f);
        }
      }
    });
  });
}

}  // namespace
