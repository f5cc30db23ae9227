# Builds and runs a program of another project against an installed tree: with find_package, and with pkg-config.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# The flags that pkg-config gives for `package` below `prefix`.
function(pkg_config result prefix package)
  file(GLOB_RECURSE file ${prefix}/${package}.pc)
  cmake_path(GET file PARENT_PATH folder)
  set(ENV{PKG_CONFIG_PATH} ${folder})
  execute_process(COMMAND pkg-config --cflags --libs ${package}
                  OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${FLAGS} ${flags}")
  set(${result} ${flags} PARENT_SCOPE)
endfunction()

function(build_c_consumer prefix work)
  run(${CMAKE_COMMAND} -G Ninja -S ${SOURCE}/c_consumer -B ${work}/build -DCMAKE_PREFIX_PATH=${prefix}
      -DCMAKE_C_COMPILER=${CC} -DCMAKE_BUILD_TYPE=${TYPE} "-DCMAKE_C_FLAGS=${FLAGS}")
  run(${CMAKE_COMMAND} --build ${work}/build)
  run(${work}/build/c_consumer)

  pkg_config(flags ${prefix} shardplan-c)
  run(${CC} -std=c99 -Wall -Wextra -pedantic -Werror ${SOURCE}/c_consumer/c_consumer.c -o ${work}/with_pkg_config
      ${flags} -pthread -lm)
  file(GLOB_RECURSE library ${prefix}/libshardplan.so.0)
  cmake_path(GET library PARENT_PATH folder)
  set(ENV{LD_LIBRARY_PATH} ${folder})
  run(${work}/with_pkg_config)
endfunction()

function(build_cxx_consumer prefix work)
  run(${CMAKE_COMMAND} -G Ninja -S ${SOURCE}/consumer -B ${work}/build -DCMAKE_PREFIX_PATH=${prefix}
      -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=${TYPE} "-DCMAKE_CXX_FLAGS=${FLAGS}")
  run(${CMAKE_COMMAND} --build ${work}/build)
  run(${work}/build/consumer)

  pkg_config(flags ${prefix} shardplan)
  run(${CXX} -std=c++20 ${SOURCE}/consumer/consumer.cpp ${flags} -o ${work}/with_pkg_config)
  run(${work}/with_pkg_config)
endfunction()
