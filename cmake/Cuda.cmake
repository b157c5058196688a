# The CUDA backend, a shared library beside the addon. RLHF_CUDA is AUTO, ON or OFF; empty means AUTO.

if(RLHF_CUDA STREQUAL "OFF")
  return()
endif()

find_program(RLHF_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
mark_as_advanced(RLHF_NVCC)
if(RLHF_NVCC AND NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "${RLHF_NVCC}")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  # Code for A100-class and Hopper GPUs, and PTX that newer ones compile when the library is first opened.
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;90-virtual")
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(RLHF_CUDA STREQUAL "ON")
    message(FATAL_ERROR "RLHF_CUDA=ON, but no nvcc was found: put it on PATH or set CUDA_HOME")
  endif()
  return()
endif()

enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # Debian's CMake 3.25 does not know that nvcc takes C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()

rlhf_glob(cuda_sources cuda/*.cu cuda/*.cc)
if(NOT cuda_sources)
  message(WARNING "csrc/cuda holds no sources: the CUDA backend is not built")
  return()
endif()

# Settings of every target with CUDA code.
function(rlhf_set_cuda_options target)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)
  endif()
  # A kernel that spills registers, or whose wgmma the assembler puts in a row, is slow in a way that no test shows, so it does not build.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=--warn-on-spills,--warning-as-error>)
endfunction()

# Kernels of Hopper's own instructions run on nothing else, and are chosen at run time.
rlhf_glob(hopper_sources cuda/hopper/*.cu)
rlhf_add_objects(rlhf_cuda_hopper ${hopper_sources})
if(hopper_sources)
  rlhf_set_cuda_options(rlhf_cuda_hopper)
  set_target_properties(rlhf_cuda_hopper PROPERTIES CUDA_ARCHITECTURES "90a-real")
endif()

add_library(rlhf_cuda SHARED ${cuda_sources})
rlhf_set_cuda_options(rlhf_cuda)
set_target_properties(rlhf_cuda PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY "${RLHF_OUTPUT_DIRECTORY}" RUNTIME_OUTPUT_DIRECTORY "${RLHF_OUTPUT_DIRECTORY}")
target_link_libraries(rlhf_cuda PRIVATE rlhf_core rlhf_cuda_hopper)
target_link_options(rlhf_cuda PRIVATE ${RLHF_LINK_OPTIONS})
