# SPDX-License-Identifier: Apache-2.0
# Builds the library inside another project, shared this time, and runs that project's program. It is configured with GPU kernels
# where nvcc is, but built without: to compile them again would take the minutes it takes the project itself.
include(${CMAKE_CURRENT_LIST_DIR}/steps.cmake)
file(REMOVE_RECURSE ${WORK})
step(${CMAKE_COMMAND} -S ${SOURCE}/tests/install/subproject -B ${WORK} -G Ninja -DCMAKE_CXX_COMPILER=${COMPILER} -DBUILD_SHARED_LIBS=ON
  -DCMAKE_BUILD_TYPE=Debug)
step(${CMAKE_COMMAND} -DCHITU_CUDA=OFF ${WORK})
step(${CMAKE_COMMAND} --build ${WORK})
step(${WORK}/consumer)
