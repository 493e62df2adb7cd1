// A graph opened in an engine.
#pragma once

#include <stdint.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "log.hpp"
#include "memory.hpp"

namespace odin::detail {

// Some images of a batch: how the graph's input is written, and where results go (null: nowhere).
struct Part {
  int64_t count, height, width;
  std::function<void(void*)> write_images;
  float* score;
  float* baseline;
  int64_t* label;
  float* logits;  // (count, classes)
};

struct SessionOptions {
  std::string precision;  // in which to compute
  int32_t threads;        // 0: the engine's choice
  int32_t streams;        // parts computed at once
  std::string cache;      // folder of compiled graphs; "": none
  odin_allocator allocator;
  Log log;
};

// Safe to use from several threads at once.
class Session {
 public:
  virtual ~Session() = default;

  // Compute all parts; a Failure where the engine fails.
  virtual void run(const std::vector<Part>& parts) = 0;
};

// Whether the library was built with OpenVINO.
extern const bool kHasOpenVino;

// Open a bundle's graph in OpenVINO, on the CPU. The bundle's content of it is taken.
std::unique_ptr<Session> open_openvino(Bundle& bundle, const SessionOptions& options);

}  // namespace odin::detail
