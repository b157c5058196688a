# The Node addon that is shipped.

# A Node addon of the given sources that links the engine and the object libraries after LINK.
function(rlhf_add_addon target output_directory)
  cmake_parse_arguments(PARSE_ARGV 2 addon "" "" "SOURCES;LINK")
  add_library(${target}_objects OBJECT ${addon_SOURCES} ${CMAKE_JS_SRC})
  target_include_directories(${target}_objects SYSTEM PRIVATE ${CMAKE_JS_INC})
  target_compile_definitions(${target}_objects PRIVATE NAPI_VERSION=8 NODE_ADDON_API_CPP_EXCEPTIONS)
  target_link_libraries(${target}_objects PRIVATE rlhf_options ${addon_LINK})

  # No sources of its own: those would be linked after the SIMD objects.
  add_library(${target} SHARED)
  set_target_properties(${target} PROPERTIES
    LINKER_LANGUAGE CXX PREFIX "" SUFFIX ".node"
    LIBRARY_OUTPUT_DIRECTORY "${output_directory}" RUNTIME_OUTPUT_DIRECTORY "${output_directory}")
  target_link_libraries(${target} PRIVATE ${target}_objects ${addon_LINK} ${RLHF_ENGINE_OBJECTS} ${CMAKE_JS_LIB})
  target_link_options(${target} PRIVATE ${RLHF_LINK_OPTIONS})
  if(APPLE)
    target_link_options(${target} PRIVATE -undefined dynamic_lookup)
  endif()
endfunction()

rlhf_glob(addon_sources node/*.cc)
list(FILTER addon_sources EXCLUDE REGEX "/node/kernels[^/]*\\.cc$")
if(addon_sources)
  rlhf_add_addon(rlhf "${RLHF_OUTPUT_DIRECTORY}" SOURCES ${addon_sources})
else()
  message(WARNING "csrc/node holds no sources: the addon is not built")
endif()
