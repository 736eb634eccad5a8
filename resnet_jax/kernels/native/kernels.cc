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

// `rest` may be what to add to each channel of the result; then what else to add, in the
// shape of the result.
template <typename T>
Output DescribeOutput(const ffi::RemainingArgs& rest, bool relu, Result<T>& y) {
  auto optional = [&](size_t i) {
    return i < rest.size() ? rest.get<Array<float>>(i)->typed_data() : nullptr;
  };
  Output output = {nullptr, nullptr, optional(0), optional(1), relu};
  if constexpr (std::is_same_v<T, Half>) {
    output.halves = y->typed_data();
  } else {
    output.y = y->typed_data();
    output.is_streamed = y->size_bytes() > kMostCached &&
                         reinterpret_cast<uintptr_t>(output.y) % sizeof(Vector) == 0;
  }
  return output;
}

template <typename T>
ffi::Error Convolution(ffi::ThreadPool pool, Array<T> x, Array<T> kernel,
                       ffi::RemainingArgs rest, int64_t stride, int64_t padding, bool relu,
                       Result<T> y) {
  const Conv conv =
      Describe(x.dimensions(), kernel.dimensions(), y->dimensions(), stride, padding);
  (IsForWinograd(conv) ? WinogradForward<T> : ConvForward<T>)(
      pool, conv, x.typed_data(), kernel.typed_data(), nullptr,
      DescribeOutput<T>(rest, relu, y));
  return ffi::Error::Success();
}

// The kernel is packed: [panels, height, width, channels, panel], or for Winograd's
// algorithm [places, panels, channels, panel].
ffi::Error PackedConvolution(ffi::ThreadPool pool, Array<float> x, Array<float> kernel,
                             ffi::RemainingArgs rest, int64_t stride, int64_t padding,
                             bool relu, Result<float> y) {
  const auto sizes = kernel.dimensions();
  const bool is_for_winograd = sizes.size() == 4;
  const int64_t taps[] = {is_for_winograd ? 3 : sizes[1], is_for_winograd ? 3 : sizes[2]};
  const Conv conv = Describe(x.dimensions(), {taps, 2}, y->dimensions(), stride, padding);
  (is_for_winograd ? WinogradForward<float> : ConvForward<float>)(
      pool, conv, x.typed_data(), nullptr, kernel.typed_data(),
      DescribeOutput<float>(rest, relu, y));
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
HANDLER(packed_conv_float32, PackedConvolution,
        .Arg<Array<float>>().Arg<Array<float>>().RemainingArgs()
        OF_CONVOLUTION.Attr<bool>("relu").Ret<Array<float>>());
