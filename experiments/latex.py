"""Tables for LaTeX, with the rules of the package booktabs."""

from collections.abc import Collection

from experiments.document import TableBlock, make_printable

SPECIAL = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    **{character: f"{{{character}}}" for character in "[]*-`'?!,"},  # no option or star of \\, and no ligature
}


def escape_latex(text: str) -> str:
    """Return a text that LaTeX prints literally, on one line."""
    return "".join(SPECIAL.get(character, character) for character in " ".join(str(make_printable(text)).split()))


def latex_table(table: TableBlock, without: Collection[str] = ()) -> str:
    """Return a tabular, the best row bold."""
    kept = [i for i, column in enumerate(table.columns) if column not in without]
    lines = [r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"]
    lines += [f"\\begin{{tabular}}{{{''.join('r' if table.numeric[i] else 'l' for i in kept)}}}", r"\toprule"]
    lines += [" & ".join(escape_latex(table.columns[i]) for i in kept) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        cells = [format_cell(row[i].text) for i in kept]
        if number == table.marked:
            cells = [f"\\textbf{{{cell}}}" for cell in cells]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def format_cell(text: str) -> str:
    """Return a cell; a number has its minus sign, and nothing a dash."""
    if text == "-":
        return "--"
    escaped = escape_latex(text)
    return escaped.replace("{-}", "$-$", 1) if text.startswith("-") and text[1:2].isdigit() else escaped
