"""Python literals as EvalPlus writes them: what `ast.literal_eval` reads, and ``inf`` and ``nan`` by name."""

import ast
from typing import Any


class _Names(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(float(node.id)) if node.id in ("inf", "nan") else node


def parse_literal(text: str) -> Any:
    """The value of ``text``; raises `ValueError` where it is more than a literal. Nothing is executed."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return ast.literal_eval(_Names().visit(tree) if "inf" in text or "nan" in text else tree)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a literal: {error}") from None
