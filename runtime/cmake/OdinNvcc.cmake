# Finding an nvcc that works, and compiling the kernels with it.
#
# CMake's own CUDA language is not used: it expects the folders of a full toolkit, which the
# compiler's Python packages do not have.
include(OdinPython)

# The folders where Python packages of the compiler put bin/nvcc.
function(odin_python_folders result)
  odin_ask_python(packages "import sysconfig; print(sysconfig.get_path('purelib'), end='')")
  set(${result} "" PARENT_SCOPE)
  if(packages)
    set(${result} "${packages}/nvidia/cu13" PARENT_SCOPE)
  endif()
endfunction()

# ODIN_NVCC_FOUND: nvcc, from ODIN_NVCC, CUDACXX, CUDA_PATH, PATH, the Python packages or
# /usr/local/cuda, in this order; with ODIN_CUDART, the static runtime library, ODIN_CUDA_INCLUDE,
# the folder of its headers if there is one, ODIN_NVCC_FLAGS and ODIN_NVCC_ARCHITECTURES.
# Empty if there is none that works; ODIN_NVCC_MISSING says why.
macro(odin_find_nvcc)
  set(ODIN_NVCC_FOUND "")
  set(ODIN_NVCC_MISSING "")
  set(odin_candidate "${ODIN_NVCC}")
  if(odin_cuda STREQUAL "OFF")
    set(ODIN_NVCC_MISSING "ODIN_CUDA is OFF")
  else()
    if(NOT odin_candidate)
      odin_locate_nvcc(odin_candidate)
    endif()
    if(NOT odin_candidate)
      set(ODIN_NVCC_MISSING "nvcc is not found; pip install nvidia-cuda-nvcc \
nvidia-cuda-crt nvidia-cuda-cccl nvidia-nvvm nvidia-cuda-runtime, or set CUDACXX")
    else()
      odin_try_nvcc("${odin_candidate}")
    endif()
  endif()
endmacro()

function(odin_locate_nvcc result)
  set(asked "$ENV{CUDACXX}")
  if(asked)
    find_program(found "${asked}" NO_CACHE)  # CUDACXX=nvcc or a path
  else()
    odin_python_folders(folders)
    find_program(found nvcc
      HINTS ENV CUDA_PATH
      PATHS ${folders} /usr/local/cuda
      PATH_SUFFIXES bin
      NO_CACHE)
  endif()
  if(NOT found)
    set(found "${asked}")  # a wrong name is told, not replaced by another nvcc
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

# Compile a file of three lines: an nvcc without its other parts, or with a C++ compiler that it
# does not take, is as good as none.
function(odin_try_nvcc nvcc)
  set(folder "${CMAKE_BINARY_DIR}/odin_nvcc")
  file(WRITE "${folder}/probe.cu"
    "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n__global__ void probe(float*) {}\n")
  execute_process(
    COMMAND "${nvcc}" -ccbin "${CMAKE_CXX_COMPILER}" -std=c++17 -c probe.cu -o probe.o
    WORKING_DIRECTORY "${folder}" RESULT_VARIABLE failed OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(failed)
    if(text STREQUAL "")
      set(text "${failed}")  # as when there is no such file
    endif()
    string(STRIP "${text}" text)
    string(REGEX REPLACE "\n.*" "" text "${text}")
    set(ODIN_NVCC_MISSING "${nvcc} cannot compile: ${text}" PARENT_SCOPE)
    return()
  endif()
  # nvcc knows where it is installed, also when it is called through a link or a script.
  execute_process(
    COMMAND "${nvcc}" --dryrun -c probe.cu WORKING_DIRECTORY "${folder}" ERROR_VARIABLE dryrun)
  string(REGEX MATCH "TOP=([^\n]*)" ignored "${dryrun}")
  set(top "${CMAKE_MATCH_1}")
  file(GLOB targets "${top}/targets/*/lib")
  find_library(cudart cudart_static PATHS "${top}/lib64" "${top}/lib" ${targets}
    NO_DEFAULT_PATH NO_CACHE)
  if(NOT cudart)
    set(ODIN_NVCC_MISSING "${nvcc} has no libcudart_static.a below ${top}" PARENT_SCOPE)
    return()
  endif()
  file(GLOB headers "${top}/targets/*/include")
  find_path(include cuda_runtime_api.h PATHS "${top}/include" ${headers} NO_DEFAULT_PATH NO_CACHE)
  odin_nvcc_targets("${nvcc}")
  if(NOT ODIN_NVCC_ARCHITECTURES)
    set(ODIN_NVCC_MISSING "${nvcc} compiles for none of ${ODIN_CUDA_ARCHITECTURES}" PARENT_SCOPE)
    return()
  elseif(NOT known MATCHES "sm_${ODIN_PTX_ARCHITECTURE}[^0-9a-z]")
    set(ODIN_NVCC_MISSING "${nvcc} makes no PTX for ${ODIN_PTX_ARCHITECTURE}" PARENT_SCOPE)
    return()
  endif()
  set(ODIN_NVCC_FOUND "${nvcc}" PARENT_SCOPE)
  set(ODIN_CUDART "${cudart}" PARENT_SCOPE)
  set(ODIN_CUDA_INCLUDE "${include}" PARENT_SCOPE)
  set(ODIN_NVCC_FLAGS "${ODIN_NVCC_FLAGS}" PARENT_SCOPE)
  set(ODIN_NVCC_ARCHITECTURES "${ODIN_NVCC_ARCHITECTURES}" PARENT_SCOPE)
  message(STATUS "odin: nvcc: ${nvcc}; machine code for ${ODIN_NVCC_ARCHITECTURES}, "
    "PTX for ${ODIN_PTX_ARCHITECTURE}")
endfunction()

# The -gencode flags for those of ODIN_CUDA_ARCHITECTURES that this nvcc knows.
macro(odin_nvcc_targets nvcc)
  execute_process(COMMAND "${nvcc}" --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  set(ODIN_NVCC_FLAGS "")
  set(ODIN_NVCC_ARCHITECTURES "")
  foreach(architecture IN LISTS ODIN_CUDA_ARCHITECTURES)
    if("${known}" MATCHES "sm_${architecture}[^0-9a-z]")
      list(APPEND ODIN_NVCC_ARCHITECTURES ${architecture})
      list(APPEND ODIN_NVCC_FLAGS
        "-gencode=arch=compute_${architecture},code=sm_${architecture}")
    else()
      message(WARNING "odin: ${nvcc} does not know sm_${architecture}: left out")
    endif()
  endforeach()
  list(APPEND ODIN_NVCC_FLAGS
    "-gencode=arch=compute_${ODIN_PTX_ARCHITECTURE},code=compute_${ODIN_PTX_ARCHITECTURE}")
  execute_process(COMMAND "${nvcc}" --help OUTPUT_VARIABLE help ERROR_QUIET)
  if(help MATCHES "--compress-mode")
    list(APPEND ODIN_NVCC_FLAGS --compress-mode=size)
  endif()
endmacro()

# Target odin_fatbin. One run of nvcc over launch.cu makes the launchers' object and, kept from its
# way there, the fat binary: compiling for each architecture is what takes the time.
macro(odin_add_kernels)
  set(odin_sources "${PROJECT_SOURCE_DIR}/runtime")
  set(odin_kept "${CMAKE_BINARY_DIR}/odin_nvcc/kept")
  set(ODIN_FATBIN "${CMAKE_BINARY_DIR}/odin_kernels.fatbin")
  set(ODIN_LAUNCHERS "${CMAKE_BINARY_DIR}/odin_nvcc/launch.o")
  file(MAKE_DIRECTORY "${odin_kept}")
  file(GLOB odin_headers CONFIGURE_DEPENDS
    "${odin_sources}/kernels/*" "${odin_sources}/src/*.hpp" "${odin_sources}/include/odin/*.h")
  add_custom_command(
    OUTPUT "${ODIN_LAUNCHERS}" "${ODIN_FATBIN}"
    COMMAND "${ODIN_NVCC_FOUND}" -ccbin "${CMAKE_CXX_COMPILER}" -std=c++17 -O3 --threads 0
      ${ODIN_NVCC_FLAGS} "-I${odin_sources}/kernels" "-I${odin_sources}/include"
      -DODIN_BUILDING -Xcompiler=-fPIC,-fvisibility=hidden --keep --keep-dir "${odin_kept}"
      -c "${odin_sources}/src/launch.cu" -o "${ODIN_LAUNCHERS}"
    COMMAND "${CMAKE_COMMAND}" -E copy "${odin_kept}/launch.fatbin" "${ODIN_FATBIN}"
    DEPENDS "${odin_sources}/src/launch.cu" ${odin_headers}
    COMMENT "Compiling the kernels for ${ODIN_NVCC_ARCHITECTURES} and PTX"
    VERBATIM)
  add_custom_target(odin_fatbin ALL DEPENDS "${ODIN_LAUNCHERS}" "${ODIN_FATBIN}")
endmacro()
