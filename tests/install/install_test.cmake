# Run by CTest with BUILD, WORK, SOURCE, CXX, CC, TYPE, FLAGS. The flags are those of the installed libraries: a
# sanitizer must be in the whole program.
set(prefix ${WORK}/prefix)
file(REMOVE_RECURSE ${WORK})
include(${SOURCE}/consumers.cmake)

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
build_c_consumer(${prefix} ${WORK}/c)
build_cxx_consumer(${prefix} ${WORK}/cxx)
