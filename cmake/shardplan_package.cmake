# `cpack -G DEB` in the build folder, or `cmake --build . --target package`: a Debian package for each component of
# cmake/shardplan_install.cmake. tests/install checks them.
set(SHARDPLAN_MAINTAINER "shardplan <shardplan@example.org>" CACHE STRING "Who makes these Debian packages")
set(packaged_components library c_development cxx_development)
if(programs)
  list(APPEND packaged_components tools)
endif()
if(SHARDPLAN_WITH_CUDA)
  list(APPEND packaged_components cuda)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME shardplan)
set(CPACK_PACKAGE_CONTACT ${SHARDPLAN_MAINTAINER})
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL ${packaged_components})
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)

# debian_package(COMPONENT NAME SECTION SUMMARY DEPENDS DESCRIPTION): DEPENDS besides the shared libraries, which are
# found in the files.
function(debian_package component name section summary depends description)
  string(TOUPPER ${component} upper)
  foreach(pair PACKAGE_NAME=${name} PACKAGE_SECTION=${section} "PACKAGE_DEPENDS=${depends}" PACKAGE_SHLIBDEPS=ON)
    string(REGEX MATCH "^([A-Z_]+)=(.*)$" matched "${pair}")
    set(CPACK_DEBIAN_${upper}_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}" PARENT_SCOPE)
  endforeach()
  set(CPACK_COMPONENT_${upper}_DESCRIPTION "${summary}\n${description}" PARENT_SCOPE)
  # Not of `cmake --install`, only of the packages.
  set(documents ${PROJECT_BINARY_DIR}/debian/${name})
  configure_file(${PROJECT_SOURCE_DIR}/cmake/debian/changelog.in ${documents}/changelog @ONLY)
  execute_process(COMMAND gzip -9nf ${documents}/changelog COMMAND_ERROR_IS_FATAL ANY)
  install(FILES ${documents}/changelog.gz ${PROJECT_SOURCE_DIR}/cmake/debian/copyright
          DESTINATION share/doc/${name} COMPONENT ${component} EXCLUDE_FROM_ALL)
endfunction()

set(version ${PROJECT_VERSION})
set(boost ${Boost_VERSION_MAJOR}.${Boost_VERSION_MINOR}-dev)
string(CONCAT boost "libboost${boost}, " "libboost-context${boost}")
set(uring "")
if(SHARDPLAN_WITH_IO_URING)
  set(uring ", liburing-dev")
endif()
string(CONCAT what "shardplan plans which rank of a training run keeps which byte, and\n"
                   "carries the plan out: a ZeRO-style sharded optimizer.\n")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/cmake/debian/triggers)
debian_package(library libshardplan${PROJECT_VERSION_MAJOR} libs
               "memory planner and sharded optimizer (shared library)" ""
               "${what}This is the library that C programs run with.")
debian_package(c_development libshardplan-dev libdevel
               "memory planner and sharded optimizer (C interface)"
               "libshardplan${PROJECT_VERSION_MAJOR} (= ${version})"
               "${what}This is what C programs are built with.")
debian_package(cxx_development libshardplan-cxx-dev libdevel
               "memory planner and sharded optimizer (C++ libraries)"
               "libshardplan-dev (= ${version}), libfmt-dev, libyaml-cpp-dev, ${boost}${uring}"
               "${what}This is what C++ programs are built with: static libraries and\ntheir headers.")
if(programs)
  debian_package(tools shardplan-tools science
                 "memory planner and sharded optimizer (programs)" ""
                 "${what}These are its programs: memcalc tells what a training run needs.")
endif()
if(SHARDPLAN_WITH_CUDA)
  set(CPACK_DEBIAN_CUDA_PACKAGE_SUGGESTS libnccl2)  # NVIDIA's, loaded when a communicator is made
  debian_package(cuda shardplan-cuda libs
                 "memory planner and sharded optimizer (CUDA and NCCL)" ""
                 "${what}This is the module that its programs and libraries load where training\nis to run on NVIDIA's GPUs.")
endif()
include(CPack)
