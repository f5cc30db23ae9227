# The CUDA and NCCL backend: decides whether the module is built (SHARDPLAN_WITH_CUDA), and how CUDA sources are compiled.
#
# SHARDPLAN_CUDA=AUTO builds it where nvcc and nccl.h are found; ON makes their absence an error. What is built runs on
# compute capabilities 8.0, 9.0 and 10.0, and by way of PTX on later ones.
set(SHARDPLAN_WITH_CUDA OFF)
if(NOT SHARDPLAN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SHARDPLAN_CUDA=${SHARDPLAN_CUDA}: expected AUTO, ON or OFF")
elseif(SHARDPLAN_CUDA STREQUAL "OFF")
  return()
endif()

# 12.8 is the first nvcc that knows compute capability 10.0.
set(nvcc_wanted 12.8)
set(missing "")
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH nvcc_folder)
  find_path(SHARDPLAN_NCCL_INCLUDE nccl.h HINTS ${nvcc_folder}/../include)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE nvcc_text)
  string(REGEX MATCH "release ([0-9.]+)" ignored "${nvcc_text}")
  if(CMAKE_MATCH_1 VERSION_LESS nvcc_wanted)
    set(missing "nvcc ${nvcc_wanted} or newer (${CMAKE_CUDA_COMPILER} is ${CMAKE_MATCH_1})")
  elseif(NOT SHARDPLAN_NCCL_INCLUDE)
    set(missing "nccl.h (package libnccl-dev)")
  endif()
else()
  set(missing "nvcc ${nvcc_wanted} or newer (the CUDA toolkit)")
endif()
if(missing)
  if(SHARDPLAN_CUDA STREQUAL "AUTO")
    message(STATUS "No CUDA backend: ${missing} was not found")
    return()
  endif()
  message(FATAL_ERROR "SHARDPLAN_CUDA=ON: ${missing} was not found")
endif()

set(SHARDPLAN_WITH_CUDA ON)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()
if(NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER AND SHARDPLAN_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${SHARDPLAN_CCACHE})
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(CMAKE_VERSION VERSION_LESS 3.26)
  # It does not know that nvcc has C++20, and compiles as C++17 without a word.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()
find_package(CUDAToolkit REQUIRED)

# Results are the CPU's bits: no fused multiply-add, subnormals kept, division and square root as IEEE 754 has them.
# constexpr functions are device functions too.
add_library(shardplan_cuda_options INTERFACE)
target_compile_options(shardplan_cuda_options INTERFACE
  -fmad=false -ftz=false -prec-div=true -prec-sqrt=true --expt-relaxed-constexpr
  "SHELL:-Xcompiler=-Wall,-Wextra,-Wshadow,-Wconversion,-Wsign-conversion,-ffp-contract=off"
  "SHELL:-Werror all-warnings")
target_include_directories(shardplan_cuda_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_features(shardplan_cuda_options INTERFACE cuda_std_20)
