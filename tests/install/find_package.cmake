# SPDX-License-Identifier: Apache-2.0
# Installs the built tree, builds examples/consumer against what was installed, runs it.
include(${CMAKE_CURRENT_LIST_DIR}/steps.cmake)
file(REMOVE_RECURSE ${WORK})
step(${CMAKE_COMMAND} --install ${BUILT} --prefix ${WORK}/prefix)
step(${CMAKE_COMMAND} -S ${SOURCE}/examples/consumer -B ${WORK}/build -G Ninja -DCMAKE_PREFIX_PATH=${WORK}/prefix
  -DCMAKE_CXX_COMPILER=${COMPILER} "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wconversion -Werror")
step(${CMAKE_COMMAND} --build ${WORK}/build)
step(${WORK}/build/consumer)
if(COMMAND_TOO)
  step(${WORK}/prefix/bin/chitu methods)
endif()
