#pragma once

// New tensors for both backends.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace ltdd {

// An uninitialised tensor of these sizes and strides on the device of x. torch::stable makes the
// same, but by way of the dispatcher: four times as long, as much as a small operator.
inline torch::stable::Tensor new_strided(const torch::stable::Tensor& x,
                                         torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                         torch::headeronly::IntHeaderOnlyArrayRef strides,
                                         torch::headeronly::ScalarType dtype) {
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &device_index));
  const int32_t code =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));  // as torch's own do
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), code,
                                                         device_type, device_index, &handle));
  return torch::stable::Tensor(handle);
}

// The same, contiguous.
inline torch::stable::Tensor new_empty(const torch::stable::Tensor& x,
                                       torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                       torch::headeronly::ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = step;
    step *= std::max<int64_t>(1, sizes[dim]);
  }
  return new_strided(x, sizes, {strides.data(), strides.size()}, dtype);
}

}  // namespace ltdd
