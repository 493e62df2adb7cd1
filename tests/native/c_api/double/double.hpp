// What tests ask of the doubles of CUDA and TensorRT, and what these ask of each other.
//
// They are no GPU. They keep books, so that a wrong use is seen: device memory is host memory that
// can be touched only while queued work is done; work is done as late as the rules allow, so that a
// missing wait shows as wrong data; any call can be made to fail.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

namespace odin_double {

// Queue work on a stream.
void launch(cudaStream_t stream, std::function<void()> work);

// Let call number `after` of a function, counted from 0, fail, once.
void fail(const std::string& function, int after);

// Whether this call is to fail.
bool fails(const char* function);

// Something was used in a way that the real one does not allow.
void fault(const std::string& what);
std::string faults();

// How many things of all kinds are alive: memory, streams, events, TensorRT's objects.
void count(int change);
int alive();

// Pieces of work that are queued and not done; streams that were ever made.
int pending();
int streams();

// Let the stream say that it is being captured.
void capture(cudaStream_t stream);

// The device that memory lies on; -1 if it is no device memory, of so many bytes from there on.
int device_of(const void* memory, size_t bytes);

// The device of a stream.
int device_of(cudaStream_t stream);

}  // namespace odin_double
