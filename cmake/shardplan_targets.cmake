# What every target of the project shares: language level, warnings, floating-point contract, folders of output.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)

find_program(SHARDPLAN_CCACHE ccache)
if(SHARDPLAN_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${SHARDPLAN_CCACHE})
endif()

add_library(shardplan_options INTERFACE)
target_compile_features(shardplan_options INTERFACE cxx_std_20)
# No fused multiply-add anywhere: x86-64-v2 has none, and results are the same bits on every machine (docs/numerics.md).
target_compile_options(shardplan_options INTERFACE -ffp-contract=off)
target_compile_options(shardplan_options INTERFACE
  $<BUILD_INTERFACE:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor>)
if(SHARDPLAN_WARNINGS_AS_ERRORS)
  target_compile_options(shardplan_options INTERFACE $<BUILD_INTERFACE:-Werror>)
endif()

# shardplan_library(NAME SOURCES ... DEPENDS ...): one folder's library, shardplan_NAME, alias shardplan::NAME.
function(shardplan_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS")
  add_library(shardplan_${name} ${arg_SOURCES})
  add_library(shardplan::${name} ALIAS shardplan_${name})
  target_include_directories(shardplan_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                                      $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/shardplan>)
  target_link_libraries(shardplan_${name} PUBLIC ${arg_DEPENDS} PRIVATE ${arg_PRIVATE_DEPENDS} shardplan_options)
  set_target_properties(shardplan_${name} PROPERTIES EXPORT_NAME ${name})
endfunction()
