"""Operations: one record each. Importing this package registers all of them."""

from . import arithmetic, convert, leaves, reduction, shape  # noqa: F401
