// Every operator of the extension. Kernels are registered where they are written: csrc/cpu for the
// CPU library, csrc/cuda for the CUDA library, shape functions and autograd formulas in ltdd_ext.
//
// N batch, C channels, S = H*W, K classes, L layers. An argument is checked in ltdd_ext before it
// gets here; kernels guard only what would read or write outside a tensor.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ltdd_ext, m) {
  m.def("row_moments(Tensor x) -> (Tensor mean, Tensor m2)");
  m.def("row_moments_backward(Tensor grad_mean, Tensor grad_m2, Tensor x, Tensor mean) -> Tensor");

  m.def(
      "bn_act_moments(Tensor x, Tensor k, Tensor h, Tensor? residual, int act, int pool, "
      "bool keep_passed=False) -> (Tensor y, Tensor mean, Tensor m2, Tensor passed)");
  m.def(
      "bn_act_moments_backward(Tensor grad_y, Tensor grad_mean, Tensor grad_m2, Tensor x, "
      "Tensor k, Tensor h, Tensor? residual, Tensor mean, int act, int pool, "
      "Tensor? grad_shortcut=None, Tensor? passed=None) -> (Tensor dx, Tensor dresidual)");

  m.def(
      "norm_act(Tensor x, Tensor weight, Tensor bias, bool per_image, float eps, int act, "
      "int pool) -> (Tensor y, Tensor mean, Tensor m2)");
  m.def(
      "norm_act_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor bias, Tensor mean, "
      "Tensor m2, bool per_image, float eps, int act, int pool) "
      "-> (Tensor dx, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "norm_act_sums(Tensor grad_y, Tensor x, Tensor k, Tensor h, Tensor mean, int act, int pool) "
      "-> (Tensor sum_g, Tensor sum_gx)");
  m.def(
      "norm_act_double_backward(Tensor gg_x, Tensor gg_weight, Tensor gg_bias, Tensor grad_y, "
      "Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor m2, bool per_image, float eps, "
      "int act, int pool) -> (Tensor gg_y, Tensor dx, Tensor grad_weight)");

  m.def("conv3x3(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def("conv3x3_backward(Tensor grad_y, Tensor x) -> (Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "class_moments(Tensor x, Tensor labels, int num_classes) "
      "-> (Tensor mean, Tensor within, Tensor between, Tensor total)");
  m.def(
      "class_moments_update_(Tensor(a!) count, Tensor(b!) mu, Tensor(c!) within, "
      "Tensor(d!) between, Tensor mean, Tensor m2, int spatial_size, Tensor labels) -> ()");
  m.def(
      "class_moments_merge_(Tensor(a!) count, Tensor(b!) mu, Tensor(c!) within, "
      "Tensor(d!) between, Tensor other_count, Tensor other_mu, Tensor other_within, "
      "Tensor other_between) -> ()");
  m.def(
      "class_moments_finish(Tensor count, Tensor mu, Tensor within, Tensor between) "
      "-> (Tensor mean, Tensor within, Tensor between, Tensor total)");

  m.def(
      "align_loss(Tensor[] means, Tensor[] m2s, int[] sizes, Tensor labels, "
      "Tensor[] global_means, Tensor[] global_vars, Tensor[] class_means, Tensor[] class_vars, "
      "float[] weights, float class_weight) "
      "-> (Tensor loss, Tensor[] grad_means, Tensor[] grad_m2s)");
}
