// Sums over rows of [rows, C]: what batch norm needs of its input, and its gradient.
//
// They read each array once, at the speed of memory. XLA's take several times as long.

#pragma once

#include <vector>

#include "parallel.h"

namespace {

// Rows whose sums are taken in registers before they are added to longer ones.
constexpr int64_t kRowsInRegisters = 64;
// The rows are summed in so many parts at most, each of so many floats at least.
constexpr int64_t kParts = 64, kFloatsOfPart = 16 * 1024;

// Adds rows [first, last) of V vectors of channels.
template <int V, typename Add>
void AddRows(const Add& add, int64_t first, int64_t last, int64_t channels, int64_t c,
             double* sums) {
  Vector a[V] = {}, b[V] = {};
  for (int64_t row = first; row < last; ++row) {
    for (int v = 0; v < V; ++v) {
      add(row * channels + c + v * kLanes, c + v * kLanes, a[v], b[v]);
    }
  }
  for (int v = 0; v < V; ++v) {
    for (int i = 0; i < kLanes; ++i) {
      sums[c + v * kLanes + i] += a[v][i];
      sums[channels + c + v * kLanes + i] += b[v][i];
    }
  }
}

// Writes two sums over all rows for each channel. `add` adds to both what the vector at
// an index of the arrays, and at a channel, gives.
template <typename Add>
void SumRows(const ThreadPool& pool, int64_t size, int64_t channels, const Add& add,
             std::vector<double>& sums) {
  const int64_t rows = size / channels;
  const int64_t parts = std::clamp<int64_t>(size / kFloatsOfPart, 1, std::min(kParts, rows));
  std::vector<double> of_parts(parts * 2 * channels);
  ParallelFor(pool, parts, [&](int64_t part) {
    double* to = of_parts.data() + part * 2 * channels;
    const int64_t end = rows * (part + 1) / parts;
    for (int64_t first = rows * part / parts; first < end; first += kRowsInRegisters) {
      const int64_t last = std::min(first + kRowsInRegisters, end);
      int64_t c = 0;
      for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
        AddRows<4>(add, first, last, channels, c, to);
      }
      for (; c < channels; c += kLanes) AddRows<1>(add, first, last, channels, c, to);
    }
  });
  sums.assign(2 * channels, 0);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += of_parts[part * 2 * channels + i];
  }
}

// Mean and variance of each channel.
template <typename T>
void Moments(const ThreadPool& pool, Array<T> x, Array<float> moments) {
  const int64_t channels = x.shape.last(), size = x.shape.count();
  // Distances from some value of the channel: far from 0, squares would lose digits.
  const T* values = x.data;
  std::vector<float> origin(channels);
  Copy(values, channels, origin.data());
  std::vector<double> sums;
  SumRows(
      pool, size, channels,
      [values, origin = origin.data()](int64_t i, int64_t c, Vector& a, Vector& b) {
        const Vector distance = Load(values + i) - Load(origin + c);
        a += distance;
        b += distance * distance;
      },
      sums);
  const double rows = size / channels;
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = sums[c] / rows, square = sums[channels + c] / rows;
    moments.data[c] = origin[c] + mean;
    moments.data[channels + c] = std::max(square - mean * mean, 0.0);
  }
}

// Sums of the gradient, and of the gradient times x's distance from its mean.
template <typename T>
void GradientSums(const ThreadPool& pool, Array<T> x, Array<float> mean, Array<T> dy,
                  Array<float> result) {
  const T *values = x.data, *gradient = dy.data;
  const float* means = mean.data;
  std::vector<double> sums;
  SumRows(
      pool, x.shape.count(), x.shape.last(),
      [=](int64_t i, int64_t c, Vector& a, Vector& b) {
        const Vector g = Load(gradient + i);
        a += g;
        b += g * (Load(values + i) - Load(means + c));
      },
      sums);
  std::copy(sums.begin(), sums.end(), result.data);
}

}  // namespace
