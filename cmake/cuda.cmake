# SPDX-License-Identifier: Apache-2.0
# The GPU's part of the library: CUDA sources lie in src/cuda only, an object library for each architecture.
if(NOT CHITU_CUDA)
  message(STATUS "chitu: without GPU kernels (CHITU_CUDA is OFF)")
  target_sources(chitu PRIVATE src/cuda/no_rows.cpp)
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # each object library says its own
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know this flag of nvcc 13
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)
  message(FATAL_ERROR "chitu: the GPU kernels need CUDA 13, this is ${CMAKE_CUDA_COMPILER_VERSION}; -DCHITU_CUDA=OFF builds without them")
endif()
find_package(CUDAToolkit REQUIRED)
message(STATUS "chitu: with GPU kernels for sm_90a (CUDA ${CUDAToolkit_VERSION})")

# The device code of one room, compiled for these architectures, and refused if the compiler spills a register or serialises wgmma.
#   chitu_gpu(NAME ARCHITECTURES 90a ... SOURCES FILE ...)
function(chitu_gpu name)
  cmake_parse_arguments(PARSE_ARGV 1 gpu "" "" "ARCHITECTURES;SOURCES")
  set(target chitu_${name})
  set(launcher ${PROJECT_SOURCE_DIR}/cmake/refuse_serialised.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  list(TRANSFORM gpu_ARCHITECTURES APPEND -real)
  list(TRANSFORM gpu_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/src/cuda/)
  add_library(${target} OBJECT ${gpu_SOURCES})
  target_include_directories(${target} PRIVATE include src)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${gpu_ARCHITECTURES}" POSITION_INDEPENDENT_CODE ON
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_COMPILER_LAUNCHER "${launcher}")
  target_compile_options(${target} PRIVATE --expt-relaxed-constexpr -Xptxas=-v,-warn-spills
    $<$<CXX_COMPILER_ID:GNU>:-Xcompiler=-fno-gnu-unique>  # as in CMakeLists.txt
    "$<$<BOOL:${CHITU_WERROR}>:-Werror=all-warnings;-Xptxas=-Werror>")
  target_sources(chitu PRIVATE $<TARGET_OBJECTS:${target}>)
endfunction()

# A main loop for each family of architectures, and what all of them share, compiled once for all.
set(sm90_architectures 90a)
chitu_gpu(sm90 ARCHITECTURES ${sm90_architectures} SOURCES
  sm90/kernels.cu sm90/instances/chitu.cu sm90/instances/direct_bf16.cu sm90/instances/direct_f16.cu sm90/instances/exact.cu sm90/instances/fp8.cu sm90/instances/int8.cu sm90/instances/sage.cu
  sm90/instances/sage2.cu)
chitu_gpu(shared ARCHITECTURES ${sm90_architectures} SOURCES
  merge.cu nonfinite.cu operands/any_recipe.cu operands/blocks.cu operands/chitu.cu operands/sequences.cu operands/statistics.cu)
target_sources(chitu PRIVATE src/cuda/block.cpp src/cuda/call.cpp src/cuda/convert.cpp src/cuda/device.cpp src/cuda/lengths.cpp src/cuda/merge.cpp src/cuda/quantize.cpp src/cuda/rows.cpp src/cuda/schedule.cpp src/cuda/sm90/tensor_map.cpp)
# The toolkit's headers as a system's: they do not pass our warnings.
target_link_libraries(chitu PRIVATE CUDA::cudart_static)
