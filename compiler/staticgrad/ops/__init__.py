"""Operations: one record each. Importing this package registers all of them."""

from . import (  # noqa: F401
    activation,
    arithmetic,
    attention,
    attention_tangent,
    checking,
    comparison,
    control,
    conv,
    convert,
    creation,
    cumulative,
    custom_rules,
    einsum,
    exponential,
    gather,
    indexing,
    joining,
    leaves,
    linalg,
    logical,
    mode,
    pooled_conv,
    pooling,
    public,
    random,
    reduction,
    registry,
    rounding,
    searching,
    selection,
    shape,
    slicing,
    softmax,
    sorting,
    special,
    standardize,
    structure,
    trigonometric,
)

# The families of the public API; of modules that hold helpers too, their public names.
for _family in (
    activation, arithmetic, comparison, creation, cumulative, einsum, exponential, indexing,
    joining, linalg, logical, random, reduction, rounding, searching, selection, shape,
    slicing, softmax, sorting, special, trigonometric,
):  # fmt: skip
    public.publish(_family, _family.__all__)
public.publish(convert, ("astype", "constant"))
public.publish(leaves, ("Parameter", "input", "parameter"), eager=False)

from . import pytorch_names  # noqa: E402, F401  # of the functions above

registry.seal_builtin()
