// align_loss and its gradients against double: classes fewer and more than samples, absent classes,
// labels out of range, several layers, more layers than one launch carries.

#include <cmath>

#include "harness.h"

namespace {

using namespace harness;
using ltdd::cuda::AlignLayer;

template <typename row_t, typename target_t>
struct Layer {
  int64_t channels;
  double size, weight;
  Buffer<row_t> mean, m2, grad_mean, grad_m2;
  Buffer<target_t> global_mean, global_var, class_mean, class_var;

  Layer(int64_t images, int64_t classes, int64_t c, uint64_t seed)
      : channels(c),
        size(static_cast<double>(16 + seed)),
        weight(1.0 / static_cast<double>(1 + seed)),
        mean(numbers<row_t>(100 + seed, images * c, 0.3)),
        m2(numbers<row_t>(200 + seed, images * c, 20.0, 5.0)),
        grad_mean(images * c),
        grad_m2(images * c),
        global_mean(numbers<target_t>(300 + seed, c)),
        global_var(numbers<target_t>(400 + seed, c, 1.5)),
        class_mean(numbers<target_t>(500 + seed, classes * c)),
        class_var(numbers<target_t>(600 + seed, classes * c, 1.5)) {}

  AlignLayer view() {
    return {mean.data(),
            m2.data(),
            global_mean.data(),
            global_var.data(),
            class_mean.data(),
            class_var.data(),
            grad_mean.data(),
            grad_m2.data(),
            channels,
            size,
            weight,
            std::is_same_v<target_t, double>};
  }
};

struct Gradients {
  std::vector<double> mean, m2;
};

// Adds one group of samples to the loss and to the gradients of the layer.
template <typename row_t, typename target_t>
double add_group(const Layer<row_t, target_t>& layer, const std::vector<int64_t>& samples,
                 const Buffer<target_t>& to_mean, const Buffer<target_t>& to_var, int64_t from,
                 double weight, Gradients& grad) {
  const double rows = static_cast<double>(samples.size());
  std::vector<double> means, mean_gap, var_gap;
  double mean_norm = 0, var_norm = 0;
  for (int64_t c = 0; c < layer.channels; ++c) {
    double mean = 0, gap2 = 0, m2 = 0;
    for (const int64_t n : samples) mean += layer.mean.value(n * layer.channels + c) / rows;
    for (const int64_t n : samples) {
      gap2 += std::pow(layer.mean.value(n * layer.channels + c) - mean, 2);
      m2 += layer.m2.value(n * layer.channels + c);
    }
    means.push_back(mean);
    mean_gap.push_back(mean - to_mean.value(from + c));
    var_gap.push_back(m2 / (rows * layer.size) + gap2 / rows - to_var.value(from + c));
    mean_norm += mean_gap[c] * mean_gap[c];
    var_norm += var_gap[c] * var_gap[c];
  }
  mean_norm = std::sqrt(mean_norm);
  var_norm = std::sqrt(var_norm);
  for (const int64_t n : samples)
    for (int64_t c = 0; c < layer.channels; ++c) {
      const size_t at = n * layer.channels + c;
      const double by_mean = mean_norm == 0 ? 0 : weight * mean_gap[c] / mean_norm;
      const double by_var = var_norm == 0 ? 0 : weight * var_gap[c] / var_norm;
      grad.mean[at] += by_mean / rows + 2 * by_var * (layer.mean.value(at) - means[c]) / rows;
      grad.m2[at] += by_var / (rows * layer.size);
    }
  return weight * (mean_norm + var_norm);
}

template <typename row_t, typename target_t>
void check(int64_t images, int64_t classes, const std::vector<int64_t>& channels,
           double class_weight, bool exact_targets = false, bool stray_labels = false) {
  const std::string what = "align_loss N " + std::to_string(images) + " K " +
                           std::to_string(classes) + " L " + std::to_string(channels.size());
  const double rounding = kRounding<row_t>;
  Buffer<int64_t> labels(images);
  for (int64_t n = 0; n < images; ++n)
    labels[n] = static_cast<int64_t>(std::fabs(number(7, n)) * static_cast<double>(classes));
  if (stray_labels) labels[3] = -5;
  if (stray_labels) labels[5] = classes;

  std::vector<Layer<row_t, target_t>> layers;
  for (size_t l = 0; l < channels.size(); ++l) layers.emplace_back(images, classes, channels[l], l);
  if (exact_targets)  // one sample: its own statistics are the targets, so every norm is 0
    for (auto& layer : layers)
      for (int64_t c = 0; c < layer.channels; ++c) {
        layer.global_mean[c] = layer.mean[c];
        layer.m2[c] = 0;
        layer.global_var[c] = 0;
      }
  std::vector<AlignLayer> views;
  for (auto& layer : layers) views.push_back(layer.view());
  const int count = static_cast<int>(views.size());
  Buffer<char> scratch(
      ltdd::cuda::align_loss_scratch_bytes(views.data(), count, images, classes, class_weight));
  Buffer<row_t> loss(1);
  ltdd::cuda::align_loss(views.data(), count, type_of<row_t>, labels.data(), images, classes,
                         class_weight, loss.data(), scratch.data(), nullptr);
  record(loss);

  std::vector<int64_t> everyone;
  std::vector<std::vector<int64_t>> of_class(classes);
  for (int64_t n = 0; n < images; ++n) {
    everyone.push_back(n);
    if (labels[n] >= 0 && labels[n] < classes) of_class[labels[n]].push_back(n);
  }
  double present = 0, expected = 0;
  for (const auto& samples : of_class) present += samples.empty() ? 0 : 1;
  for (auto& layer : layers) {
    record(layer.grad_mean);
    record(layer.grad_m2);
    Gradients grad{std::vector<double>(images * layer.channels),
                   std::vector<double>(images * layer.channels)};
    expected +=
        add_group(layer, everyone, layer.global_mean, layer.global_var, 0, layer.weight, grad);
    if (class_weight != 0)
      for (int64_t k = 0; k < classes; ++k)
        if (!of_class[k].empty())
          expected += add_group(layer, of_class[k], layer.class_mean, layer.class_var,
                                k * layer.channels, class_weight / present * layer.weight, grad);
    for (size_t i = 0; i < grad.mean.size(); ++i) {
      const double scale = layer.weight * (1 + class_weight) / static_cast<double>(images);
      expect_close(what + " grad_mean", i, layer.grad_mean.value(i), grad.mean[i],
                   4 * rounding * (std::fabs(grad.mean[i]) + scale));
      expect_close(what + " grad_m2", i, layer.grad_m2.value(i), grad.m2[i],
                   4 * rounding * (std::fabs(grad.m2[i]) + scale / layer.size));
    }
  }
  if (stray_labels && class_weight != 0) expected = NAN;
  expect_close(what + " loss", 0, loss.value(0), expected, 4 * rounding * std::fabs(expected));
}

// A large batch of many classes, every layer of a ResNet-50: scratch that fits beside the images.
void check_scratch() {
  std::vector<AlignLayer> layers;
  for (const int64_t channels : {64, 256, 512, 1024, 2048})
    for (int i = 0; i < 11; ++i) {
      AlignLayer layer{};
      layer.channels = channels;
      layers.push_back(layer);
    }
  const size_t bytes = ltdd::cuda::align_loss_scratch_bytes(
      layers.data(), static_cast<int>(layers.size()), 1000, 1000, 1.0);
  expect(bytes < size_t(64) << 20, "scratch of 1,000 groups: " + std::to_string(bytes));
}

}  // namespace

void test_align_loss() {
  check_scratch();
  check<float, float>(12, 4, {5, 40}, 0.5);
  check<float, double>(20, 6, {33, 64, 7}, 2.0);
  check<float, float>(9, 50, {35, 1}, 1.0);
  check<float, float>(70, 3, {3}, 1.0);
  check<float, float>(9, 4, {35, 1}, 1.0, false, true);
  check<float, float>(9, 20, {3}, 1.0, false, true);
  check<float, float>(9, 4, {3}, 0.0, false, true);
  check<float, float>(11, 0, {8, 9}, 0.0);
  check<double, double>(10, 3, {6, 34}, 0.25);
  check<float, float>(0, 3, {4}, 0.0);
  check<float, float>(1, 1, {4, 5}, 0.0, true);
  check<float, float>(3, 2, std::vector<int64_t>(43, 2), 1.0);
  check<float, float>(9, 12, {100, 40, 70}, 0.5);  // chunks of one layer, terms closed apart
}
