# `cmake --install`: headers, libraries, programs, the CMake package and the pkg-config file. tests/install uses all.
include(CMakePackageConfigHelpers)

get_property(programs GLOBAL PROPERTY SHARDPLAN_PROGRAMS)

install(TARGETS ${libraries} EXPORT shardplan
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/shardplan)
install(TARGETS shardplan EXPORT shardplan)
if(programs)
  install(TARGETS ${programs})
endif()

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/shardplan)
install(EXPORT shardplan NAMESPACE shardplan:: FILE shardplan-targets.cmake DESTINATION ${package_folder})
configure_package_config_file(cmake/shardplan-config.cmake.in shardplan-config.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(shardplan-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/shardplan-config.cmake ${PROJECT_BINARY_DIR}/shardplan-config-version.cmake
        DESTINATION ${package_folder})

# The linker reads static libraries from left to right: users before what they use.
set(SHARDPLAN_PKGCONFIG_LIBRARIES "")
foreach(library IN LISTS libraries)
  string(PREPEND SHARDPLAN_PKGCONFIG_LIBRARIES " -l${library}")
endforeach()
file(RELATIVE_PATH SHARDPLAN_PKGCONFIG_INCLUDES ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(cmake/shardplan.pc.in shardplan.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/shardplan.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
