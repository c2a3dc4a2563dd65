"""The same work in staticgrad and in the frameworks one would use instead, side by side.

`python -m benchmarks` from the repository's root runs it; `benchmarks/README.md` tells how it
measures. Modules in the order in which data flows:

    workload, elementwise, products, models, suite   what is computed, once for all frameworks
    drivers, *_driver, numpy_tape                    how each framework computes it
    worker, client                                   each framework in a process of its own
    ceilings                                         what the machine can do at best
    measure, results                                 repetitions in turn; the JSON document
    report, compare, plot, page                      what people read
"""
