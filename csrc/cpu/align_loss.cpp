// align_loss: the alignment objective of all layers, global and class-wise, and its gradient.
//
//   loss = sum_l w_l (|m_l - gm_l| + |v_l - gv_l|)
//        + class_weight mean_c sum_l w_l (|m_lc - cm_lc| + |v_lc - cv_lc|),  c over the classes
//        present
//
// m, v: mean and biased variance of each channel over the rows of a group (common/alignment.h).
// Group 0 is the whole batch, the others are the classes present, in order of class. Per layer:
// statistics of every group (channels split over tasks), norms (one thread, in order, so the loss
// does not depend on the number of threads), then the gradient of every row in one pass.
// Inner arithmetic is double; traffic: the rows three times, which is small beside one activation.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../common/alignment.h"
#include "tensors.h"

namespace ltdd {
namespace {

constexpr const char* kOp = "align_loss";
constexpr int64_t kBlock = 64;  // channels of one task

struct Group {
  int64_t target;             // class, or -1 for the whole batch
  double weight;              // of the group's norms before the weight of the layer
  std::vector<int64_t> rows;  // samples in it, in order
};

// The whole batch, then the classes present; group_of[n] is the class group of sample n or 0.
std::vector<Group> make_groups(const int64_t* label, int64_t n, int64_t num_classes,
                               double class_weight, std::vector<int64_t>& group_of) {
  std::vector<Group> groups(1);
  groups[0] = {-1, 1.0, {}};
  for (int64_t i = 0; i < n; ++i) groups[0].rows.push_back(i);
  group_of.assign(n, 0);
  if (class_weight == 0.0) return groups;
  check_labels(kOp, label, n, num_classes);
  std::vector<int64_t> slot(num_classes, 0);
  for (int64_t i = 0; i < n; ++i) slot[label[i]] = 1;
  for (int64_t k = 0; k < num_classes; ++k) {
    if (slot[k] == 0) continue;
    slot[k] = static_cast<int64_t>(groups.size());
    groups.push_back({k, 0.0, {}});
  }
  for (int64_t i = 0; i < n; ++i) {
    group_of[i] = slot[label[i]];
    groups[group_of[i]].rows.push_back(i);
  }
  for (size_t g = 1; g < groups.size(); ++g)
    groups[g].weight = class_weight / static_cast<double>(groups.size() - 1);
  return groups;
}

// A target of any float dtype as double, contiguous.
const double* target_data(const Tensor& target, std::vector<Tensor>& keep) {
  keep.push_back(contiguous_as(target, ScalarType::Double));
  return static_cast<const double*>(keep.back().const_data_ptr());
}

struct Targets {
  const double *global_mean, *global_var, *class_mean, *class_var;
};

template <typename row_t>
struct Layer {
  const row_t *mean, *m2;      // [N, C]
  row_t *grad_mean, *grad_m2;  // [N, C]
  int64_t n, channels;
  double size, weight;
  Targets targets;

  // Per group and channel: the mean, then mean gap and variance gap, which become d loss / d mean
  // and d loss / d var once the norms are known.
  std::vector<double> group_mean, mean_gap, var_gap;

  void measure(const std::vector<Group>& groups, int64_t begin, int64_t end) {
    double sum[kBlock], gap2[kBlock], sum_m2[kBlock];
    for (size_t g = 0; g < groups.size(); ++g) {
      const Group& group = groups[g];
      const double rows = static_cast<double>(group.rows.size());
      for (int64_t j = 0; j < kBlock; ++j) sum[j] = gap2[j] = sum_m2[j] = 0.0;
      for (const int64_t i : group.rows)
        for (int64_t c = begin; c < end; ++c) {
          sum[c - begin] += mean[i * channels + c];
          sum_m2[c - begin] += m2[i * channels + c];
        }
      for (int64_t c = begin; c < end; ++c) sum[c - begin] /= rows;
      for (const int64_t i : group.rows)
        for (int64_t c = begin; c < end; ++c) {
          const double gap = mean[i * channels + c] - sum[c - begin];
          gap2[c - begin] += gap * gap;
        }
      const bool whole = group.target < 0;
      const double* to_mean =
          whole ? targets.global_mean : targets.class_mean + group.target * channels;
      const double* to_var =
          whole ? targets.global_var : targets.class_var + group.target * channels;
      for (int64_t c = begin; c < end; ++c) {
        const int64_t at = static_cast<int64_t>(g) * channels + c;
        const double var = group_var(sum_m2[c - begin], gap2[c - begin], rows, size);
        group_mean[at] = sum[c - begin];
        mean_gap[at] = sum[c - begin] - to_mean[c];
        var_gap[at] = var - to_var[c];
      }
    }
  }

  // Replaces the gaps by derivatives and returns this layer's part of the loss.
  double close(const std::vector<Group>& groups) {
    double loss = 0.0;
    for (size_t g = 0; g < groups.size(); ++g) {
      const double scale = weight * groups[g].weight;
      for (std::vector<double>* gaps : {&mean_gap, &var_gap}) {
        double* gap = gaps->data() + g * channels;
        double sum = 0.0;
        for (int64_t c = 0; c < channels; ++c) sum += gap[c] * gap[c];
        const double norm = std::sqrt(sum);
        for (int64_t c = 0; c < channels; ++c) gap[c] = norm_gradient(scale, gap[c], norm);
        loss += scale * norm;
      }
    }
    return loss;
  }

  void differentiate(const std::vector<Group>& groups, const std::vector<int64_t>& group_of,
                     int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t g = group_of[i];
      const double all_rows = static_cast<double>(n);
      const double class_rows = static_cast<double>(groups[g].rows.size());
      for (int64_t c = begin; c < end; ++c) {
        const int64_t at = i * channels + c;
        RowGradient grad =
            row_gradient(mean_gap[c], var_gap[c], mean[at], group_mean[c], all_rows, size);
        if (g > 0) {
          const int64_t in_group = g * channels + c;
          const RowGradient own = row_gradient(mean_gap[in_group], var_gap[in_group], mean[at],
                                               group_mean[in_group], class_rows, size);
          grad.mean += own.mean;
          grad.m2 += own.m2;
        }
        grad_mean[at] = static_cast<row_t>(grad.mean);
        grad_m2[at] = static_cast<row_t>(grad.m2);
      }
    }
  }
};

template <typename row_t>
double run(std::vector<Layer<row_t>>& layers, const std::vector<Group>& groups,
           const std::vector<int64_t>& group_of) {
  double loss = 0.0;
  for (Layer<row_t>& layer : layers) {
    for (auto* buffer : {&layer.group_mean, &layer.mean_gap, &layer.var_gap})
      buffer->assign(groups.size() * layer.channels, 0.0);
    const int64_t blocks = (layer.channels + kBlock - 1) / kBlock;
    const auto range = [&](int64_t block, auto&& body) {
      body(block * kBlock, std::min((block + 1) * kBlock, layer.channels));
    };
    for_each_task(blocks, 2 * layer.n * kBlock, [&](int64_t block) {
      range(block, [&](int64_t begin, int64_t end) { layer.measure(groups, begin, end); });
    });
    loss += layer.close(groups);
    for_each_task(blocks, 2 * layer.n * kBlock, [&](int64_t block) {
      range(block,
            [&](int64_t begin, int64_t end) { layer.differentiate(groups, group_of, begin, end); });
    });
  }
  return loss;
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> align_loss_cpu(
    const std::vector<Tensor>& means, const std::vector<Tensor>& m2s, std::vector<int64_t> sizes,
    const Tensor& labels, const std::vector<Tensor>& global_means,
    const std::vector<Tensor>& global_vars, const std::vector<Tensor>& class_means,
    const std::vector<Tensor>& class_vars, std::vector<double> weights, double class_weight) {
  const int64_t num_layers = static_cast<int64_t>(means.size());
  if (num_layers == 0) refuse(kOp, "at least one layer, got 0");
  const int64_t n = labels.numel();
  const bool by_class = class_weight != 0.0;
  check_vector(kOp, "labels", labels, n);
  check_count(kOp, "m2s", m2s.size(), num_layers);
  check_count(kOp, "sizes", sizes.size(), num_layers);
  check_count(kOp, "global_means", global_means.size(), num_layers);
  check_count(kOp, "global_vars", global_vars.size(), num_layers);
  check_count(kOp, "weights", weights.size(), num_layers);
  if (by_class) check_count(kOp, "class_means", class_means.size(), num_layers);
  if (by_class) check_count(kOp, "class_vars", class_vars.size(), num_layers);
  const int64_t num_classes = by_class ? class_means[0].size(0) : 0;

  std::vector<Tensor> keep, grad_means, grad_m2s;
  const Tensor dense_labels = contiguous_as(labels, ScalarType::Long);
  std::vector<int64_t> group_of;
  const std::vector<Group> groups =
      make_groups(static_cast<const int64_t*>(dense_labels.const_data_ptr()), n, num_classes,
                  class_weight, group_of);
  const ScalarType row_dtype = acc_dtype(means[0].scalar_type());
  const Tensor loss = new_empty(means[0], {}, row_dtype);

  const auto run_as = [&]<typename row_t>() {
    std::vector<Layer<row_t>> layers(num_layers);
    for (int64_t l = 0; l < num_layers; ++l) {
      if (means[l].dim() != 2) refuse(kOp, "means of shape (N, C), got ", shape_of(means[l]));
      const int64_t channels = means[l].size(1);
      check_matrix(kOp, "means", means[l], n, channels);
      check_matrix(kOp, "m2s", m2s[l], n, channels);
      check_vector(kOp, "global_means", global_means[l], channels);
      check_vector(kOp, "global_vars", global_vars[l], channels);
      if (by_class) check_matrix(kOp, "class_means", class_means[l], num_classes, channels);
      if (by_class) check_matrix(kOp, "class_vars", class_vars[l], num_classes, channels);
      grad_means.push_back(new_empty(means[l], means[l].sizes(), row_dtype));
      grad_m2s.push_back(new_empty(means[l], means[l].sizes(), row_dtype));
      Layer<row_t>& layer = layers[l];
      keep.push_back(contiguous_as(means[l], row_dtype));
      layer.mean = static_cast<const row_t*>(keep.back().const_data_ptr());
      keep.push_back(contiguous_as(m2s[l], row_dtype));
      layer.m2 = static_cast<const row_t*>(keep.back().const_data_ptr());
      layer.grad_mean = static_cast<row_t*>(grad_means.back().mutable_data_ptr());
      layer.grad_m2 = static_cast<row_t*>(grad_m2s.back().mutable_data_ptr());
      layer.n = n;
      layer.channels = channels;
      layer.size = static_cast<double>(sizes[l]);
      layer.weight = weights[l];
      layer.targets = {target_data(global_means[l], keep), target_data(global_vars[l], keep),
                       by_class ? target_data(class_means[l], keep) : nullptr,
                       by_class ? target_data(class_vars[l], keep) : nullptr};
    }
    *static_cast<row_t*>(loss.mutable_data_ptr()) =
        static_cast<row_t>(run(layers, groups, group_of));
  };
  if (row_dtype == ScalarType::Double)
    run_as.template operator()<double>();
  else
    run_as.template operator()<float>();
  return {loss, grad_means, grad_m2s};
}

}  // namespace
}  // namespace ltdd

STABLE_TORCH_LIBRARY_IMPL(ltdd_ext, CPU, m) {
  m.impl("align_loss", TORCH_BOX(&ltdd::align_loss_cpu));
}
