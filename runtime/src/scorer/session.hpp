// A bundle opened in an engine.
#pragma once

#include <stdint.h>

#include <memory>
#include <optional>
#include <string>

#include "bundle.hpp"
#include "log.hpp"
#include "memory.hpp"

namespace odin::detail {

// Where results go; null: nowhere. On the host or on the device, all of them.
struct Targets {
  float* score;
  float* baseline;
  int64_t* label;
  float* logits;  // (count, classes)
  odin_memory memory;
};

struct SessionOptions {
  std::string precision;  // in which to compute
  int32_t threads;        // 0: the engine's choice
  int32_t streams;        // parts computed at once; 0: the engine's choice
  int32_t batch_size;     // most images of a part; 0: what the engine is fastest with
  int32_t device;         // number of the GPU
  std::string cache;      // folder of compiled graphs; "": none
  odin_allocator allocator;
  Log log;
};

// Safe to use from several threads at once.
class Session {
 public:
  virtual ~Session() = default;

  // The most images of a part.
  virtual int32_t batch_size() const = 0;

  // The sizes of images that are taken: no more than the bundle's.
  virtual Range height() const = 0;
  virtual Range width() const = 0;

  // Score images, which have been checked; a Failure where the engine fails. An image that is not
  // finite scores NaN.
  virtual void score(const odin_images& images, const Targets& targets) = 0;

  // Queue the same, of images and results on the device, on the caller's stream.
  virtual void enqueue(const odin_images& images, const Targets& targets, void* stream) = 0;
};

// Whether the library was built with OpenVINO, and with TensorRT.
extern const bool kHasOpenVino, kHasTensorRt;

// Open a bundle's graph in OpenVINO, on the CPU. The bundle's content of it is taken.
std::unique_ptr<Session> open_openvino(Bundle& bundle, const SessionOptions& options);

// Why the bundle's plans cannot be run in a precision ("": theirs) on a GPU here, as far as is
// known before they are opened; nothing if they can.
std::optional<Failure> tensorrt_problem(const Bundle& bundle, const std::string& precision,
                                        int32_t device);

// Open a bundle's plans in TensorRT. The bundle's content of them is taken.
std::unique_ptr<Session> open_tensorrt(Bundle& bundle, const SessionOptions& options);

}  // namespace odin::detail
