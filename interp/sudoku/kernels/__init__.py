"""The inner loops, written for numba and plain Python as they stand; `interp.sudoku.jit` compiles them where numba is.

Every array is flat and only indexed, so a list does as well, and every number is a whole number: both ways give the
same result bit for bit. Kernels call kernels and nothing else. `no_type_check` keeps run-time checks out of them.
"""
