"""The legend of axis letters used in every shape, einsum string and docstring of this project.

| letter | axis |
|---|---|
| `b` | sequences of a batch |
| `t` | positions of a sequence (query positions where there are two) |
| `s` | source positions (keys, values) |
| `d` | width of the residual stream |
| `m` | width of an MLP's hidden layer; entries of a flattened sparse batch in `saes.codes` |
| `h` | attention (query) heads |
| `g` | key-value groups: `g` divides `h`, and query head `i` reads group `i // (h // g)` |
| `e` | width of one head |
| `f` | features of a dictionary |
| `k` | active features of a token |
| `n` | tokens flattened over sequences, padding removed |
| `v` | vocabulary |
| `l` | layers |
| `c` | concepts, classes |
| `r` | rank |

A shape such as `"b t d"` is checked at run time in the tests, and costs nothing elsewhere.
"""
