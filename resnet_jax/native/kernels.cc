// Custom calls of XLA for a CPU, in float32.
//
// How many threads there are, and which of them computes a part, leaves no trace in a
// result.

#include <new>

#include "batch_norm.h"
#include "conv.h"

// Floats of a vector: the features of a convolution must be a multiple.
extern "C" int resnet_jax_lanes() { return kLanes; }

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
#define OF_CONVOLUTION \
  .Arg<Array>().Arg<Array>().Attr<int64_t>("stride").Attr<int64_t>("padding").Ret<Array>()

DEFINE(resnet_jax_conv, ConvForward, OF_CONVOLUTION);
DEFINE(resnet_jax_conv_kernel_gradient, ConvKernelGradient, OF_CONVOLUTION);
DEFINE(resnet_jax_moments, Moments, .Arg<Array>().Ret<Array>());
DEFINE(resnet_jax_batch_norm_sums, GradientSums,
       .Arg<Array>().Arg<Array>().Arg<Array>().Ret<Array>());
