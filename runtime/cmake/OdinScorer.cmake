# libodin, the scorer of include/odin/odin.h, and finding the OpenVINO that it scores with.
include(OdinPython)
include(OdinTensorRT)

# OpenVINO's CMake package: from OpenVINO_DIR or CMAKE_PREFIX_PATH, or the one inside the Python
# package. ODIN_OPENVINO_MISSING says why there is none.
macro(odin_find_openvino)
  set(ODIN_OPENVINO_MISSING "")
  odin_ask_python(odin_openvino "from importlib.util import find_spec
print(find_spec('openvino').submodule_search_locations[0], end='')")  # which does not import it
  find_package(OpenVINO QUIET CONFIG COMPONENTS Runtime HINTS "${odin_openvino}/cmake")
  if(NOT OpenVINO_FOUND)
    set(ODIN_OPENVINO_MISSING
      "OpenVINO is not found; pip install openvino, or set OpenVINO_DIR to its folder cmake")
  endif()
endmacro()

# Target odin_scorer, exported as odin::odin; sets ODIN_HAS_SCORER, ODIN_HAS_OPENVINO and
# ODIN_HAS_TENSORRT. Without any engine the library is built too: it says so of every bundle.
macro(odin_add_scorer)
  set(ODIN_HAS_SCORER OFF)
  set(ODIN_HAS_OPENVINO OFF)
  set(ODIN_HAS_TENSORRT OFF)
  if(odin_scorer STREQUAL "OFF")
    message(STATUS "odin: no libodin: ODIN_SCORER is OFF")
  elseif(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
    if(odin_scorer STREQUAL "ON")
      message(FATAL_ERROR "ODIN_SCORER is ON, but libodin is for Linux alone")
    endif()
    message(STATUS "odin: no libodin: it is for Linux alone")
  else()
    odin_find_openvino()
    if(OpenVINO_FOUND)
      set(ODIN_HAS_OPENVINO ON)
      message(STATUS "odin: libodin with OpenVINO ${OpenVINO_VERSION}: ${OpenVINO_DIR}")
    elseif(odin_scorer STREQUAL "ON")
      message(FATAL_ERROR "ODIN_SCORER is ON, but ${ODIN_OPENVINO_MISSING}")
    else()
      message(STATUS "odin: libodin without OpenVINO: ${ODIN_OPENVINO_MISSING}")
    endif()
    odin_find_tensorrt()
    if(NOT ODIN_HAS_OPENVINO AND NOT ODIN_HAS_TENSORRT)
      message(STATUS "odin: libodin without an engine")
    endif()
    odin_define_scorer()
  endif()
endmacro()

macro(odin_define_scorer)
  set(ODIN_HAS_SCORER ON)
  add_library(odin_scorer SHARED
    src/scorer/bundle.cpp src/scorer/decision.cpp src/scorer/description.cpp src/scorer/images.cpp
    src/scorer/json.cpp src/scorer/memory.cpp src/scorer/opening.cpp src/scorer/options.cpp
    src/scorer/parts.cpp src/scorer/plans.cpp src/scorer/scorer.cpp src/scorer/sha256.cpp
    src/scorer/spec.cpp)
  add_library(odin::odin ALIAS odin_scorer)
  target_compile_features(odin_scorer PRIVATE cxx_std_17)
  target_include_directories(odin_scorer
    PUBLIC "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>"
           "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>"
    PRIVATE src/scorer)
  target_compile_definitions(odin_scorer PRIVATE ODIN_BUILDING)
  # Pixels are normalised with one rounding a step, so the compiler must not join two.
  target_compile_options(odin_scorer PRIVATE -Wall -Wextra -ffp-contract=off)
  # Nothing but the C functions is seen from outside, also of templates of other libraries. It stays
  # loaded: it holds OpenVINO's core, whose threads run to the end of the process.
  target_link_options(odin_scorer PRIVATE
    "-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/src/scorer/odin.map" -Wl,-z,nodelete)
  set_target_properties(odin_scorer PROPERTIES
    OUTPUT_NAME odin
    EXPORT_NAME odin
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    LINK_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/scorer/odin.map"
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
  if(ODIN_HAS_OPENVINO)
    target_sources(odin_scorer PRIVATE src/scorer/openvino.cpp)
    # OpenVINO stays where it is found: in Python's packages, or in a folder of its own. (CMake's
    # INSTALL_RPATH_USE_LINK_PATH leaves out what is in the source tree, as .venv may be.)
    set_target_properties(odin_scorer PROPERTIES
      INSTALL_RPATH "$<TARGET_FILE_DIR:openvino::runtime>")
    # Its file, not its target: who links with libodin needs no CMake package of OpenVINO.
    target_link_libraries(odin_scorer PRIVATE "$<TARGET_FILE:openvino::runtime>")
    target_include_directories(odin_scorer SYSTEM
      PRIVATE "$<TARGET_PROPERTY:openvino::runtime,INTERFACE_INCLUDE_DIRECTORIES>")
    target_compile_definitions(odin_scorer
      PRIVATE "$<TARGET_PROPERTY:openvino::runtime,INTERFACE_COMPILE_DEFINITIONS>")
  else()
    target_sources(odin_scorer PRIVATE src/scorer/no_openvino.cpp)
  endif()
  if(ODIN_HAS_TENSORRT)
    odin_link_tensorrt(odin_scorer)
  else()
    target_sources(odin_scorer PRIVATE src/scorer/no_tensorrt.cpp)
  endif()
  install(TARGETS odin_scorer EXPORT odin)
  install(FILES include/odin/odin.h include/odin/odin.hpp
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/odin")
endmacro()
