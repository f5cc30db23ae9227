# Targets that look at the sources: format, format-check, tidy. Version 19, so that everyone gets the same answer.
set(source_folders base planner runtime offload shard tools tests)

list(JOIN source_folders " " format_folders)
set(find_sources "find ${format_folders} -name '*.h' -o -name '*.cpp' -o -name '*.cu' 2>/dev/null | sort")
add_custom_target(format COMMAND sh -c "${find_sources} | xargs clang-format-19 -i"
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)
add_custom_target(format-check COMMAND sh -c "${find_sources} | xargs clang-format-19 --dry-run --Werror"
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)

# Reads the C++ sources that this build compiles, and every header of ours that they include (.clang-tidy).
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
list(JOIN source_folders "|" tidy_folders)
if(SHARDPLAN_BUILD_FUZZERS)
  set(tidy_folders tests/fuzz)
endif()
add_custom_target(tidy COMMAND run-clang-tidy-19 -quiet -j ${cores} -p ${PROJECT_BINARY_DIR}
                               -extra-arg=-Wno-unknown-warning-option
                               "^${PROJECT_SOURCE_DIR}/(${tidy_folders})/.*[.]cpp$"
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM USES_TERMINAL)
