# Compiler settings that hold for every target.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(RLHF_CCACHE ccache)
mark_as_advanced(RLHF_CCACHE)
if(RLHF_CCACHE)
  foreach(language CXX CUDA)
    if(NOT CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER "${RLHF_CCACHE}")
    endif()
  endforeach()
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(RLHF_X86 TRUE)
else()
  set(RLHF_X86 FALSE)
endif()

# Usage requirements of every C++ target. Neither -march=native (a binary must run on any machine of its
# architecture) nor -ffast-math (NaN and infinity are meaningful here, and sums keep their order).
add_library(rlhf_options INTERFACE)
target_include_directories(rlhf_options INTERFACE "${CMAKE_SOURCE_DIR}/csrc")
target_link_libraries(rlhf_options INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
if(RLHF_X86)
  target_compile_definitions(rlhf_options INTERFACE RLHF_X86=1)
endif()
if(NOT MSVC)
  target_compile_options(rlhf_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-fno-math-errno;-fno-trapping-math;-ffunction-sections;-fdata-sections>)
endif()
if(RLHF_SANITIZE)
  target_compile_options(rlhf_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${RLHF_SANITIZE};-fno-omit-frame-pointer;-O1;-g>)
  target_link_options(rlhf_options INTERFACE -fsanitize=${RLHF_SANITIZE})
endif()
if(RLHF_COVERAGE)
  target_compile_options(rlhf_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:--coverage;-O1>)
  target_link_options(rlhf_options INTERFACE --coverage)
endif()

# Link options of the shared objects that users load. The C++ runtime goes inside; libgcc stays shared, since
# linking it statically would raise the glibc that is needed from 2.34 to 2.35. With "now" a symbol that is missing
# makes loading fail, where it would otherwise end the process at the first call.
set(RLHF_LINK_OPTIONS "")
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  list(APPEND RLHF_LINK_OPTIONS -Wl,--exclude-libs,ALL -Wl,--gc-sections -Wl,-z,relro,-z,now)
  if(NOT RLHF_SANITIZE)
    list(APPEND RLHF_LINK_OPTIONS -static-libstdc++)
  endif()
elseif(APPLE)
  list(APPEND RLHF_LINK_OPTIONS -Wl,-dead_strip)
endif()
