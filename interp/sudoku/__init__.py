"""Sudoku: puzzles, solution traces with backtracking, a small transformer trained on them, and its world model."""
