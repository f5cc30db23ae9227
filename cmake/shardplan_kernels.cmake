# shardplan_kernels(LIBRARY SOURCE): compiles a source of kernels into LIBRARY once per level of processor, with
# SHARDPLAN_KERNEL_LEVEL (a namespace) and SHARDPLAN_KERNEL_NAME (a string) defined. Always optimized, in every build type:
# without errno and traps square roots and selections are vectorised, and no inline function is emitted out of line.
# SHARDPLAN_KERNEL_PLATFORM says which file chooses among the levels at run time.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(SHARDPLAN_KERNEL_LEVELS x86-64-v2 x86-64-v3 x86-64-v4)
  set(SHARDPLAN_KERNEL_PLATFORM x86_64)
else()
  set(SHARDPLAN_KERNEL_LEVELS portable)
  set(SHARDPLAN_KERNEL_PLATFORM portable)
endif()
if(NOT SHARDPLAN_STREAMING_COPY)
  set(SHARDPLAN_STREAMING_COPY ${SHARDPLAN_KERNEL_PLATFORM})
endif()

function(shardplan_kernels library source)
  get_filename_component(stem ${source} NAME_WE)
  foreach(level IN LISTS SHARDPLAN_KERNEL_LEVELS)
    string(MAKE_C_IDENTIFIER ${level} namespace)
    set(target shardplan_${stem}_${namespace})
    add_library(${target} OBJECT ${source})
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${target} PRIVATE shardplan_options)
    target_compile_options(${target} PRIVATE -O3 -fno-math-errno -fno-trapping-math)
    if(NOT level STREQUAL portable)
      target_compile_options(${target} PRIVATE -march=${level})
    endif()
    if(level STREQUAL x86-64-v4)
      # The norm widens to double and is close to bound by computation: 0.90 of the limit with 256 bits, 0.91-0.99 with 512.
      target_compile_options(${target} PRIVATE -mprefer-vector-width=512)
    endif()
    target_compile_definitions(${target} PRIVATE SHARDPLAN_KERNEL_LEVEL=kernels_${namespace}
                                                 SHARDPLAN_KERNEL_NAME="${level}")
    target_sources(${library} PRIVATE $<TARGET_OBJECTS:${target}>)
    set_property(GLOBAL APPEND PROPERTY SHARDPLAN_KERNEL_TARGETS ${target})
  endforeach()
endfunction()
