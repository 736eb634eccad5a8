// Runs the kernels for a sanitizer to watch, on arrays that end where their numbers end.
//
// Arguments: for each convolution nine numbers, images, height, width, channels,
// features, height and width of the kernel, stride, padding. The status is 1 if a result
// is not finite, as memory that nobody has set is NaN under AddressSanitizer, or if it
// depends on the number of threads.

#include "kernels.cc"

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using Sizes = std::vector<int64_t>;

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
  explicit Numbers(Sizes shape)
      : shape(shape),
        size(array().shape.count()),
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
  Array<T> array() const {
    return {data, {shape.data(), static_cast<int64_t>(shape.size())}};
  }

  const Sizes shape;
  const size_t size;
  T* data = nullptr;
};

// Threads in place of XLA's, which a sanitizer cannot see.
class Workers {
 public:
  explicit Workers(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Work(); });
    api_.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) {
      *args->num_threads = Of(args->ctx).threads_.size();
      return static_cast<XLA_FFI_Error*>(nullptr);
    };
    api_.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) {
      Of(args->ctx).Add([task = args->task, data = args->data] { task(data); });
      return static_cast<XLA_FFI_Error*>(nullptr);
    };
  }
  ~Workers() {
    Add(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }
  ThreadPool pool() {
    return ThreadPool(&api_, reinterpret_cast<XLA_FFI_ExecutionContext*>(this));
  }

 private:
  static Workers& Of(XLA_FFI_ExecutionContext* context) {
    return *reinterpret_cast<Workers*>(context);
  }
  void Add(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_all();
  }
  // The empty task, the last, stays for the other threads.
  void Work() {
    while (true) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      std::function<void()> task = tasks_.front();
      if (!task) return;
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  XLA_FFI_Api api_ = {};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

// Computes with one thread and with some; `call` takes a pool and a result.
template <typename T, typename Compute>
void Check(const char* name, const Sizes& shape, const Compute& compute) {
  Numbers<T> alone(shape), together(shape);
  Workers none(0), some(3);
  compute(none.pool(), alone.array());
  compute(some.pool(), together.array());
  if (alone.IsFinite() && !std::memcmp(alone.data, together.data, alone.size * sizeof(T))) {
    return;
  }
  std::fprintf(stderr, "%s of %zu bytes is wrong\n", name, sizeof(T));
  std::exit(1);
}

template <typename T>
void Run(const int64_t* sizes) {
  const int64_t n = sizes[0], h = sizes[1], w = sizes[2], c = sizes[3], f = sizes[4];
  const int64_t kh = sizes[5], kw = sizes[6], stride = sizes[7], padding = sizes[8];
  const Sizes out = {n, (h + 2 * padding - kh) / stride + 1,
                     (w + 2 * padding - kw) / stride + 1, f};
  Numbers<T> x({n, h, w, c}), kernel({kh, kw, c, f}), dy(out);
  Numbers<float> shift({f}), added(out);
  x.Fill(), kernel.Fill(), dy.Fill(), shift.Fill(), added.Fill();
  for (int count : {0, 1, 2}) {
    Check<T>("convolution", out, [&](const ThreadPool& pool, Array<T> y) {
      Convolution(pool, x.array(), kernel.array(), count > 0 ? shift.data : nullptr,
                  count > 1 ? added.data : nullptr, stride, padding, count == 2, y);
    });
  }
  if constexpr (std::is_same_v<T, float>) {
    const int64_t panel = f % (2 * kLanes) ? kLanes : 2 * kLanes;
    std::vector<Sizes> packed = {{f / panel, kh, kw, c, panel}};
    if (kh == 3 && kw == 3 && stride == 1 && c % kLanes == 0) {
      packed.push_back({kPlaces, f / panel, c, panel});
    }
    for (const Sizes& order : packed) {
      Numbers<float> factors(order);
      factors.Fill();
      Check<float>("packed convolution", out, [&](const ThreadPool& pool, Array<float> y) {
        PackedConvolution(pool, x.array(), factors.array(), shift.data, added.data, stride,
                          padding, true, y);
      });
    }
  }
  Check<float>("kernel gradient", kernel.shape, [&](const ThreadPool& pool, Array<float> y) {
    ConvKernelGradient(pool, x.array(), dy.array(), stride, padding, y);
  });
  Check<float>("moments", {2, f}, [&](const ThreadPool& pool, Array<float> y) {
    Moments(pool, dy.array(), y);
  });
  Check<float>("batch-norm sums", {2, f}, [&](const ThreadPool& pool, Array<float> y) {
    GradientSums(pool, dy.array(), shift.array(), dy.array(), y);
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
