"""Einstein summation, lowered to permutations, reshapes, products of matrices and sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from staticgrad.ir.dim import Dim, DimLike
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError

from .arithmetic import multiply
from .convert import as_tensor, promoted
from .linalg import as_matrix, diagonal
from .reduction import sum as reduce_sum
from .registry import apply
from .shape import moveaxis, permute_dims, reshape, squeeze, with_size
from .tensor import Tensor

# --- subscripts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """An operand and the label of each of its dims. Labels are letters, or ints for the dims that
    "..." stands for, counted from the end."""

    x: Tensor
    labels: tuple[Any, ...]

    def size(self, label: Any) -> DimLike:
        return self.x.shape[self.labels.index(label)]


def _split_subscripts(subscripts: Any, count: int) -> tuple[list[str], str | None]:
    if not isinstance(subscripts, str):
        raise ArgumentTypeError(
            f"einsum: expected subscripts such as 'ij,jk->ik' first, got {subscripts!r}"
        )
    text = subscripts.replace(" ", "")
    inputs, arrow, output = text.partition("->")
    terms = inputs.split(",")
    if len(terms) != count:
        raise ArgumentError(f"einsum: {subscripts!r} has {len(terms)} terms for {count} operands")
    for term in [*terms, output]:
        letters = term.replace("...", "", 1)
        if not all(c.isascii() and c.isalpha() for c in letters):
            raise ArgumentError(
                f"einsum: a term has letters and at most one '...', got {term!r} in {subscripts!r}"
            )
    return terms, output if arrow else None


def _term_labels(term: str, ndim: int, text: str) -> tuple[Any, ...]:
    before, dots, after = term.partition("...")
    named = len(before) + len(after)
    if named > ndim or (not dots and named != ndim):
        raise ShapeError(f"einsum: the term {term!r} of {text!r} names {named} of {ndim} dims")
    hidden = ndim - named
    return (*before, *range(-hidden, 0), *after)


def _output_labels(output: str | None, terms: Sequence[tuple[Any, ...]], text: str) -> Any:
    """The result's labels; without an arrow the ellipsis' dims, then in alphabetical order the
    labels that occur once."""
    counts = Counter(label for labels in terms for label in labels)
    hidden = sorted(label for label in counts if isinstance(label, int))
    if output is None:
        single = sorted(c for c, n in counts.items() if isinstance(c, str) and n == 1)
        return (*hidden, *single)
    before, dots, after = output.partition("...")
    if hidden and not dots:
        raise ArgumentError(f"einsum: the result of {text!r} must have '...' too")
    for label in (*before, *after):
        if label not in counts:
            raise ArgumentError(f"einsum: the result's label {label!r} is in no term of {text!r}")
        if (before + after).count(label) > 1:
            raise ArgumentError(f"einsum: the result's label {label!r} occurs twice in {text!r}")
    return (*before, *hidden, *after)


# --- one operand ----------------------------------------------------------------------------------


def _take_diagonals(term: _Term, text: str) -> _Term:
    """A label that occurs twice becomes the diagonal of its two dims, last."""
    x, labels = term.x, term.labels
    while len(set(labels)) < len(labels):
        label = next(c for c, n in Counter(labels).items() if n > 1)
        i, j = [a for a, c in enumerate(labels) if c == label][:2]
        x = with_size(x, j, x.shape[i], f"einsum: the label {label!r} in {text!r}")
        x = diagonal(moveaxis(x, (i, j), (-2, -1)))
        labels = (*(c for a, c in enumerate(labels) if a not in (i, j)), label)
    return _Term(x, labels)


def _sizes(terms: Sequence[_Term]) -> dict[Any, DimLike]:
    """The size of each label; an int other than 1 before a symbolic dim, a dim of 1 last."""
    found: dict[Any, DimLike] = {}
    for t in terms:
        for label, size in zip(t.labels, t.x.shape):
            known = found.get(label, 1)
            better = isinstance(known, Dim) and isinstance(size, int) and size != 1
            if (isinstance(known, int) and known == 1) or better:
                found[label] = size
    return found


def _fit(term: _Term, sizes: dict[Any, DimLike], text: str) -> _Term:
    """Drops the dims of 1 that broadcast against a larger one; all others must agree."""
    x, gone = term.x, []
    for a, (label, size) in enumerate(zip(term.labels, term.x.shape)):
        whole = sizes[label]
        if isinstance(size, int) and size == 1 and not (isinstance(whole, int) and whole == 1):
            gone.append(a)
        else:
            name = "the dims of '...'" if isinstance(label, int) else f"the label {label!r}"
            x = with_size(x, a, whole, f"einsum: {name} in {text!r}")
    if gone:
        x = squeeze(x, axis=tuple(gone))
    return _Term(x, tuple(c for a, c in enumerate(term.labels) if a not in gone))


def _sum_unneeded(term: _Term, needed: set[Any]) -> _Term:
    axes = tuple(a for a, c in enumerate(term.labels) if c not in needed)
    if not axes:
        return term
    kept = tuple(c for c in term.labels if c in needed)
    return _Term(reduce_sum(term.x, axis=axes, dtype=term.x.dtype), kept)


# --- two operands ---------------------------------------------------------------------------------


def _aligned(term: _Term, labels: tuple[Any, ...]) -> Tensor:
    """The operand with its dims in the order of `labels`, and 1 where it does not have one."""
    order = tuple(term.labels.index(c) for c in labels if c in term.labels)
    shape = tuple(term.size(c) if c in term.labels else 1 for c in labels)
    return reshape(permute_dims(term.x, order), shape)


def _matrices(term: _Term, batch: Any, free: Any, summed: Any, last: bool) -> Tensor:
    """[batch.., free, summed] (or summed before free), permuted only where it must be."""
    if not batch:
        at = {c: a for a, c in enumerate(term.labels)}
        return as_matrix(
            term.x, tuple(at[c] for c in free), tuple(at[c] for c in summed), last=last
        )
    own = (*batch, *free, *summed)
    swapped = (*batch, *summed, *free)
    transposed = term.labels == swapped if last else term.labels != own
    order = swapped if transposed else own
    sizes = {c: term.size(c) for c in term.labels}

    def merged(labels: Any) -> DimLike:
        total: DimLike = 1
        for c in labels:
            total = total * sizes[c]
        return total

    x = permute_dims(term.x, tuple(term.labels.index(c) for c in order))
    parts = (summed, free) if transposed else (free, summed)
    y = reshape(x, (*(sizes[c] for c in batch), *(merged(p) for p in parts)))
    # `transposed` has the summed dims first, which is what the right operand needs.
    return y if transposed != last else permute_dims(y, (*range(len(batch)), -1, -2))


def _contract(a: _Term, b: _Term, needed: set[Any], output: tuple[Any, ...]) -> _Term:
    """The product of two terms, summed over the labels that nothing else needs."""
    a, b = (
        _sum_unneeded(t, needed | set(other.labels)) for t, other in ((a, b), (b, a))
    )  # fmt: skip
    both = [c for c in a.labels if c in b.labels]
    summed = tuple(c for c in both if c not in needed)
    rank = {c: i for i, c in enumerate(output)}
    batch = tuple(sorted((c for c in both if c in needed), key=lambda c: rank.get(c, len(rank))))
    free_a = tuple(c for c in a.labels if c not in both)
    free_b = tuple(c for c in b.labels if c not in both)
    if free_a and free_b and rank.get(free_a[0], -1) > rank.get(free_b[0], len(rank)):
        a, b, free_a, free_b = b, a, free_b, free_a
    labels = (*batch, *free_a, *free_b)
    if not summed:
        return _Term(multiply(_aligned(a, labels), _aligned(b, labels)), labels)
    if not free_a and not free_b:  # a dot product of each pair of lines: one sweep
        wide = (*batch, *summed)
        axes = tuple(range(len(batch), len(wide)))
        product = multiply(_aligned(a, wide), _aligned(b, wide))
        return _Term(reduce_sum(product, axis=axes, dtype=product.dtype), batch)
    sizes = {c: t.size(c) for t in (a, b) for c in t.labels}
    left = _matrices(a, batch, free_a, summed, last=True)
    right = _matrices(b, batch, free_b, summed, last=False)
    y = apply("matmul", left, right)
    return _Term(reshape(y, tuple(sizes[c] for c in labels)), labels)


def _pair_cost(a: _Term, b: _Term, needed: set[Any]) -> tuple[int, int] | None:
    """(elements of the two terms' product less their own, multiplications); None where a size is
    symbolic."""
    sizes = {c: t.size(c) for t in (a, b) for c in t.labels}
    if any(isinstance(d, Dim) for d in sizes.values()):
        return None
    count = {c: int(d) for c, d in sizes.items()}
    result, own_a, own_b = (
        prod(count[c] for c in labels)
        for labels in ([c for c in count if c in needed], a.labels, b.labels)
    )
    return result - own_a - own_b, prod(count.values())


def _next_pair(terms: Sequence[_Term], output: tuple[Any, ...]) -> tuple[int, int]:
    """The pair whose product shrinks the operands most; the first two where sizes are symbolic."""
    best, best_cost = (0, 1), None
    if len(terms) == 2:
        return best
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            cost = _pair_cost(terms[i], terms[j], _needed(terms, (i, j), output))
            if cost is None:
                return 0, 1
            if best_cost is None or cost < best_cost:
                best, best_cost = (i, j), cost
    return best


def _needed(terms: Sequence[_Term], pair: tuple[int, int], output: tuple[Any, ...]) -> set[Any]:
    others = (t for i, t in enumerate(terms) if i not in pair)
    return {*output, *(c for t in others for c in t.labels)}


def einsum(subscripts: str, /, *operands: Any) -> Tensor:
    """Einstein summation: 'bij,bjk->bik' is y[b, i, k] = sum over j of x1[b, i, j] * x2[b, j, k].

    A letter names a dim; letters that the result does not have are summed over; a letter twice in
    one term is its diagonal; '...' stands for any further dims, which broadcast. Without '->' the
    result has the letters that occur once, in alphabetical order. Any number of operands, of
    numbers, promoted; where all sizes are ints the pair that shrinks most is multiplied first, else
    from left to right. Source: NumPy's einsum.
    """
    if not operands:
        raise ArgumentError("einsum: expected at least one operand")
    texts, output_text = _split_subscripts(subscripts, len(operands))
    tensors = promoted(*(as_tensor(x, "einsum") for x in operands))
    if tensors[0].dtype.kind == "b":
        raise DTypeError("einsum: expected numbers, got bool operands")
    labels = [_term_labels(t, x.ndim, subscripts) for t, x in zip(texts, tensors)]
    output = _output_labels(output_text, labels, subscripts)
    terms = [_take_diagonals(_Term(x, c), subscripts) for x, c in zip(tensors, labels)]
    sizes = _sizes(terms)
    terms = [_fit(t, sizes, subscripts) for t in terms]
    while len(terms) > 1:
        i, j = _next_pair(terms, output)
        product = _contract(terms[i], terms[j], _needed(terms, (i, j), output), output)
        terms = [*(t for k, t in enumerate(terms) if k not in (i, j)), product]
    return _finish(_sum_unneeded(terms[0], set(output)), output)


def _finish(term: _Term, output: tuple[Any, ...]) -> Tensor:
    return permute_dims(term.x, tuple(term.labels.index(c) for c in output))


__all__ = ["einsum"]
