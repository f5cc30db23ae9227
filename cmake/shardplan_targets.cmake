# How libraries and programs are declared. Sources are listed by hand; tests have their own function in tests/.

# shardplan_library(NAME SOURCES ... [DEPENDS ...] [PRIVATE_DEPENDS ...]): the library of the folder NAME, target
# shardplan_NAME, alias shardplan::NAME. All headers below the folder are public and are installed with their folders.
# DEPENDS are seen by those who use the headers, and must be found again by cmake/shardplan-config.cmake.in;
# PRIVATE_DEPENDS are headers that only the sources include, and leave no trace in the installed package.
function(shardplan_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS")
  set(target shardplan_${name})
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS *.h)
  add_library(${target} ${arg_SOURCES})
  add_library(shardplan::${name} ALIAS ${target})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${headers})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${arg_DEPENDS}
                        PRIVATE "$<BUILD_INTERFACE:${arg_PRIVATE_DEPENDS}>" $<BUILD_INTERFACE:shardplan_options>)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  shardplan_precompiled(${target} library)
  set_property(GLOBAL APPEND PROPERTY SHARDPLAN_LIBRARIES ${target})
endfunction()

# shardplan_fuzzed(TARGET SOURCES...): where there are fuzzers, they are told which branches of these sources an input takes.
function(shardplan_fuzzed target)
  if(SHARDPLAN_BUILD_FUZZERS)
    # What -fsanitize=fuzzer-no-link means, but it does not go with headers that were precompiled without it.
    set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS
                                -fsanitize-coverage=inline-8bit-counters,indirect-calls,trace-cmp,pc-table)
  endif()
endfunction()

# shardplan_program(NAME SOURCES ... LIBRARIES ...): an installed program, build/<preset>/bin/NAME.
function(shardplan_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBRARIES")
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LIBRARIES} shardplan_options)
  shardplan_precompiled(${name} library)
  set_property(GLOBAL APPEND PROPERTY SHARDPLAN_PROGRAMS ${name})
endfunction()
