# Run by CTest with the arguments of install_test.cmake, VERSION, TOOLS, CUDA and LINTIAN (which may be empty). Makes the
# Debian packages, looks at what is in them, unpacks them into one folder and builds the consumers against that.
file(REMOVE_RECURSE ${WORK})
include(${SOURCE}/consumers.cmake)

execute_process(COMMAND ${CMAKE_CPACK_COMMAND} --config ${BUILD}/CPackConfig.cmake -G DEB -B ${WORK}/packages
                COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)

# expect(PACKAGE FIELDS FILES...): regular expressions of its control fields, and of names of files.
function(expect package fields)
  file(GLOB file ${WORK}/packages/${package}_*.deb)
  if(NOT file)
    message(FATAL_ERROR "no package ${package}")
  endif()
  execute_process(COMMAND dpkg-deb -f ${file} OUTPUT_VARIABLE control COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND dpkg-deb -c ${file} OUTPUT_VARIABLE content COMMAND_ERROR_IS_FATAL ANY)
  foreach(pattern IN LISTS fields)
    if(NOT control MATCHES "${pattern}")
      message(FATAL_ERROR "${package}: no field like ${pattern}:\n${control}")
    endif()
  endforeach()
  foreach(pattern IN LISTS ARGN ITEMS "/share/doc/${package}/copyright\n" "/share/doc/${package}/changelog.gz\n")
    if(NOT content MATCHES "${pattern}")
      message(FATAL_ERROR "${package}: no file like ${pattern}:\n${content}")
    endif()
  endforeach()
  if(content MATCHES "/usr/local/|gtest|/tests/")
    message(FATAL_ERROR "${package}: a file that does not belong there: ${CMAKE_MATCH_0}\n${content}")
  endif()
  run(dpkg-deb -x ${file} ${WORK}/root)
endfunction()

expect(libshardplan0 "Depends: [^\n]*libc6;Depends: [^\n]*libfmt" "/libshardplan.so.0 -> ")
expect(libshardplan-dev "Depends: [^\n]*libshardplan0 \\(= ${VERSION}\\)" "/include/shardplan.h\n" "/libshardplan.so -> "
       "/pkgconfig/shardplan-c.pc\n" "/cmake/shardplan/shardplan-c-targets.cmake\n")
expect(libshardplan-cxx-dev "Depends: [^\n]*libshardplan-dev \\(= ;Depends: [^\n]*libboost1\\.[0-9]+-dev"
       "/include/shardplan/shard/zero_optimizer.h\n" "/libshardplan_shard.a\n" "/cmake/shardplan/shardplan-targets.cmake\n")
if(TOOLS)
  expect(shardplan-tools "Depends: [^\n]*libc6" "/usr/bin/memcalc\n")
  run(${WORK}/root/usr/bin/memcalc --version)
endif()
if(CUDA)
  expect(shardplan-cuda "Depends: [^\n]*libc6;Suggests: libnccl2" "/shardplan/libshardplan-cuda.so\n")
  # It is where the programs look for it: what they say then is of the driver.
  if(TOOLS)
    execute_process(COMMAND ${WORK}/root/usr/bin/memcalc gpus --detect OUTPUT_QUIET ERROR_VARIABLE said)
    if(said MATCHES "installation has no")
      message(FATAL_ERROR "memcalc does not find the CUDA module of its package: ${said}")
    endif()
  endif()
endif()
build_c_consumer(${WORK}/root/usr ${WORK}/c)
build_cxx_consumer(${WORK}/root/usr ${WORK}/cxx)

if(LINTIAN)
  file(GLOB packages ${WORK}/packages/*.deb)
  run(${LINTIAN} --allow-root --fail-on error ${packages})
endif()
