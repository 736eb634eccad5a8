// What the kernels share: vectors, memory of a thread, and work split over the pool.

#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>

#include "call.h"

namespace {

// Floats of a vector, and how many vectors of sums leave registers for the factors.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kSums = 28;
#elif defined(__AVX__)
constexpr int kLanes = 8, kSums = 12;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kSums = 24;
#else
constexpr int kLanes = 4, kSums = 12;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef Half Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector v) { *reinterpret_cast<Vector*>(to) = v; }

inline Vector Load(const Half* from) {
  const Halves upper = *reinterpret_cast<const Halves*>(from);
  return (Vector)(__builtin_convertvector(upper, Bits) << 16);
}
inline void Store(Half* to, Vector v) {
  const Bits bits = (Bits)v, nearest = bits + 0x7fff + (bits >> 16 & 1);
  const Bits rounded = v == v ? nearest : bits | 0x400000;  // NaN stays.
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(rounded >> 16, Halves);
}

// Copies `count` numbers.
inline void Copy(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, 4 * count);
}
inline void Copy(const Half* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(to + i, Load(from + i));
  for (; i < count; ++i) {
    const uint32_t bits = uint32_t{from[i]} << 16;
    std::memcpy(to + i, &bits, 4);
  }
}

// Past the caches, to where a vector may be; ParallelFor's atomic counter waits for it.
inline void Stream(float* to, Vector v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX__)
  _mm256_stream_ps(to, (__m256)v);
#else
  Store(to, v);
#endif
}
// Bytes of a result that may still be in a cache when it is read.
constexpr size_t kMostCached = 16 << 20;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Size of parts that are about equal, each of at most `most`.
int64_t Even(int64_t whole, int64_t most) { return CeilDiv(whole, CeilDiv(whole, most)); }

// How often a thread looks whether others are done before it sleeps: some 50 microseconds.
constexpr int kSpins = 1000;
inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Runs task(0) ... task(count - 1) on the pool's threads and on this one.
void ParallelFor(const ThreadPool& pool, int64_t count, std::function<void(int64_t)> task) {
  struct State {
    std::function<void(int64_t)> task;
    int64_t count;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;

    // The tasks of other threads use what is on the stack of the one that waits for them.
    void Work() noexcept {
      for (int64_t i; (i = next++) < count;) {
        task(i);
        if (++done == count) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  };
  // Shared, as a helper may start when all is done and this function has returned.
  auto state = std::make_shared<State>();
  state->task = std::move(task);
  state->count = count;
  for (int64_t i = 1; i < std::min(pool.threads(), count); ++i) {
    pool.Schedule([state] { state->Work(); });
  }
  state->Work();
  // A thread that sleeps takes longer to wake than most tasks to end.
  for (int i = 0; i < kSpins && state->done < count; ++i) Pause();
  if (state->done == count) return;
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == state->count; });
}

// Memory of this thread, not set to zero, that is kept for the next call.
template <int kUse>
float* Scratch(int64_t size) {
  struct alignas(64) Line { float floats[16]; };  // No vector lies on two lines of a cache.
  thread_local std::unique_ptr<Line[]> scratch;
  thread_local int64_t capacity = 0;
  if (size > capacity) {
    scratch.reset();
    capacity = 0;
    scratch.reset(new Line[CeilDiv(size, 16)]);
    capacity = size;
  }
  return reinterpret_cast<float*>(scratch.get());
}
enum { kCopy, kPacked, kSumsOfPart, kPartial, kPixels, kSoFar };

}  // namespace
