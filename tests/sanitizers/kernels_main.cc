// Runs the kernels for a sanitizer to watch, on arrays that end where their numbers end.
//
// Arguments: for each convolution nine numbers, images, height, width, channels,
// features, height and width of the kernel, stride, padding. The status is 1 if a result
// is not finite, as memory that nobody has set is NaN under AddressSanitizer, or if it
// depends on the number of threads.

#include "kernels.cc"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

using Shape = std::vector<int64_t>;

// To save time where there is one thread.
#define UNWATCHED __attribute__((no_sanitize("thread")))

UNWATCHED bool IsFinite(float number) { return number - number == 0; }
UNWATCHED bool IsFinite(Half number) { return (number & 0x7f80) != 0x7f80; }

UNWATCHED void Set(float value, float* to) { *to = value; }
UNWATCHED void Set(float value, Half* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  *to = bits >> 16;
}

// An array in memory of its own, at an address as XLA has them.
template <typename T>
struct Numbers {
  explicit Numbers(Shape shape)
      : shape(shape),
        size(array().element_count()),
        data(static_cast<T*>(operator new(size * sizeof(T), std::align_val_t(64)))) {}
  ~Numbers() { operator delete(data, std::align_val_t(64)); }
  Numbers(const Numbers&) = delete;

  UNWATCHED Numbers& Fill() {
    uint32_t random = 1;
    for (size_t i = 0; i < size; ++i) {
      random = random * 1664525u + 1013904223u;
      Set(static_cast<float>(random >> 8) / (1 << 24) - 0.5f, data + i);
    }
    return *this;
  }
  UNWATCHED bool IsFinite() const {
    return std::all_of(data, data + size, [](T number) { return ::IsFinite(number); });
  }
  Array<T> array() const { return {data, &shape}; }

  const Shape shape;
  const size_t size;
  T* data = nullptr;
};

// Computes with one thread and with some; `call` takes a pool and a result.
template <typename T, typename Call>
void Check(const char* name, const Shape& shape, const Call& call) {
  Numbers<T> alone(shape), together(shape);
  ffi::Workers none(0), some(3);
  const std::string error = call(ffi::ThreadPool{&none}, Result<T>{alone.array()}).message +
                            call(ffi::ThreadPool{&some}, Result<T>{together.array()}).message;
  if (error.empty() && alone.IsFinite() &&
      !std::memcmp(alone.data, together.data, alone.size * sizeof(T))) {
    return;
  }
  std::fprintf(stderr, "%s of %zu bytes is wrong: %s\n", name, sizeof(T), error.c_str());
  std::exit(1);
}

template <typename T>
void Run(const int64_t* sizes) {
  const int64_t n = sizes[0], h = sizes[1], w = sizes[2], c = sizes[3], f = sizes[4];
  const int64_t kh = sizes[5], kw = sizes[6], stride = sizes[7], padding = sizes[8];
  const Shape out = {n, (h + 2 * padding - kh) / stride + 1,
                     (w + 2 * padding - kw) / stride + 1, f};
  Numbers<T> x({n, h, w, c}), kernel({kh, kw, c, f}), dy(out);
  Numbers<float> shift({f}), added(out);
  x.Fill(), kernel.Fill(), dy.Fill(), shift.Fill(), added.Fill();
  const std::vector<Array<float>> then = {shift.array(), added.array()};
  for (size_t count : {0, 1, 2}) {
    const ffi::RemainingArgs rest = {{then.begin(), then.begin() + count}};
    Check<T>("convolution", out, [&](ffi::ThreadPool pool, Result<T> y) {
      return Guarded<Convolution<T>>::Call(pool, x.array(), kernel.array(), rest, stride,
                                           padding, count == 2, y);
    });
  }
  if constexpr (std::is_same_v<T, float>) {
    const int64_t panel = f % (2 * kLanes) ? kLanes : 2 * kLanes;
    std::vector<Shape> packed = {{f / panel, kh, kw, c, panel}};
    if (kh == 3 && kw == 3 && stride == 1 && c % kLanes == 0) {
      packed.push_back({kPlaces, f / panel, c, panel});
    }
    for (const Shape& sizes : packed) {
      Numbers<float> factors(sizes);
      factors.Fill();
      Check<float>("packed convolution", out, [&](ffi::ThreadPool pool, Result<float> y) {
        return Guarded<PackedConvolution>::Call(pool, x.array(), factors.array(),
                                                {{then.begin(), then.end()}}, stride,
                                                padding, true, y);
      });
    }
  }
  Check<float>("kernel gradient", kernel.shape, [&](ffi::ThreadPool pool, Result<float> y) {
    return Guarded<ConvKernelGradient<T>>::Call(pool, x.array(), dy.array(), stride, padding,
                                                y);
  });
  Check<float>("moments", {2, f}, [&](ffi::ThreadPool pool, Result<float> y) {
    return Guarded<Moments<T>>::Call(pool, dy.array(), y);
  });
  Check<float>("batch-norm sums", {2, f}, [&](ffi::ThreadPool pool, Result<float> y) {
    return Guarded<GradientSums<T>>::Call(pool, dy.array(), shift.array(), dy.array(), y);
  });
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 1; i + 8 < count; i += 9) {
    int64_t sizes[9];
    for (int j = 0; j < 9; ++j) sizes[j] = std::atoll(arguments[i + j]);
    Run<float>(sizes);
    Run<Half>(sizes);
  }
}
