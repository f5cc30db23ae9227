# `cmake --install`: headers, libraries, programs, the CMake package and the pkg-config files. tests/install uses all.
#
# Components, each of which is a Debian package (cmake/shardplan_package.cmake):
#   library          libshardplan.so.0
#   c_development    shardplan.h, the link to the library, and what finds them
#   cxx_development  the C++ libraries, which are static, and their headers
#   tools            programs
#   cuda             libshardplan-cuda.so, where it is built (runtime/cuda)
include(CMakePackageConfigHelpers)

get_property(programs GLOBAL PROPERTY SHARDPLAN_PROGRAMS)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/shardplan)
set(pkgconfig_folder ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(TARGETS shardplan_c EXPORT shardplan-c
        LIBRARY COMPONENT library NAMELINK_COMPONENT c_development
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT c_development)
install(TARGETS ${libraries} EXPORT shardplan
        ARCHIVE COMPONENT cxx_development
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/shardplan COMPONENT cxx_development)
install(TARGETS shardplan EXPORT shardplan COMPONENT cxx_development)
if(programs)
  install(TARGETS ${programs} COMPONENT tools)
endif()

install(EXPORT shardplan-c NAMESPACE shardplan:: FILE shardplan-c-targets.cmake DESTINATION ${package_folder}
        COMPONENT c_development)
install(EXPORT shardplan NAMESPACE shardplan:: FILE shardplan-targets.cmake DESTINATION ${package_folder}
        COMPONENT cxx_development)
if(SHARDPLAN_WITH_MPI)
  install(TARGETS shardplan_mpi EXPORT shardplan-mpi ARCHIVE COMPONENT cxx_development)
  install(EXPORT shardplan-mpi NAMESPACE shardplan:: FILE shardplan-mpi-targets.cmake DESTINATION ${package_folder}
          COMPONENT cxx_development)
endif()
configure_package_config_file(cmake/shardplan-config.cmake.in shardplan-config.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(shardplan-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/shardplan-config.cmake ${PROJECT_BINARY_DIR}/shardplan-config-version.cmake
        DESTINATION ${package_folder} COMPONENT c_development)

# The linker reads static libraries from left to right: users before what they use.
set(SHARDPLAN_PKGCONFIG_LIBRARIES "")
foreach(library IN LISTS libraries)
  string(PREPEND SHARDPLAN_PKGCONFIG_LIBRARIES " -l${library}")
endforeach()
set(SHARDPLAN_PKGCONFIG_URING "")
if(SHARDPLAN_WITH_IO_URING)
  set(SHARDPLAN_PKGCONFIG_URING " -luring")
endif()
file(RELATIVE_PATH SHARDPLAN_PKGCONFIG_INCLUDES ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(cmake/shardplan.pc.in shardplan.pc @ONLY)
configure_file(cmake/shardplan-c.pc.in shardplan-c.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/shardplan.pc DESTINATION ${pkgconfig_folder} COMPONENT cxx_development)
install(FILES ${PROJECT_BINARY_DIR}/shardplan-c.pc DESTINATION ${pkgconfig_folder} COMPONENT c_development)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

find_program(SHARDPLAN_DPKG dpkg-deb)
if(PROJECT_IS_TOP_LEVEL AND SHARDPLAN_DPKG)
  include(shardplan_package)
endif()
