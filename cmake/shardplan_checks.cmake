# Targets that look at the sources: format, format-check, tidy, tidy-tests. Version 19, so that everyone gets the same answer.
set(source_folders base planner runtime offload shard tools tests)

list(JOIN source_folders " " format_folders)
set(find_sources "find ${format_folders} -name '*.h' -o -name '*.cpp' -o -name '*.cu' 2>/dev/null | sort")
add_custom_target(format COMMAND sh -c "${find_sources} | xargs clang-format-19 -i"
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)
add_custom_target(format-check COMMAND sh -c "${find_sources} | xargs clang-format-19 --dry-run --Werror"
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)

# Reads the C++ sources that this build compiles, and every header of ours that they include (.clang-tidy).
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
function(add_tidy_target name folders)
  list(JOIN folders "|" folders)
  add_custom_target(${name} COMMAND run-clang-tidy-19 -quiet -j ${cores} -p ${PROJECT_BINARY_DIR}
                                    -extra-arg=-Wno-unknown-warning-option -extra-arg=-Wno-error
                                    "^${PROJECT_SOURCE_DIR}/(${folders})/.*[.]cpp$"
                    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM USES_TERMINAL)
endfunction()
add_tidy_target(tidy "base;planner;runtime;offload;shard;tools")
add_tidy_target(tidy-tests tests)
