"""The page of Sudoku studies: sections made of what `interp.sudoku` measured."""
