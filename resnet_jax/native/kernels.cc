// Custom calls of XLA for a CPU, in float32.
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
ffi::Error Convolution(ffi::ThreadPool pool, Array x, Array kernel, ffi::RemainingArgs rest,
                       int64_t stride, int64_t padding, bool relu, Result y) {
  auto optional = [&](size_t i) {
    return i < rest.size() ? rest.get<Array>(i)->typed_data() : nullptr;
  };
  const bool is_streamed = y->size_bytes() > kMostCached &&
                           reinterpret_cast<uintptr_t>(y->typed_data()) % sizeof(Vector) == 0;
  const Conv conv = Describe(x, kernel.dimensions(), y->dimensions(), stride, padding);
  (IsForWinograd(conv) ? WinogradForward : ConvForward)(
      pool, conv, x.typed_data(), kernel.typed_data(), optional(0),
      {optional(1), optional(2), relu, is_streamed}, y->typed_data());
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
#define DEFINE(name, function, binding)                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Guarded<function>::Call,      \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() binding)
#define OF_CONVOLUTION .Attr<int64_t>("stride").Attr<int64_t>("padding")

DEFINE(resnet_jax_conv, Convolution, .Arg<Array>().Arg<Array>().RemainingArgs()
       OF_CONVOLUTION.Attr<bool>("relu").Ret<Array>());
DEFINE(resnet_jax_conv_kernel_gradient, ConvKernelGradient,
       .Arg<Array>().Arg<Array>() OF_CONVOLUTION.Ret<Array>());
DEFINE(resnet_jax_moments, Moments, .Arg<Array>().Ret<Array>());
DEFINE(resnet_jax_batch_norm_sums, GradientSums,
       .Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>());
