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

# Files compiled for one architecture, and refused if the compiler spills a register or serialises wgmma.
function(chitu_gpu architecture)
  set(target chitu_sm${architecture})
  set(launcher ${PROJECT_SOURCE_DIR}/cmake/refuse_serialised.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  add_library(${target} OBJECT ${ARGN})
  target_include_directories(${target} PRIVATE include src)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES ${architecture}-real POSITION_INDEPENDENT_CODE ON
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
    CUDA_COMPILER_LAUNCHER "${launcher}")
  target_compile_options(${target} PRIVATE --expt-relaxed-constexpr -Xptxas=-v,-warn-spills
    "$<$<BOOL:${CHITU_WERROR}>:-Werror=all-warnings;-Xptxas=-Werror>")
  target_sources(chitu PRIVATE $<TARGET_OBJECTS:${target}>)
endfunction()

chitu_gpu(90a
  src/cuda/sm90/attention.cu src/cuda/sm90/attention_chitu.cu src/cuda/sm90/attention_exact.cu src/cuda/sm90/attention_fp8.cu
  src/cuda/sm90/attention_int8.cu src/cuda/sm90/attention_sage.cu src/cuda/sm90/attention_sage2.cu
  src/cuda/sm90/mend.cu src/cuda/sm90/pack.cu src/cuda/sm90/pack_statistics.cu src/cuda/sm90/places.cu src/cuda/sm90/quantise.cu)
target_sources(chitu PRIVATE src/cuda/device.cpp src/cuda/rows.cpp src/cuda/sm90/row.cpp)
# The toolkit's headers as a system's: they do not pass our warnings.
target_link_libraries(chitu PRIVATE CUDA::cudart_static)
