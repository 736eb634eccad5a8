// Custom calls of XLA for a CPU, on arrays of float32 or bfloat16; all sums are float32.
//
// How many threads there are, and which of them computes a part, leaves no trace in a
// result.

#include "batch_norm.h"
#include "kernel_gradient.h"
#include "winograd.h"

// Floats of a vector: the features of a convolution must be a multiple.
extern "C" int resnet_jax_lanes() { return kLanes; }

namespace {

// `shift` and `added` are what to add to each channel of the result, and what else to add,
// in the shape of the result; null for none.
template <typename T>
Output DescribeOutput(const float* shift, const float* added, bool relu, Array<T> y) {
  Output output = {nullptr, nullptr, shift, added, relu};
  if constexpr (std::is_same_v<T, Half>) {
    output.halves = y.data;
  } else {
    output.y = y.data;
    output.is_streamed = y.shape.count() * sizeof(T) > kMostCached &&
                         reinterpret_cast<uintptr_t>(y.data) % sizeof(Vector) == 0;
  }
  return output;
}

template <typename T>
void Convolution(const ThreadPool& pool, Array<T> x, Array<T> kernel, const float* shift,
                 const float* added, int64_t stride, int64_t padding, bool relu, Array<T> y) {
  const Conv conv = Describe(x.shape, kernel.shape, y.shape, stride, padding);
  (IsForWinograd(conv) ? WinogradForward<T> : ConvForward<T>)(
      pool, conv, x.data, kernel.data, nullptr, DescribeOutput(shift, added, relu, y));
}

#ifndef BFLOAT16_ONLY
// The kernel is packed: [panels, height, width, channels, panel], or for Winograd's
// algorithm [places, panels, channels, panel].
void PackedConvolution(const ThreadPool& pool, Array<float> x, Array<float> kernel,
                       const float* shift, const float* added, int64_t stride,
                       int64_t padding, bool relu, Array<float> y) {
  const Shape& sizes = kernel.shape;
  const bool is_for_winograd = sizes.rank == 4;
  const int64_t taps[] = {is_for_winograd ? 3 : sizes[1], is_for_winograd ? 3 : sizes[2]};
  const Conv conv = Describe(x.shape, {taps, 2}, y.shape, stride, padding);
  (is_for_winograd ? WinogradForward<float> : ConvForward<float>)(
      pool, conv, x.data, nullptr, kernel.data, DescribeOutput(shift, added, relu, y));
}
#endif

// Calls a convolution; what it adds are the arguments after the kernel.
template <typename T, auto convolution>
void CallConvolution(const Call& call) {
  auto added = [&](int64_t i) {
    return i < call.arguments() ? call.argument<float>(i).data : nullptr;
  };
  convolution(call.pool(), call.argument<T>(0), call.argument<T>(1), added(2), added(3),
              call.attribute("stride"), call.attribute("padding"),
              call.attribute<bool>("relu"), call.result<T>());
}
template <typename T>
void CallKernelGradient(const Call& call) {
  ConvKernelGradient(call.pool(), call.argument<T>(0), call.argument<T>(1),
                     call.attribute("stride"), call.attribute("padding"),
                     call.result<float>());
}
template <typename T>
void CallMoments(const Call& call) {
  Moments(call.pool(), call.argument<T>(0), call.result<float>());
}
template <typename T>
void CallGradientSums(const Call& call) {
  GradientSums(call.pool(), call.argument<T>(0), call.argument<float>(1),
               call.argument<T>(2), call.result<float>());
}

}  // namespace

#define HANDLER(name, ...)                                                  \
  extern "C" XLA_FFI_Error* resnet_jax_##name(XLA_FFI_CallFrame* frame) { \
    return Handle<__VA_ARGS__>(frame);                                      \
  }
#define HANDLERS(T, dtype)                                              \
  HANDLER(conv_##dtype, CallConvolution<T, Convolution<T>>)             \
  HANDLER(conv_kernel_gradient_##dtype, CallKernelGradient<T>)          \
  HANDLER(moments_##dtype, CallMoments<T>)                              \
  HANDLER(batch_norm_sums_##dtype, CallGradientSums<T>)

// Each dtype can have a library of its own, because compiling takes seconds.
#ifndef BFLOAT16_ONLY
HANDLERS(float, float32)
HANDLER(packed_conv_float32, CallConvolution<float, PackedConvolution>)
#endif
#ifndef FLOAT32_ONLY
HANDLERS(Half, bfloat16)
#endif
