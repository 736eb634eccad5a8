// What the kernels use of XLA's header of this name, without XLA: a sanitizer then sees
// all the code that runs, the pool of threads too.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define XLA_FFI_DEFINE_HANDLER_SYMBOL(...)  // Called by their C++ names here.

namespace xla::ffi {

enum DataType { F32, BF16 };
enum class ErrorCode { kResourceExhausted };

struct Error {
  Error() = default;
  Error(ErrorCode, std::string text) : message(text) {}
  static Error Success() { return {}; }
  std::string message;
};

template <typename T>
struct Span {
  const T& operator[](size_t i) const { return from[i]; }
  size_t size() const { return count; }
  const T& back() const { return from[count - 1]; }
  T* from;
  size_t count;
};

template <DataType>
struct Number;
template <>
struct Number<F32> { using Type = float; };
template <>
struct Number<BF16> { using Type = uint16_t; };

template <DataType dtype>
struct Buffer {
  using Type = typename Number<dtype>::Type;
  Type* typed_data() const { return data; }
  Span<const int64_t> dimensions() const { return {shape->data(), shape->size()}; }
  size_t element_count() const {
    size_t count = 1;
    for (int64_t size : *shape) count *= size;
    return count;
  }
  size_t size_bytes() const { return element_count() * sizeof(Type); }
  Type* data;
  const std::vector<int64_t>* shape;
};

template <typename T>
struct Result {
  T* operator->() { return &buffer; }
  T buffer;
};

struct RemainingArgs {
  size_t size() const { return buffers.size(); }
  template <typename T>
  Result<T> get(size_t i) const { return {buffers[i]}; }
  std::vector<Buffer<F32>> buffers;
};

class Workers {
 public:
  explicit Workers(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Workers() {
    Add(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }
  void Add(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_all();
  }
  size_t count() const { return threads_.size(); }

 private:
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
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

struct ThreadPool {
  int64_t num_threads() const { return workers->count(); }
  void Schedule(std::function<void()> task) { workers->Add(std::move(task)); }
  Workers* workers;
};

}  // namespace xla::ffi
