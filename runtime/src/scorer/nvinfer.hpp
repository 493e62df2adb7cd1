// What is used of TensorRT. Its library is loaded when it is first needed: who has none can use
// libodin all the same.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "cuda.hpp"
#include "log.hpp"

namespace odin::detail {

// What TensorRT logs in this thread goes to `log` as long as this lives, and its first error is
// kept for the message of a Failure. TensorRT has one logger in a process, the first that it was
// ever given, so a scorer cannot have its own.
class Listening {
 public:
  explicit Listening(const Log& log);
  ~Listening();
  Listening(const Listening&) = delete;
  Listening& operator=(const Listening&) = delete;

 private:
  const Log* before_;
};

// The version of the library that is loaded, "10.13.3.9". A Failure where there is none.
std::string tensorrt_version();

// Whether a plan's version is this one; records may leave the last number out.
bool same_version(const std::string& recorded, const std::string& loaded);

// An input or an output of a plan.
struct Tensor {
  std::string name;
  bool input;
  nvinfer1::DataType type;
  nvinfer1::Dims shape;         // -1 where it varies
  nvinfer1::Dims least, most;  // of an input whose shape varies
};

// The images that a plan takes: a batch's number, height and width.
struct ImageLimits {
  Range count, height, width;
};

// A plan, opened, on the current device. Safe to use from several threads.
class Plan {
 public:
  // A Failure where TensorRT refuses it; `remedy` is the command that builds it.
  Plan(const std::string& content, std::string file, std::string remedy);

  const std::string& file() const { return file_; }
  const std::string& remedy() const { return remedy_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor& images() const;
  const ImageLimits& limits() const { return limits_; }
  bool raw() const { return images().type == nvinfer1::DataType::kUINT8; }

  // Bytes of device memory that a run works in.
  size_t work_bytes() const { return work_bytes_; }

  // An execution context without memory to work in.
  std::unique_ptr<nvinfer1::IExecutionContext> context() const;

 private:
  void read_tensors();
  void read_limits(int32_t channels_axis);

  std::string file_, remedy_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives its engine
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::vector<Tensor> tensors_;
  ImageLimits limits_{};
  size_t work_bytes_ = 0;
};

// A tensor's place on the device.
struct Place {
  const char* name;
  void* address;
};

// What one run at a time of a plan needs. Not safe for several threads.
class Run {
 public:
  // work: plan.work_bytes() of device memory, which outlives this.
  Run(const Plan& plan, void* work);

  // Queue the plan for images of this shape. Every input and output has a place.
  void enqueue(const std::vector<Place>& places, const nvinfer1::Dims& images,
               cudaStream_t stream);

 private:
  const Plan& plan_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  nvinfer1::Dims shape_{};  // that the context was given
};

}  // namespace odin::detail
