"""Changes a template's syntax tree so that loops, literals, slices and comparisons are counted while it runs."""

from __future__ import annotations

from typing import TypeVar

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateAssertionError
from jinja2.visitor import NodeTransformer

from medha_jax.chat.work_limit import STEP

# filters whose names a template cannot write
STEP_FILTER, CONCAT, MADE, SLICE, READ = " step", " concat", " made", " slice", " read"
_REFUSED = (
    nodes.Extends,
    nodes.FromImport,
    nodes.Import,
    nodes.Include,
    nodes.EvalContextModifier,
    nodes.ScopedEvalContextModifier,
)
B = TypeVar("B", nodes.Macro, nodes.CallBlock, nodes.Block)


def counted(template: nodes.Template, environment: Environment) -> nodes.Template:
    """The template with what counts it; the tree is changed in place.

    Raises:
        TemplateAssertionError: it includes other templates, or escapes.
    """
    for node in template.find_all(_REFUSED):
        raise TemplateAssertionError("other templates and autoescape are no part of a chat template", node.lineno)
    changed: nodes.Template = _Counting().visit(template)
    changed.set_environment(environment)
    return changed


class _Counting(NodeTransformer):
    """Rewrites from the leaves up."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        step = _step(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:  # runs for the items that the body never sees, too
            node.test = nodes.And(_step(node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._body(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Block:
        return self._body(node)

    def _body(self, node: B) -> B:
        step = _step(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(CONCAT, node.nodes[0], *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        return _filter(SLICE, node.node, node.arg.start or none, node.arg.stop or none, node.arg.step or none)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._literal(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        return self._literal(node, [part for pair in node.items for part in (pair.key, pair.value)])

    def _literal(self, node: nodes.Expr, parts: list[nodes.Expr]) -> nodes.Expr:
        constant = all(isinstance(part, nodes.Const) for part in parts)
        self.generic_visit(node)
        return node if constant else _filter(MADE, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _looked_at(node.expr)
        for operand in node.ops:
            operand.expr = _looked_at(operand.expr)
        return node


def _looked_at(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter(READ, node)


def _step(node: nodes.Node) -> nodes.Expr:
    """Counts one run of a body: a step, and the text in it."""
    text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    return _filter(STEP_FILTER, nodes.Const(STEP + text, lineno=node.lineno))


def _filter(name: str, value: nodes.Expr, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(arguments), [], None, None, lineno=value.lineno)
