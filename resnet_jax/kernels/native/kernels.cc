// Custom calls of XLA for a CPU, on arrays of float32 or bfloat16; all sums are float32.
//
// How many threads there are, and which of them computes a part, leaves no trace in a
// result.

#include <new>

#include "batch_norm.h"
#include "kernel_gradient.h"
#include "winograd.h"

// Floats of a vector: the features of a convolution must be a multiple.
extern "C" int resnet_jax_lanes() { return kLanes; }

// `rest` may be what to multiply each channel of the result by, and what to add to it; then
// what else to add, in the shape of the result.
template <typename T>
ffi::Error Convolution(ffi::ThreadPool pool, Array<T> x, Array<T> kernel,
                       ffi::RemainingArgs rest, int64_t stride, int64_t padding, bool relu,
                       Result<T> y) {
  auto optional = [&](size_t i) {
    return i < rest.size() ? rest.get<Array<float>>(i)->typed_data() : nullptr;
  };
  Output output = {nullptr, nullptr, optional(1), optional(2), relu};
  if constexpr (std::is_same_v<T, Half>) {
    output.halves = y->typed_data();
  } else {
    output.y = y->typed_data();
    output.is_streamed = y->size_bytes() > kMostCached &&
                         reinterpret_cast<uintptr_t>(output.y) % sizeof(Vector) == 0;
  }
  const Conv conv =
      Describe(x.dimensions(), kernel.dimensions(), y->dimensions(), stride, padding);
  (IsForWinograd(conv) ? WinogradForward<T> : ConvForward<T>)(
      pool, conv, x.typed_data(), kernel.typed_data(), optional(0), output);
  return ffi::Error::Success();
}

// No exception leaves a handler; in a task it ends the process.
template <auto function>
struct Guarded;
template <typename... Args, ffi::Error (*function)(ffi::ThreadPool, Args...)>
struct Guarded<function> {
  static ffi::Error Call(ffi::ThreadPool pool, Args... args) {
    try {
      return function(pool, args...);
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for a layer");
    }
  }
};

// All arrays are row-major, as `jax.ffi.ffi_call` has them if nothing else is said.
#define HANDLER(name, function, binding)                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_##name, Guarded<function>::Call, \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() binding)
#define OF_CONVOLUTION .Attr<int64_t>("stride").Attr<int64_t>("padding")
#define HANDLERS(T, dtype)                                                              \
  HANDLER(conv_##dtype, Convolution<T>, .Arg<Array<T>>().Arg<Array<T>>().RemainingArgs() \
          OF_CONVOLUTION.Attr<bool>("relu").Ret<Array<T>>());                           \
  HANDLER(conv_kernel_gradient_##dtype, ConvKernelGradient<T>,                          \
          .Arg<Array<T>>().Arg<Array<T>>() OF_CONVOLUTION.Ret<Array<float>>());         \
  HANDLER(moments_##dtype, Moments<T>, .Arg<Array<T>>().Ret<Array<float>>());           \
  HANDLER(batch_norm_sums_##dtype, GradientSums<T>,                                     \
          .Arg<Array<T>>().Arg<Array<float>>().Arg<Array<T>>().Ret<Array<float>>())

HANDLERS(float, float32);
HANDLERS(Half, bfloat16);
