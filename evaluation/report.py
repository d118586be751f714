"""What people look at: one self-contained HTML page, a LaTeX row, and several models side by side.

Pages hold their pictures and drawings in themselves and load nothing.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..media.crop import Crop
from ..media.errors import InputError
from ..media.files import atomic_write, make_folder
from ..media.image import load_image
from ..media.sheet import contact_sheet
from .dataset import Picture
from .metrics import bootstrap
from .protocols import stretched
from .run import ALL, Result, Row, read_result

CELL = 192
"""Pixels of a picture on a page."""
CASES = 5
"""Worst and best pairs shown."""
STRIPS, STRIP_FRAMES = 3, 8
RANKING = ("lpips_vgg", "lpips_alex", "perceptual_effnet", "apd_open")
"""The first of these that a result has orders its cases from best to worst."""
SPREAD = ("l1", "psnr", "ssim", "lpips_vgg", "perceptual_effnet", "akd_mediapipe68", "apd_open", "aed_expression_open")
"""Metrics whose distribution over people is drawn, with the cosines to the source."""
_SHORT = {"perceptual_effnet": "perceptual", "akd_mediapipe68": "AKD", "apd_open": "APD", "psnr": "PSNR"}
MANY = 40
"""Most people that a drawing lists one by one."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2126;background:#fff;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5d9de}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.6rem 0}
td,th{padding:.22rem .7rem;text-align:right;border-bottom:1px solid #e6e9ec;vertical-align:top}
th{font-weight:600;background:#f5f6f8}td:first-child,th:first-child{text-align:left}
td.text,th.text{text-align:left;max-width:30rem;min-width:8rem}td small{white-space:nowrap}
small,.soft{color:#69727d}.good{color:#0a7a3c}.bad{color:#b3261e}code{font-size:.86em}
.note{background:#fff6df;border-left:4px solid #e0a800;padding:.3rem .8rem;margin:.4rem 0}
img{max-width:100%}figure{margin:.6rem 0}.plots{display:flex;flex-wrap:wrap;gap:1.2rem}details{margin:.6rem 0}
.wide{overflow-x:auto}svg{max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif}svg .title{font-weight:600}svg .soft{fill:#69727d}
svg circle{fill:#3b6fb6;opacity:.4}svg line{stroke:#1d2126;stroke-width:2}
"""


@dataclass(frozen=True)
class Place:
    """Pictures of a pair on this machine."""

    source: Path
    driving: Path
    shown: tuple[float, float] | None
    """Stretch of the driving picture that the model saw."""
    result: Path


def write_report(result: Result, output: Path | str) -> Path:
    """report.html and table.tex of an evaluation; gives the page's path."""
    output = Path(output)
    places = _read_places(output)
    parts = [
        f"<h1>{_text(result.name)}</h1>",
        _subtitle(result),
        *(f'<p class="note">{_text(problem)}</p>' for problem in result.problems),
        "<h2>Numbers</h2>",
        "<p class=soft>Means over pairs, 95 % intervals from drawing whole clips with replacement; the number of pairs "
        "where it is not that of the column. &darr; lower is better, &uarr; higher is better.</p>",
        _numbers(result),
        *_cases(result, places),
        *_strips(result, places),
        *_spreads(result),
        "<h2>What the metrics are</h2>",
        _definitions(result),
        "<h2>How it was run</h2>",
        f"<pre class=wide>{_text(json.dumps(result.facts, indent=1))}</pre>",
    ]
    page = output / "report.html"
    _write_page(page, f"{result.name}: {result.facts.get('protocol', '')}", parts)
    with atomic_write(output / "table.tex") as temporary:
        temporary.write_text(latex([result], [result.tables[ALL]]))
    return page


def compare(folders: Sequence[Path | str], output: Path | str) -> Path:
    """compare.html, compare.json and table.tex of evaluations of the same pairs; gives the page's path.

    Raises:
        InputError: a folder holds no evaluation, or they have no pairs or no metrics in common.
    """
    if len(folders) < 2:
        raise InputError(f"Name at least two evaluations to compare, got {len(folders)}.")
    results = [read_result(folder) for folder in folders]
    _name_apart(results, folders)
    output = Path(output)
    make_folder(output)
    common = _common_pairs(results)
    names, notes = _common_metrics(results)
    whole = all(len(common) == len(r.rows) for r in results)
    counts = ", ".join(f"{r.name} {len(r.rows)}" for r in results)
    if not whole:
        notes.append(f"Only the {len(common)} pairs that all have count; there are {counts}.")
    groups = sorted({rows[0].group for rows in common if rows[0].group})
    tables = {group: _paired(results, common, names, group) for group in [ALL, *groups]}
    if whole:
        _add_set_metrics(tables, results, names)
    places = [_read_places(Path(folder)) for folder in folders]
    parts = [
        f"<h1>{_text(' / '.join(r.name for r in results))}</h1>",
        _subtitle(results[0], pairs=len(common)),
        *(f'<p class="note">{_text(note)}</p>' for note in notes),
        "<h2>Numbers</h2>",
        f"<p class=soft>Under each mean the paired difference from {_text(results[0].name)} with its 95 % interval "
        "(whole clips drawn with replacement): green where the interval lies on the better side of 0, red on the "
        "worse one. Set metrics have no interval.</p>",
        *(_comparison(results, tables[group], group, len(tables) > 1) for group in tables),
        *_side_by_side(results, common, places),
        "<h2>What the metrics are</h2>",
        _definitions(results[0], names),
        "<h2>How they were run</h2>",
        *(f"<h3>{_text(r.name)}</h3><pre class=wide>{_text(json.dumps(r.facts, indent=1))}</pre>" for r in results),
    ]
    page = output / "compare.html"
    _write_page(page, "comparison", parts)
    summary = {
        "format": "headwarp-comparison-1",
        "models": [{"name": r.name, "facts": r.facts} for r in results],
        "pairs": len(common),
        "notes": notes,
        "tables": tables,
    }
    with atomic_write(output / "compare.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    means = [{n: cells[i] for n, cells in tables[ALL].items()} for i in range(len(results))]
    with atomic_write(output / "table.tex") as temporary:
        temporary.write_text(latex(results, means))
    return page


def latex(results: Sequence[Result], tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """A tabular with a row for each model, the best of each column bold; needs no package."""
    names = [n for n in tables[0] if n in results[0].metrics]
    arrows = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}
    cards = results[0].metrics
    head = " & ".join(f"{_tex(cards[n]['title'])} {arrows[cards[n]['better']]}" for n in names)
    lines = [
        "% " + ", ".join(f"{n}: {cards[n]['card']['name']} {cards[n]['card']['sha256'][:12]}".rstrip() for n in names),
        r"\begin{tabular}{l" + "r" * len(names) + "}",
        f"Model & {head} \\\\ \\hline",
    ]
    for result, table in zip(results, tables, strict=True):
        cells = []
        for name in names:
            value = table.get(name, {}).get("mean")
            shown = "--" if value is None else _number(value)
            others = [t[name]["mean"] for t in tables if name in t]
            best = (min if cards[name]["better"] == "lower" else max)(others)
            cells.append(rf"\textbf{{{shown}}}" if len(results) > 1 and value == best else shown)
        lines.append(f"{_tex(result.name)} & " + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\end{tabular}", ""])


def _subtitle(result: Result, pairs: int | None = None) -> str:
    facts = result.facts
    seconds = facts.get("seconds", {})
    speed = ", ".join(f"{1000 * s:.0f} ms {name.replace('_', ' ')}" for name, s in seconds.items())
    said = [
        f"protocol <b>{_text(str(facts.get('protocol')))}</b>",
        f"data <b>{_text(str(facts.get('data')))}</b>",
        f"{pairs or len(result.rows)} pairs, {facts.get('clips')} clips, {facts.get('identities')} people as source",
        f"{facts.get('size')} px",
    ]
    if speed and pairs is None:
        said.append(speed)
    return f'<p class="soft">{" &middot; ".join(said)}</p>'


def _numbers(result: Result) -> str:
    groups = list(result.tables)
    pairs = {g: max(int(cell["count"]) for cell in result.tables[g].values()) for g in groups}
    head = "".join(f"<th>{_text(g)}<br><small>{pairs[g]} pairs</small></th>" for g in groups)
    lines = [f"<tr><th>metric</th>{head}<th class=text>read by</th><th class=text>in place of</th></tr>"]
    for name, card in result.metrics.items():
        cells = "".join(f"<td>{_cell(result.tables[g].get(name), pairs[g])}</td>" for g in groups)
        read = _text(card["card"]["name"]) if card["card"]["name"] != "none" else ""
        tail = f"<td class=text>{read}</td><td class=text>{_text(card['stands_for'])}</td>"
        lines.append(f"<tr><td>{_title(card)}</td>{cells}{tail}</tr>")
    found = "".join(f"<td>{100 * result.tables[g]['face_found']['mean']:.1f} %</td>" for g in groups)
    lines.append(f"<tr><td>face found in the result</td>{found}<td class=text>mediapipe</td><td></td></tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _title(card: Mapping[str, Any]) -> str:
    arrow = "&darr;" if card["better"] == "lower" else "&uarr;"
    unit = f" <small>{_text(card['unit'])}</small>" if card["unit"] else ""
    return f"{_text(card['title'])} {arrow}{unit}"


def _cell(cell: Mapping[str, float] | None, pairs: int) -> str:
    if cell is None:
        return "<small>&ndash;</small>"
    lines = [_number(cell["mean"])]
    if "low" in cell:
        lines.append(f"<small>[{_number(cell['low'])}, {_number(cell['high'])}]</small>")
    if cell["count"] != pairs:
        lines.append(f"<small>{cell['count']} pairs</small>")
    return "<br>".join(lines)


def _definitions(result: Result, names: Iterable[str] | None = None) -> str:
    lines = [
        "<tr><th>name</th><th class=text>formula</th><th class=text>against</th><th class=text>reduction</th>"
        "<th class=text>read by, sha256 of its weights</th></tr>"
    ]
    for name in result.metrics if names is None else names:
        card = result.metrics[name]
        reader = card["card"]
        who = "pixels" if reader["name"] == "none" else f"{_text(reader['name'])}: {_text(reader['note'])}"
        digest = f"<br><code title='{reader['sha256']}'>{reader['sha256'][:16]}</code>" if reader["sha256"] else ""
        texts = (card["formula"], {"itself": "nothing"}.get(card["against"], card["against"]), card["reduction"])
        cells = "".join(f"<td class=text>{_text(text)}</td>" for text in texts)
        lines.append(f"<tr><td><code>{name}</code></td>{cells}<td class=text>{who}{digest}</td></tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _cases(result: Result, places: Mapping[str, Place]) -> list[str]:
    """The worst and best pairs as pictures."""
    name = next((n for n in RANKING if any(n in row.values for row in result.rows)), None)
    if name is None or not places:
        return []
    card = result.metrics[name]
    ranked = sorted((row for row in result.rows if name in row.values), key=lambda row: row.values[name])
    if card["better"] == "higher":
        ranked.reverse()
    lost = [row for row in result.rows if not row.found]
    parts = []
    for title, rows in (
        (f"Worst by {card['title']}", _spread_out(reversed(ranked), CASES)),
        (f"Best by {card['title']}", _spread_out(ranked, CASES)),
        (f"No face found in the result: {len(lost)} of {len(result.rows)} pairs", lost[:CASES]),
    ):
        if rows:
            pictures = [_case_pictures(row, places[row.pair]) for row in rows]
            labels = [_case_label(row, name) for row in rows]
            columns = ["source", "driving", "result", "difference x 2"] if any(len(p) > 3 for p in pictures) else None
            sheet = contact_sheet(pictures, labels, columns=columns or ["source", "driving", "result"], cell=CELL)
            parts += [f"<h2>{_text(title)}</h2>", _figure(sheet)]
    return parts


def _spread_out(rows: Iterable[Row], count: int) -> list[Row]:
    """The first rows, at most two of a clip: many bad frames of one clip are one case."""
    chosen: list[Row] = []
    for row in rows:
        if sum(other.clip == row.clip for other in chosen) < 2:
            chosen.append(row)
        if len(chosen) == count:
            break
    return chosen


def _case_pictures(row: Row, place: Place) -> list[Picture]:
    source, driving, made = load_image(place.source), load_image(place.driving), load_image(place.result)
    if made.shape != driving.shape:
        made = Crop.whole(made.shape, driving.shape[0]).extract(made)
    shown = driving if place.shown is None else stretched(driving, *place.shown)
    pictures = [source, shown, made]
    if "l1" in row.values:
        away = 2 * np.abs(made.astype(np.int16) - driving)
        pictures.append(np.minimum(away, 255).astype(np.uint8))
    return pictures


def _case_label(row: Row, name: str) -> str:
    wanted = dict.fromkeys((name, "psnr", "akd_mediapipe68", "apd_open"))
    numbers = [f"{_SHORT.get(n, n)} {_number(row.values[n])}" for n in wanted if n in row.values]
    return "   ".join([row.pair, _direction(row), *numbers])


def _direction(row: Row) -> str:
    """Which frame drives which, and the group."""
    source, first = row.source.removesuffix(".png").rsplit("/", 1)
    driving, second = row.driving.removesuffix(".png").rsplit("/", 1)
    same = source == driving
    text = f"{source}: {int(first)} > {int(second)}" if same else f"{source} {int(first)} > {driving} {int(second)}"
    return f"{text} {row.group}".rstrip()


def _strips(result: Result, places: Mapping[str, Place]) -> list[str]:
    """Some sequences: the driving clip above the result."""
    sequences: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.sequence and row.pair in places:
            sequences.setdefault(row.sequence, []).append(row)
    if not sequences:
        return []
    rows: list[list[Picture | None]] = []
    labels: list[str] = []
    for name, some in list(sequences.items())[:: max(1, len(sequences) // STRIPS)][:STRIPS]:
        indices = np.linspace(0, len(some) - 1, min(STRIP_FRAMES, len(some))).round().astype(int)
        chosen = [places[some[i].pair] for i in indices]
        source = load_image(chosen[0].source)
        rows += [[source, *(load_image(p.driving) for p in chosen)], [None, *(load_image(p.result) for p in chosen)]]
        labels += [f"{name}: source, driving", "result"]
    return ["<h2>Sequences</h2>", _figure(contact_sheet(rows, labels, cell=128))]


def _spreads(result: Result) -> list[str]:
    """Distributions over people."""
    wanted = [n for n in result.metrics if n in SPREAD or n.endswith("_source")]
    drawings = []
    for name in wanted:
        people: dict[str, list[float]] = {}
        for row in result.rows:
            if name in row.values:
                people.setdefault(row.identity, []).append(row.values[name])
        if len(people) > 1:
            drawings.append(_drawing(result.metrics[name], people))
    if not drawings:
        return []
    return ["<h2>By person (of the source)</h2>", f'<div class="plots">{"".join(drawings)}</div>']


def _drawing(card: Mapping[str, Any], people: Mapping[str, Sequence[float]]) -> str:
    """An SVG: a dot for each pair, a bar for the median, people in the order of their medians."""
    order = sorted(people, key=lambda p: float(np.median(people[p])), reverse=card["better"] == "lower")
    shown = order if len(order) <= MANY else [*order[: MANY // 2], *order[-MANY // 2 :]]
    values = np.concatenate([np.asarray(people[p], np.float64) for p in shown])
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    left, width, step, top = 120, 250, 15, 24

    def x(value: float) -> float:
        return left + width * (value - low) / span

    marks = []
    for number, person in enumerate(shown):
        y = top + step * number + step / 2
        label = person if len(person) < 18 else f"..{person[-16:]}"  # names of one set begin alike
        marks.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{_text(label)}</text>')
        some = people[person]
        dots = some if len(some) <= 60 else np.quantile(some, np.linspace(0, 1, 60)).tolist()
        marks += [f'<circle cx="{x(v):.1f}" cy="{y}" r="2.2"/>' for v in dots]
        middle = x(float(np.median(some)))
        marks.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 6}" y2="{y + 6}"/>')
    height = top + step * len(shown) + 20
    ends = "".join(
        f'<text x="{x(v):.1f}" y="{height - 4}" text-anchor="{a}">{_number(v)}</text>'
        for v, a in ((low, "start"), (high, "end"))
    )
    hidden = f", {len(order) - len(shown)} between them not shown" if len(order) > len(shown) else ""
    arrow = "lower is better" if card["better"] == "lower" else "higher is better"
    title = f"{_text(card['title'])} <tspan class='soft'>({arrow}{hidden})</tspan>"
    across = left + width + 10
    return (
        f'<svg width="{across}" height="{height}" viewBox="0 0 {across} {height}">'
        f'<text x="0" y="14" class="title">{title}</text>'
        f"{''.join(marks)}{ends}</svg>"
    )


def _name_apart(results: Sequence[Result], folders: Sequence[Path | str]) -> None:
    """Results of the same name get their folder's."""
    names = [r.name for r in results]
    for result, folder in zip(results, folders, strict=True):
        if names.count(result.name) > 1:
            result.name = f"{result.name} ({Path(folder).resolve().name})"


def _key(row: Row) -> tuple[Any, ...]:
    return row.source, row.driving, row.group, row.sequence, row.stretch


def _common_pairs(results: Sequence[Result]) -> list[tuple[Row, ...]]:
    """The rows of each pair that all results have, in the first one's order."""
    if len({r.facts.get("size") for r in results}) > 1:
        raise InputError("The evaluations were made at different sizes; their numbers do not compare.")
    tables = [{_key(row): row for row in r.rows} for r in results]
    common = [tuple(t[k] for t in tables) for k in tables[0] if all(k in t for t in tables)]
    if not common:
        raise InputError("The evaluations have no pair in common; run them with the same --pairs, or data and seed.")
    return common


_MISSING = "not all evaluations have them"
_UNLIKE = (
    "read with different networks, fits or formulas (`headwarp evaluate` again with the same -o keeps the pictures and "
    "scores anew)"
)


def _common_metrics(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    names: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name in dict.fromkeys(n for r in results for n in r.metrics):
        cards = [r.metrics.get(name) for r in results]
        if all(card is not None and card["fingerprint"] == results[0].metrics[name]["fingerprint"] for card in cards):
            names.append(name)
        else:
            left_out.setdefault(_MISSING if None in cards else _UNLIKE, []).append(name)
    if not names:
        raise InputError("The evaluations have no metric in common.")
    return names, [f"Left out: {', '.join(some)}; {reason}." for reason, some in left_out.items()]


def _paired(
    results: Sequence[Result], common: Sequence[tuple[Row, ...]], names: Sequence[str], group: str
) -> dict[str, list[dict[str, float]]]:
    """Metric -> for each model its mean, and from the second on the paired difference with its interval."""
    some = [rows for rows in common if group in (ALL, rows[0].group)]
    clips = {clip: i for i, clip in enumerate(sorted({rows[0].clip for rows in some}))}
    table = {}
    for name in names:
        having = [rows for rows in some if all(name in row.values for row in rows)]
        if not having:
            continue
        values = np.array([[row.values[name] for row in rows] for rows in having], np.float64)  # (pairs, models)
        drawn = np.array([clips[rows[0].clip] for rows in having], np.int64)
        cells = []
        for i in range(len(results)):
            cell = {"mean": float(values[:, i].mean()), "count": len(values)}
            if i:
                away = values[:, i] - values[:, 0]
                cell["difference"] = float(away.mean())
                if len(np.unique(drawn)) > 1:
                    cell["low"], cell["high"] = bootstrap(away, drawn)
            cells.append(cell)
        table[name] = cells
    found = [[row.found for row in rows] for rows in some]
    table["face_found"] = [{"mean": float(m), "count": len(some)} for m in np.mean(found, 0)]
    return table


def _add_set_metrics(
    tables: dict[str, dict[str, list[dict[str, float]]]], results: Sequence[Result], names: Sequence[str]
) -> None:
    for group, table in tables.items():
        for name in names:
            cells = [r.tables.get(group, {}).get(name) for r in results]
            if name not in table and None not in cells:
                table[name] = [{"mean": c["mean"], "count": c["count"]} for c in cells if c is not None]


def _comparison(
    results: Sequence[Result], table: Mapping[str, list[dict[str, float]]], group: str, titled: bool
) -> str:
    cards = results[0].metrics
    head = "".join(f"<th>{_text(r.name)}</th>" for r in results)
    lines = [f"<tr><th>metric</th>{head}<th>pairs</th></tr>"]
    for name in [n for n in cards if n in table]:
        card, cells = cards[name], table[name]
        best = (min if card["better"] == "lower" else max)(c["mean"] for c in cells)
        shown = []
        for cell in cells:
            text = _number(cell["mean"])
            text = f"<b>{text}</b>" if cell["mean"] == best else text
            shown.append(f"<td>{text}{_difference(cell, card['better'])}</td>")
        lines.append(f"<tr><td>{_title(card)}</td>{''.join(shown)}<td>{cells[0]['count']}</td></tr>")
    found = "".join(f"<td>{100 * c['mean']:.1f} %</td>" for c in table["face_found"])
    lines.append(f"<tr><td>face found in the result</td>{found}<td>{table['face_found'][0]['count']}</td></tr>")
    title = f"<h3>{_text(group)}</h3>" if titled else ""
    return f'{title}<div class="wide"><table>{"".join(lines)}</table></div>'


def _difference(cell: Mapping[str, float], better: str) -> str:
    if "difference" not in cell:
        return ""
    text = f"{cell['difference']:+.3g}"
    if "low" not in cell:
        return f"<br><small>{text}</small>"
    sign = -1 if better == "lower" else 1
    low, high = sorted((sign * cell["low"], sign * cell["high"]))
    kind = "good" if low > 0 else "bad" if high < 0 else "soft"
    return f'<br><small class="{kind}">{text} [{cell["low"]:+.3g}, {cell["high"]:+.3g}]</small>'


def _side_by_side(
    results: Sequence[Result], common: Sequence[tuple[Row, ...]], places: Sequence[Mapping[str, Place]]
) -> list[str]:
    """Pairs spread over the set, and those on which the models differ most."""
    shown = [rows for rows in common if all(row.pair in p for row, p in zip(rows, places, strict=True))]
    if not shown:
        return []
    name = next((n for n in RANKING if all(n in row.values for row in shown[0])), None)
    chosen = {"Some pairs": shown[:: max(1, len(shown) // 6)][:6]}
    if name is not None:
        having = [rows for rows in shown if all(name in row.values for row in rows)]

        def gap(rows: tuple[Row, ...]) -> float:
            values = [row.values[name] for row in rows]
            return max(values) - min(values)

        title = f"Where they differ most by {results[0].metrics[name]['title']}"
        chosen[title] = sorted(having, key=gap, reverse=True)[:CASES]
    parts = []
    for title, some in chosen.items():
        pictures: list[list[Picture]] = []
        labels = []
        for rows in some:
            first = places[0][rows[0].pair]
            driving = load_image(first.driving)
            made = [load_image(p[row.pair].result) for row, p in zip(rows, places, strict=True)]
            inputs = [load_image(first.source), driving if first.shown is None else stretched(driving, *first.shown)]
            pictures.append([*inputs, *made])
            numbers = [_number(row.values[name]) if name and name in row.values else "" for row in rows]
            label = f"{_SHORT.get(name, name)} {' / '.join(numbers)}" if name else ""
            labels.append(f"{rows[0].pair}   {_direction(rows[0])}   {label}")
        columns = ["source", "driving", *(r.name for r in results)]
        parts += [f"<h2>{_text(title)}</h2>", _figure(contact_sheet(pictures, labels, columns=columns, cell=CELL))]
    return parts


def _read_places(folder: Path) -> dict[str, Place]:
    """What of places.csv is still there."""
    path = folder / "places.csv"
    if not path.is_file():
        return {}
    places = {}
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            factors = [float(f) for f in line["shown"].split(",")] if line["shown"] else None
            shown = (factors[0], factors[1]) if factors else None
            place = Place(Path(line["source"]), Path(line["driving"]), shown, Path(line["result"]))
            if all(p.is_file() for p in (place.source, place.driving, place.result)):
                places[line["pair"]] = place
    return places


def _figure(picture: Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"></figure>'


def _write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{_text(title)}</title><style>{_STYLE}</style>"
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _text(text: str) -> str:
    return html.escape(text)


def _tex(text: str) -> str:
    return "".join(f"\\{c}" if c in "_%&#$" else c for c in text)


def _number(value: float) -> str:
    """Three or four figures, as tables have them."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    digits = 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.095 else 4
    return f"{value:.{digits}f}"
