"""Names that users of NumPy, PyTorch, TensorFlow, Keras and JAX try, and what serves them here.

Looked at only when a name is not found, so that it costs nothing else. A hint is what follows
"use"; every `sg.` name in it exists (a test holds that).
"""

from __future__ import annotations

_LIST = "sg.eager.tensor for values at once, sg.constant in a graph"
_SEED = "sg.random.seed"
_NUMPY = "NumPy's, on the arrays that a program gives"
_GRADIENTS = "sg.gradients(loss, [x]), sg.grad, or sg.eager.tensor(.., requires_grad=True)"
_ONE_DEVICE = "nothing: programs run on the CPU"

# Functions of `np`, `jnp`, `torch` and `tf`, as attributes of `sg` or `sg.eager`.
FUNCTIONS = {
    "absolute": "sg.abs", "allclose": f"np.allclose: {_NUMPY}", "amax": "sg.max(x, axis=..)",
    "amin": "sg.min(x, axis=..)", "arccos": "sg.acos", "arccosh": "sg.acosh", "arcsin": "sg.asin",
    "arcsinh": "sg.asinh", "arctan": "sg.atan", "arctan2": "sg.atan2", "arctanh": "sg.atanh",
    "array": _LIST, "array_equal": f"np.array_equal: {_NUMPY}", "asarray": _LIST,
    "average": "sg.mean, or sg.sum(w * x) / sg.sum(w)", "bmm": "sg.matmul",
    "cast": "sg.astype(x, dtype)", "cat": "sg.concat", "clip_by_value": "sg.clip",
    "concatenate": "sg.concat", "convert_to_tensor": _LIST, "cumprod": "sg.cumulative_prod",
    "cumsum": "sg.cumulative_sum", "diag": "sg.diagonal(x), or sg.eye(n) * v for a matrix",
    "div": "sg.divide", "double": "sg.float64", "dstack": "sg.concat(tensors, axis=2)",
    "eq": "sg.equal", "fabs": "sg.abs", "finfo": "np.finfo", "float": "sg.float32",
    "float_": "sg.float64", "float_power": "sg.pow", "from_numpy": "sg.eager.from_numpy",
    "function": "sg.jit", "gather": "sg.take (places), sg.take_along_axis (line by line)",
    "ge": "sg.greater_equal", "gt": "sg.greater", "hstack": "sg.concat(tensors, axis=1)",
    "identity": "sg.eye", "iinfo": "np.iinfo", "index_select": "sg.take(x, indices, axis=..)",
    "int": "sg.int32", "invert": "sg.bitwise_invert", "isclose": "sg.abs(a - b) <= tolerance",
    "le": "sg.less_equal", "left_shift": "sg.bitwise_left_shift",
    "linalg": "sg.matmul, sg.einsum, sg.diagonal, sg.trace, and "
              "sg.sqrt(sg.sum(x * x)) for a norm",
    "long": "sg.int64", "lt": "sg.less", "manual_seed": _SEED,
    "masked_fill": "sg.where(mask, value, x)",
    "masked_select": "sg.where(mask, x, 0): shapes don't depend on data",
    "minimize": "an optimiser's minimize(loss) for the updates of a program, or "
    "sg.value_and_grad(f) with SciPy's minimize(.., jac=True)",
    "mm": "sg.matmul", "mod": "sg.remainder", "mul": "sg.multiply", "mv": "sg.matmul",
    "nan_to_num": "sg.where(sg.isfinite(x), x, 0)", "ndarray": "sg.Tensor or np.ndarray",
    "ne": "sg.not_equal", "neg": "sg.negative", "no_grad": "sg.eager.no_grad in the dynamic mode, "
    "sg.stop_gradient(x) in a graph", "norm": "sg.sqrt(sg.sum(x * x))", "numpy": "import numpy",
    "permute": "sg.permute_dims", "placeholder": "sg.input(name, shape)",
    "power": "sg.pow", "rand": "sg.random.uniform(shape), sg.eager.rand",
    "randint": "sg.random.randint", "randn": "sg.random.normal(shape), sg.eager.randn",
    "ravel": "sg.flatten", "reduce_max": "sg.max", "reduce_mean": "sg.mean", "reduce_min": "sg.min",
    "reduce_sum": "sg.sum", "right_shift": "sg.bitwise_right_shift",
    "set_random_seed": _SEED, "stop_grad": "sg.stop_gradient", "sub": "sg.subtract",
    "swapdims": "sg.swapaxes", "tensor": _LIST,
    "topk": "sg.sort(x, descending=True), sg.argsort", "transpose": "sg.permute_dims(x, axes), "
    "sg.swapaxes(x, a, b), x.T", "true_divide": "sg.divide", "unbind": "sg.unstack",
    "unique": "sg.unique_values", "unsqueeze": "sg.expand_dims(x, axis=..)",
    "variable": "sg.parameter(value), sg.eager.Variable", "Variable": "sg.parameter(value), "
    "sg.eager.Variable", "GradientTape": "sg.eager.GradientTape",
    "view": "sg.reshape", "vstack": "sg.concat(tensors, axis=0)", "bfloat16": "sg.float32",
    "complex64": "sg.float32: there are no complex dtypes",
    "complex128": "sg.float64: there are no complex dtypes", "float16": "sg.float32",
    "half": "sg.float32", "cuda": _ONE_DEVICE, "device": _ONE_DEVICE,
    "keras": "sg.nn", "layers": "sg.nn", "lax": "sg.scan, sg.cond, sg.while_loop, sg.fori_loop",
    "fit": "model.fit", "functional": "sg.nn.functional", "Module": "sg.nn.Module",
    "losses": "sg.nn", "optimizers": "sg.optim",
    "utils": "sg.data for loaders, sg.optim for clipping",
}  # fmt: skip

# Layers of Keras, and of PyTorch what has no layer of that name, as attributes of `sg.nn`.
LAYERS = {
    "Add": "a + b", "Activation": "sg.nn.ReLU() and its kin",
    "AveragePooling1D": "sg.nn.AvgPool1d", "AveragePooling2D": "sg.nn.AvgPool2d",
    "BatchNormalization": "sg.nn.BatchNorm1d or sg.nn.BatchNorm2d",
    "CategoricalCrossentropy": "sg.nn.CrossEntropyLoss", "Concatenate": "sg.concat",
    "Conv1D": "sg.nn.Conv1d(in_channels, out_channels, kernel_size)",
    "Conv2D": "sg.nn.Conv2d(in_channels, out_channels, kernel_size)",
    "DataParallel": "the model itself: a program uses all cores",
    "Dense": "sg.nn.Linear(in_features, out_features)",
    "GlobalAveragePooling2D": "sg.nn.AdaptiveAvgPool2d(1)", "Input": "sg.input(name, shape)",
    "Layer": "sg.nn.Module", "LayerNormalization": "sg.nn.LayerNorm",
    "MaxPooling1D": "sg.nn.MaxPool1d", "MaxPooling2D": "sg.nn.MaxPool2d",
    "MeanSquaredError": "sg.nn.MSELoss", "Model": "sg.nn.Module", "SimpleRNN": "sg.nn.RNN",
    "MultiHeadAttention": "sg.nn.MultiheadAttention",
    "ParameterDict": "a dict of parameters: a module finds those in its dicts and lists",
    "SparseCategoricalCrossentropy": "sg.nn.CrossEntropyLoss",
}  # fmt: skip

# Optimisers and their kin elsewhere, as attributes of `sg.optim`.
OPTIMISERS = {
    "adam": "sg.optim.Adam", "sgd": "sg.optim.SGD", "minimize": FUNCTIONS["minimize"],
    "schedules": "sg.optim.lr_scheduler", "apply_updates": "sg.compile(.., updates=..)",
    **dict.fromkeys(("Nadam", "NAdam", "RAdam", "Adamax", "Adadelta", "LBFGS", "Lion"),
    "sg.optim.Adam, sg.optim.AdamW, sg.optim.RMSprop or sg.optim.Adagrad, or a subclass of "
    "sg.optim.Optimizer with its own `rule`"),
}  # fmt: skip

# Attributes of tensors.
TENSOR = {
    "amax": "x.max(axis=..)", "amin": "x.min(axis=..)",
    "at": "sg.where(mask, new, x), sg.concat of parts, or the dynamic mode, where x[i] = v works",
    "assign": "sg.parameter for what programs change", "cat": "sg.concat",
    "copy": "x itself: values of a graph don't change",
    "cuda": _ONE_DEVICE, "data": "sg.stop_gradient(x)", "diag": "x.diagonal()",
    "einsum": "sg.einsum", "gather": "x.take_along_axis(indices, axis=..)",
    "grad": "sg.gradients(loss, [x])", "index_select": "x.take(indices, axis=..)",
    "new_zeros": "sg.zeros(shape, dtype=x.dtype)",
    "nonzero": "sg.where with a mask: shapes of a graph don't depend on data",
    "norm": "sg.sqrt(sg.sum(x * x))", "outer": "sg.outer(x, y)",
    "ravel": "x.flatten()", "repeat": "x.tile(counts), or x.repeat_interleave as np.repeat",
    "requires_grad": _GRADIENTS,
    "requires_grad_": _GRADIENTS,
    "set_shape": "the shape in sg.input", "topk": "x.sort(descending=True), x.argsort",
    "unbind": "sg.unstack(x)", "zero_": "the dynamic mode",
}  # fmt: skip

# Attributes of models.
MODEL = {
    "compile": "model.fit(xs, ys, loss=.., optimizer=.., metrics=..), which takes what Keras's "
    "compile does",
    "count_params": "sum(p.size for p in model.parameters())",
    "get_weights": "model.state_dict()",
    "load_weights": "model.load_state_dict(sg.load(path))", "save": "sg.save(path, "
    "model.state_dict())", "save_weights": "sg.save(path, model.state_dict())",
    "set_weights": "model.load_state_dict", "summary": "print(model)",
    "trainable_variables": "list(model.parameters())",
    "trainable_weights": "list(model.parameters())", "weights": "list(model.parameters())",
}  # fmt: skip

# Keywords.
KEYWORDS = {
    "verbose": "progress=True or progress=False",
    "validation_freq": "validation_data, which is evaluated after each epoch",
    "steps_per_epoch": "a loader of that many batches", "lr": "optimizer=sg.optim.Adam(.., lr=..)",
    "learning_rate": "lr=..", "device": _ONE_DEVICE, "requires_grad": "sg.eager, sg.grad or "
    "sg.gradients", "input_shape": "the number of input features: sg.nn.Linear(in_features, "
    "out_features)", "units": "in_features, out_features", "activation": "a layer of its own: "
    "sg.nn.ReLU()", "unbiased": "correction=1 or correction=0", "ddof": "correction=..",
    "out": "the result", **dict.fromkeys(("clipnorm", "global_clipnorm", "max_grad_norm"),
    "clip_norm=.. of fit and of an optimiser's minimize"),
    "maxiter": "a loop: each call of the compiled program is one step",
    **dict.fromkeys(("var_list", "params"), "parameters=[..]"),
    "clipvalue": "clip_value=.. of fit and of an optimiser's minimize",
}  # fmt: skip


def missing(owner: str, name: str, *tables: dict[str, str]) -> str:
    """The text of the AttributeError for a name that `owner` lacks."""
    text = f"{owner} has no attribute {name!r}"
    hint = next((table[name] for table in tables if name in table), None)
    return text if hint is None else f"{text}: use {hint}"


__all__ = ["FUNCTIONS", "KEYWORDS", "LAYERS", "MODEL", "OPTIMISERS", "TENSOR", "missing"]
