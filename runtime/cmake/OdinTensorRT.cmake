# Finding TensorRT's headers for libodin, and compiling its GPU back end with them.
include(OdinPython)

set(ODIN_TENSORRT AUTO CACHE STRING
    "Build libodin's GPU engine: AUTO (if TensorRT's headers are found), ON (or fail), OFF")
set_property(CACHE ODIN_TENSORRT PROPERTY STRINGS AUTO ON OFF)

# Sets ODIN_HAS_TENSORRT and says with which TensorRT, or why without. Headers are looked for in
# TensorRT_ROOT, CMAKE_PREFIX_PATH and the usual places. The library, libnvinfer, is loaded when a
# program needs it: where it is found now, for one beside the headers or of the Python package
# tensorrt, is remembered for when the loader finds none.
macro(odin_find_tensorrt)
  string(TOUPPER "${ODIN_TENSORRT}" odin_tensorrt)
  if(NOT odin_tensorrt MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "ODIN_TENSORRT is ${ODIN_TENSORRT}; it must be AUTO, ON or OFF")
  endif()
  set(ODIN_HAS_TENSORRT OFF)
  set(ODIN_TENSORRT_MISSING "")
  if(odin_tensorrt STREQUAL "OFF")
    set(ODIN_TENSORRT_MISSING "ODIN_TENSORRT is OFF")
  else()
    odin_look_for_tensorrt()
  endif()
  if(ODIN_TENSORRT_MISSING STREQUAL "")
    set(ODIN_HAS_TENSORRT ON)
    set(odin_library "${ODIN_TENSORRT_LIBRARY}")
    if(NOT odin_library)
      set(odin_library "its library is left to the loader")
    endif()
    message(STATUS "odin: libodin with TensorRT ${ODIN_TENSORRT_VERSION}: "
      "${ODIN_TENSORRT_INCLUDE}; ${odin_library}")
  elseif(odin_tensorrt STREQUAL "ON")
    message(FATAL_ERROR "ODIN_TENSORRT is ON, but ${ODIN_TENSORRT_MISSING}")
  else()
    message(STATUS "odin: libodin without TensorRT: ${ODIN_TENSORRT_MISSING}")
  endif()
endmacro()

# ODIN_TENSORRT_INCLUDE, ODIN_TENSORRT_VERSION and ODIN_TENSORRT_LIBRARY; or
# ODIN_TENSORRT_MISSING.
macro(odin_look_for_tensorrt)
  # Looked for anew each time: they may have been installed since.
  unset(odin_found)
  find_path(odin_found NvInferRuntime.h
    HINTS "${TensorRT_ROOT}" ENV TensorRT_ROOT
    PATHS /usr/local/tensorrt /usr/src/tensorrt /opt/tensorrt /usr/local/cuda
    PATH_SUFFIXES include "include/${CMAKE_LIBRARY_ARCHITECTURE}"
    NO_CACHE)
  set(ODIN_TENSORRT_INCLUDE "${odin_found}")
  if(NOT odin_found)
    set(ODIN_TENSORRT_MISSING "NvInferRuntime.h is not found; install TensorRT's development \
files, or set TensorRT_ROOT to the folder that holds include/NvInferRuntime.h")
  else()
    odin_tensorrt_version("${ODIN_TENSORRT_INCLUDE}/NvInferVersion.h")
    if(ODIN_TENSORRT_VERSION VERSION_LESS 10.1)
      set(ODIN_TENSORRT_MISSING "${ODIN_TENSORRT_INCLUDE} is of TensorRT \
${ODIN_TENSORRT_VERSION}; 10.1 or newer is needed")
    elseif(NOT ODIN_NVCC_FOUND)
      set(ODIN_TENSORRT_MISSING "it needs the kernels, and ${ODIN_NVCC_MISSING}")
    elseif(NOT ODIN_CUDA_INCLUDE)
      set(ODIN_TENSORRT_MISSING "cuda_runtime_api.h is not found beside ${ODIN_NVCC_FOUND}; \
pip install nvidia-cuda-runtime")
    else()
      odin_locate_nvinfer()
    endif()
  endif()
endmacro()

# ODIN_TENSORRT_VERSION, from lines such as "#define NV_TENSORRT_MAJOR 10"; newer headers define it
# by another name, of which they give the number.
function(odin_tensorrt_version header)
  set(numbers "")
  if(EXISTS "${header}")
    file(STRINGS "${header}" lines REGEX "^#define (NV_TENSORRT|TRT)_[A-Z_]+ ")
    foreach(part MAJOR MINOR)
      string(REGEX MATCH "(NV_TENSORRT_${part}|TRT_${part}_ENTERPRISE) ([0-9]+)" found "${lines}")
      list(APPEND numbers "${CMAKE_MATCH_2}")
    endforeach()
  endif()
  list(JOIN numbers "." version)
  set(ODIN_TENSORRT_VERSION "${version}" PARENT_SCOPE)
endfunction()

function(odin_locate_nvinfer)
  odin_ask_python(packages "from importlib.util import find_spec
print(find_spec('tensorrt_libs').submodule_search_locations[0], end='')")
  string(REGEX MATCH "^[0-9]+" major "${ODIN_TENSORRT_VERSION}")
  get_filename_component(root "${ODIN_TENSORRT_INCLUDE}" DIRECTORY)
  find_library(found "libnvinfer.so.${major}"
    HINTS "${root}" "${TensorRT_ROOT}" ENV TensorRT_ROOT
    PATHS "${packages}" /usr/local/tensorrt /opt/tensorrt /usr/local/cuda
    PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}"
    NO_CACHE)
  if(NOT found)
    set(found "")
  endif()
  set(ODIN_TENSORRT_LIBRARY "${found}" PARENT_SCOPE)
endfunction()

# The GPU engine, with the kernels in the library itself: who links with libodin needs no other.
function(odin_link_tensorrt target)
  find_package(Threads REQUIRED)
  set_source_files_properties("${ODIN_LAUNCHERS}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(${target} PRIVATE
    src/scorer/cuda.cpp src/scorer/lanes.cpp src/scorer/model.cpp src/scorer/nvinfer.cpp
    src/scorer/tensorrt.cpp src/api.cpp src/status.cpp "${ODIN_LAUNCHERS}")
  # Both define helpers of the same names, each for itself.
  set_source_files_properties(src/api.cpp src/status.cpp PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  add_dependencies(${target} odin_fatbin)
  target_include_directories(${target} PRIVATE kernels src)
  target_include_directories(${target} SYSTEM
    PRIVATE "${ODIN_TENSORRT_INCLUDE}" "${ODIN_CUDA_INCLUDE}")
  target_compile_definitions(${target}
    PRIVATE "ODIN_TENSORRT_LIBRARY=\"${ODIN_TENSORRT_LIBRARY}\"")
  target_link_libraries(${target} PRIVATE "${ODIN_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)
endfunction()
