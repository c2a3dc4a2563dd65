"""The contrast: one model as a static graph and in the dynamic mode, measured.

    subject     the model both ways: a compiled step, and the same step op by op
    graphs      the declared graph at given sizes, in float64, with draws that both modes share
    replay      a declared graph run node by node as eager operations
    clock       medians of interleaved repetitions
    agreement, build, counts, shapes, mistakes, passes, inside
                one question each: a function from a subject to plain data
    text, page  the answers for the terminal and as one HTML file

`staticgrad compare` (in `cli`) puts the answers together.
"""
