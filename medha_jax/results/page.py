"""The HTML and CSS of a report, as a `string.Template`."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1c2024; --soft: #5b6470; --line: #e1e4e8; --back: #f6f7f9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 10px; }
.lead, .about { color: var(--soft); margin: 0; }
.lead { margin-bottom: 18px; }
.about { font-size: 0.85rem; margin-top: 8px; max-width: 100ch; overflow-wrap: anywhere; }
.note { background: #fff6e5; border-left: 4px solid #e69f00; margin: 0 0 10px; padding: 8px 12px;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 18px; }
.cards div, section, figure { background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.cards div { padding: 12px 14px; }
.cards dt { color: var(--soft); font-size: 0.85rem; }
.cards dd { margin: 2px 0 0; font-size: 1.4rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.pairs { margin: 0; columns: 3 300px; column-gap: 36px; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.pairs div { display: flex; justify-content: space-between; gap: 16px; padding: 4px 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
.pairs dt { color: var(--soft); }
.pairs dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.plots:empty, .cards:empty { display: none; }
section, figure { margin: 0; padding: 16px 18px; min-width: 0; }
section { margin-top: 16px; }
figcaption { margin-bottom: 6px; font-size: 1.1rem; }
.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
svg { display: block; width: 100%; height: auto; margin: 0 auto; }
svg text { font-family: inherit !important; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
.word { text-align: left; }
td.word { white-space: normal; overflow-wrap: anywhere; min-width: 12ch; }
tbody tr:hover > * { background: #f2f7fb; }
@media (max-width: 760px) {
  main { padding: 18px 10px 40px; }
  .plots { grid-template-columns: minmax(0, 1fr); }
  section, figure { padding: 12px; }
  .cards dd { font-size: 1.2rem; }
}
@media print { body { background: #fff; } section, figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$notes
<dl class="cards">$cards</dl>
<div class="plots">$plots</div>
$tables
$settings
$stamps
</main>
</body>
</html>
"""
