# What a Python prints for a line of its code; "" where there is no Python, or it fails.
function(odin_ask_python result code)
  set(${result} "" PARENT_SCOPE)
  set(python "${Python_EXECUTABLE}")
  if(NOT python)
    unset(python)  # find_program leaves a variable alone that is set, were it to nothing
    find_program(python NAMES python3 python NO_CACHE)
  endif()
  if(NOT python)
    return()
  endif()
  execute_process(
    COMMAND "${python}" -c "${code}" OUTPUT_VARIABLE printed RESULT_VARIABLE failed ERROR_QUIET)
  if(NOT failed)
    set(${result} "${printed}" PARENT_SCOPE)
  endif()
endfunction()
