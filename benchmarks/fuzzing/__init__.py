"""Inputs that a person can cause, thousands of them: what they are, and what the commands make of them.

`values`: strange values. `places`: strange files, and what changed. `doors`: the command lines, and how they end.
`pool`: processes that may crash or hang. `case`: one input and what may come of it. `keys`, `options`, `stored`: the
inputs of each kind.
"""
