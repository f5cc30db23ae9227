# What every target of the project shares: language level, warnings, the floating-point contract, where output goes.
include(GNUInstallDirs)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug or Release" FORCE)
endif()

find_program(SHARDPLAN_CCACHE ccache)
if(SHARDPLAN_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${SHARDPLAN_CCACHE})
  if(SHARDPLAN_PRECOMPILED_HEADERS)
    list(PREPEND CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros)
  endif()
endif()

add_library(shardplan_options INTERFACE)
file(RELATIVE_PATH source_from_build ${CMAKE_BINARY_DIR} ${PROJECT_SOURCE_DIR}/)
target_compile_options(shardplan_options INTERFACE
  # No fused multiply-add anywhere: x86-64-v2 has none, and results are the same bits on every machine.
  -ffp-contract=off
  # __FILE__ is "planner/layout.cpp" wherever the checkout lies, and however it is named: by a ccache with a base_dir too.
  -fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=
  -fmacro-prefix-map=${source_from_build}=
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor
  # g++ 12 sees overlaps in std::string's insert and replace (GCC bug 105651), writes beyond its end where a temporary one is
  # added to (bug 105329), and reads beyond the end of Boost's small_vector, that are not there.
  "$<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict;-Wno-array-bounds;-Wno-stringop-overread>")
if(SHARDPLAN_WARNINGS_AS_ERRORS)
  target_compile_options(shardplan_options INTERFACE -Werror)
endif()
