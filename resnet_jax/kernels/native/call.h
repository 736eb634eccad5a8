// A custom call of XLA: its arrays, numbers and threads, through XLA's interface for C. The
// one for C++, "xla/ffi/api/ffi.h", does the same, but takes five seconds to compile.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "xla/ffi/api/c_api.h"

namespace {

// An array's numbers are float, or bfloat16: the upper half of a float.
using Half = uint16_t;
template <typename T>
constexpr XLA_FFI_DataType kDtype = XLA_FFI_DataType_F32;
template <>
constexpr XLA_FFI_DataType kDtype<Half> = XLA_FFI_DataType_BF16;

struct Shape {
  const int64_t* sizes;
  int64_t rank;

  int64_t operator[](int64_t i) const { return sizes[i]; }
  int64_t last() const { return sizes[rank - 1]; }
  int64_t count() const {
    int64_t product = 1;
    for (int64_t i = 0; i < rank; ++i) product *= sizes[i];
    return product;
  }
};

// Row-major, as `jax.ffi.ffi_call` has arrays if nothing else is said.
template <typename T>
struct Array {
  T* data;
  Shape shape;
};

// A struct of XLA's interface, filled with what follows its two first fields.
#define XLA_ARGUMENTS(name, ...) \
  name##_Args { name##_Args_STRUCT_SIZE, nullptr, __VA_ARGS__ }

// The threads on which XLA computes.
class ThreadPool {
 public:
  ThreadPool(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context)
      : api_(api), context_(context) {}

  // 1 where XLA cannot tell.
  int64_t threads() const {
    int64_t threads = 0;
    auto arguments = XLA_ARGUMENTS(XLA_FFI_ThreadPool_NumThreads, context_, &threads);
    Drop(api_->XLA_FFI_ThreadPool_NumThreads(&arguments));
    return std::max<int64_t>(1, threads);
  }

  // Runs a task some time: on one of the threads, or at once if there is none.
  template <typename Task>
  void Schedule(Task task) const {
    Task* data = new Task(std::move(task));
    auto run = [](void* data) {
      Task* task = static_cast<Task*>(data);
      (*task)();
      delete task;
    };
    auto arguments = XLA_ARGUMENTS(XLA_FFI_ThreadPool_Schedule, context_, run, data);
    if (Drop(api_->XLA_FFI_ThreadPool_Schedule(&arguments))) run(data);
  }

 private:
  // Whether there is an error, which then ends here.
  bool Drop(XLA_FFI_Error* error) const {
    auto arguments = XLA_ARGUMENTS(XLA_FFI_Error_Destroy, error);
    if (error) api_->XLA_FFI_Error_Destroy(&arguments);
    return error;
  }

  const XLA_FFI_Api* api_;
  XLA_FFI_ExecutionContext* context_;
};

class Call {
 public:
  explicit Call(const XLA_FFI_CallFrame* frame) : frame_(frame) {}

  ThreadPool pool() const { return {frame_->api, frame_->ctx}; }
  int64_t arguments() const { return frame_->args.size; }
  template <typename T>
  Array<T> argument(int64_t i) const {
    Require(i < frame_->args.size, "a custom call has too few arguments");
    return AsArray<T>(frame_->args.args[i]);
  }
  // The first and only result.
  template <typename T>
  Array<T> result() const {
    Require(frame_->rets.size == 1, "a custom call has another number of results than 1");
    return AsArray<T>(frame_->rets.rets[0]);
  }
  // A number that the call has beside its arrays.
  template <typename T = int64_t>
  T attribute(const char* name) const {
    const XLA_FFI_Attrs& all = frame_->attrs;
    int64_t i = 0;
    auto is_named = [&](const XLA_FFI_ByteSpan& span) {
      return span.len == std::strlen(name) && !std::memcmp(span.ptr, name, span.len);
    };
    while (i < all.size && !is_named(*all.names[i])) ++i;
    const auto dtype =
        std::is_same_v<T, bool> ? XLA_FFI_DataType_PRED : XLA_FFI_DataType_S64;
    Require(i < all.size && all.types[i] == XLA_FFI_AttrType_SCALAR, name);
    const auto* scalar = static_cast<const XLA_FFI_Scalar*>(all.attrs[i]);
    Require(scalar->dtype == dtype, name);
    return *static_cast<const T*>(scalar->value);
  }

 private:
  static void Require(bool holds, const char* text) {
    if (!holds) throw std::invalid_argument(text);
  }
  template <typename T>
  static Array<T> AsArray(const void* from) {
    const auto* buffer = static_cast<const XLA_FFI_Buffer*>(from);
    Require(buffer->dtype == kDtype<T>, "an array of a custom call has another dtype");
    return {static_cast<T*>(buffer->data), {buffer->dims, buffer->rank}};
  }

  const XLA_FFI_CallFrame* frame_;
};

// Answers XLA, which also asks for the version of its interface. No exception leaves this
// function; in a task it ends the process.
template <void function(const Call&)>
XLA_FFI_Error* Handle(XLA_FFI_CallFrame* frame) {
  for (auto* asked = frame->extension_start; asked; asked = asked->next) {
    if (asked->type != XLA_FFI_Extension_Metadata) continue;
    XLA_FFI_Metadata* answer = reinterpret_cast<XLA_FFI_Metadata_Extension*>(asked)->metadata;
    answer->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                           XLA_FFI_API_MINOR};
    answer->traits = 0;
    return nullptr;
  }
  auto fail = [frame](const char* text, XLA_FFI_Error_Code code) {
    auto arguments = XLA_ARGUMENTS(XLA_FFI_Error_Create, text, code);
    return frame->api->XLA_FFI_Error_Create(&arguments);
  };
  try {
    function(Call(frame));
    return nullptr;
  } catch (const std::bad_alloc&) {
    return fail("no memory for a layer", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  } catch (const std::invalid_argument& error) {
    return fail(error.what(), XLA_FFI_Error_Code_INVALID_ARGUMENT);
  }
}

}  // namespace
