// A bundle's plans, opened, and queueing the scoring of one part of a batch.
//
//   fused:  [normalise] -> plan of odin.onnx -> [NaN]
//   split:  [normalise] -> plan of gradient.onnx -> odin_score -> odin_perturb
//                       -> plan of forward.onnx -> odin_score -> [NaN]            (exact)
//           [normalise] -> plan of gradient.onnx -> odin_score -> odin_first_order -> [NaN]
//
// As runtime/odin_runtime/gpu_forms.py. The last step lets an image with a NaN or infinite value
// score NaN whatever the network makes of it: TensorRT may turn NaN into 0, as max(NaN, 0).
#pragma once

#include <optional>

#include "nvinfer.hpp"

namespace odin::detail {

// Numbers that never change, on the device, float32.
struct Constants {
  Constants(const Spec& spec, int64_t most);

  // 1 / (255 std), mean / std and 1 / std of each channel.
  DeviceBytes scale, offset, inverse_std;
  DeviceBytes one, zeros;  // zeros: one for each image
  DeviceBytes temperature, magnitude;
};

// What is opened once and shared by all lanes; it does not change.
struct Model {
  Model(Bundle& bundle, int32_t batch_size);

  Spec spec;
  bool fused;
  std::optional<Plan> odin, gradient, forward;
  ImageLimits limits;  // of all plans, and of the caller's batch size
  std::optional<Constants> constants;

  // Whether the plan takes raw images by itself, and no others.
  bool raw_only() const { return fused && odin->raw(); }
  bool exact() const { return spec.method == "exact"; }
  int64_t most_pixels() const;  // of the largest part: values of all its images
};

// Images of one part, on the device.
struct DevicePart {
  const void* images;  // at a multiple of 256 bytes, unless raw images of a plan that takes float32
  bool raw;
  int64_t count, height, width;
};

// What one part at a time works in: execution contexts and memory for the largest part. The memory
// is free again when what was queued on the stream is done.
class Workspace {
 public:
  explicit Workspace(const Model& model);

  // Queue scoring a part; the results below hold it when that is done.
  void enqueue(const DevicePart& part, cudaStream_t stream);

  // Results: labels, scores and baselines lie in one block, for one copy.
  static size_t label_offset() { return 0; }
  size_t score_offset() const { return score_offset_; }
  size_t baseline_offset() const { return baseline_offset_; }
  size_t results_bytes() const { return results_bytes_; }
  const void* results() const { return results_.data(); }
  const void* logits() const { return logits_.data(); }

 private:
  void run_fused(const DevicePart& part, const void* images, cudaStream_t stream);
  void run_split(const DevicePart& part, const void* images, cudaStream_t stream);
  void exact_scores(const DevicePart& part, const void* images, cudaStream_t stream);
  void mark(const DevicePart& part, cudaStream_t stream);
  void grow(const float* sums, const float* probability, const float* step, float* score,
            int64_t count, cudaStream_t stream) const;

  const Model& model_;
  size_t score_offset_, baseline_offset_, results_bytes_;
  DeviceBytes work_, normalised_, logits_, results_, unmarked_, nan_;
  DeviceBytes gradient_, perturbed_, perturbed_logits_, probability_, total_, further_;
  std::optional<Run> odin_, gradient_run_, forward_run_;
};

}  // namespace odin::detail
