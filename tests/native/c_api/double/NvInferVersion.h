// The version of the double, written as TensorRT's headers write theirs.
#pragma once

#define TRT_MAJOR_ENTERPRISE 99
#define TRT_MINOR_ENTERPRISE 1
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE
#define NV_TENSORRT_VERSION 990102
