"""How the code reads: gates over the syntax trees of notebooks, tests and scripts (`python tests/style.py`
has the figures)."""
import pytest
import style

UNITS = style.all_units()

@pytest.mark.parametrize('check', [style.joined_statements, style.wide_lines, style.effect_comprehensions],
                         ids=lambda check: check.__name__)
def test_none(check):
    assert not [place for unit in UNITS for place in check(unit)]

@pytest.mark.parametrize('check, code', [
    (style.joined_statements, 'a = 1; b = 2'),
    (style.joined_statements, 'if a: b(); c()'),
    (style.wide_lines, 'a = 1  # ' + 'x' * 110),
    (style.effect_comprehensions, '[print(a) for a in b]'),
    (style.nested_comprehensions, '[[c for c in b] for b in a]'),
    (style.walruses, 'if a := b: pass'),
    (style.long_functions, 'def f():\n' + '    a = 1\n' * 41),
    (style.many_parameters, 'def f(a, b, c, d, e, f, g, h, i): pass'),
])
def test_each_check_sees_what_it_looks_for(check, code):
    assert check(style.Unit('cell', code))

def test_tokens_on_a_line():
    figures = style.measures(UNITS)
    assert figures['code lines'] > 15_000
    assert figures['tokens per line, p50'] <= 10 and figures['tokens per line, p95'] <= 30
