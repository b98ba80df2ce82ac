# SPDX-License-Identifier: Apache-2.0
# Install rules and the CMake package: find_package(chitu) then gives the target chitu::chitu.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Until 1.0 a minor version may change the interface, so it is part of the shared library's name.
set_target_properties(chitu PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})

# So that an installed command finds an installed shared library wherever the tree is put.
file(RELATIVE_PATH bin_to_lib /${CMAKE_INSTALL_BINDIR} /${CMAKE_INSTALL_LIBDIR})
set(CMAKE_INSTALL_RPATH $ORIGIN/${bin_to_lib})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/chitu)
install(TARGETS chitu EXPORT chitu)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/chitu TYPE INCLUDE)
install(EXPORT chitu NAMESPACE chitu:: FILE chituTargets.cmake DESTINATION ${package_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(CHITU_DIST)  # find_package(chitu) gives chitu::dist as well, and with COMPONENTS dist_mpi that
  install(TARGETS chitu_dist EXPORT chitu)
endif()
if(CHITU_MPI)
  install(TARGETS chitu_dist_mpi EXPORT chituDistMpi)
  install(EXPORT chituDistMpi NAMESPACE chitu:: FILE chituDistMpiTargets.cmake DESTINATION ${package_dir})
endif()

get_target_property(library_type chitu TYPE)  # a static library asks its user for what it links
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/chituConfig.cmake.in ${PROJECT_BINARY_DIR}/chituConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/chituConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/chituConfig.cmake ${PROJECT_BINARY_DIR}/chituConfigVersion.cmake DESTINATION ${package_dir})
