# SPDX-License-Identifier: Apache-2.0
"""Guest throughput over time around a migration: read, summed up, and drawn for a terminal and as SVG."""
import html

BLOCKS = ' ▁▂▃▄▅▆▇█'
LABEL = 36  # width of a mark's name in the drawing
COLOURS = ('#0b6e99', '#c0392b', '#2e8b57', '#8e44ad', '#d35400', '#555555')


class Series:
  """Operations a millisecond; `marks` are moments, name → ns."""

  def __init__(self, name, samples, marks):
    self.name, self.samples, self.marks = name, samples, marks

  @classmethod
  def read(cls, name, path, marks, until):
    """`until`: when what is asked of the guest ends, in ns."""
    samples = []
    with open(path, encoding='ascii') as file:
      for line in file:
        moment, operations = line.split()
        if int(moment) < until:
          samples.append((int(moment), int(operations)))
    return cls(name, samples, marks)

  def between(self, start, end):
    return [operations for moment, operations in self.samples if start <= moment < end]

  def baseline(self, seconds=1.0):
    """Operations a millisecond in the time before the command."""
    begin = self.marks['begin']
    before = self.between(begin - int(seconds * 1e9), begin)
    return sum(before) / len(before) if before else 0

  def lost_ms(self):
    """The work that the guest did not do between the command and the end, as time at its usual rate."""
    usual = self.baseline()
    during = self.between(self.marks['begin'], self.marks['end'])
    return sum(1 - operations / usual for operations in during) if usual and during else 0

  def rates(self, start_ms, step_ms, count):
    """Shares of the usual rate, in steps from start_ms after the command on; None where nothing is known."""
    usual = self.baseline() or 1
    begin = self.marks['begin'] + int(start_ms * 1e6)
    sums, known = [0] * count, [0] * count
    for moment, operations in self.samples:
      index = int((moment - begin) // (step_ms * 1e6))
      if 0 <= index < count:
        sums[index] += operations
        known[index] += 1
    return [value / (n * usual) if n else None for value, n in zip(sums, known)]


def window(all_series, before_ms=200, after_ms=300):
  """What to show so that every one of them fits: from, and how long, in ms of the command."""
  longest = max((series.marks['end'] - series.marks['begin']) / 1e6 for series in all_series)
  return -before_ms, longest + before_ms + after_ms


def terminal(all_series, columns=64):
  """Lines: one strip of blocks for each of them, all to one scale of time."""
  start, span = window(all_series)
  step = span / columns
  lines = []
  width = max(len(series.name) for series in all_series)
  for series in all_series:
    cells = []
    for share in series.rates(start, step, columns):
      if share is None:
        cells.append('·')
      else:
        cells.append(BLOCKS[min(len(BLOCKS) - 1, max(0, round(share * (len(BLOCKS) - 1))))])
    marks = [' '] * columns
    for name, letter in (('begin', 'b'), ('switch', 's'), ('end', 'e')):
      if name in series.marks:
        at = int(((series.marks[name] - series.marks['begin']) / 1e6 - start) / step)
        if 0 <= at < columns:
          marks[at] = letter
    lines.append(f'{series.name:>{width}} |{"".join(cells)}|')
    lines.append(f'{"":>{width}}  {"".join(marks).rstrip()}')
  lines.append(f'{"":>{width}}  {span / 1000:.2f} s; b: the command, s: the switch, e: all pages there; '
               'full height: the rate before')
  return lines


def _path(shares, x_of, y_of):
  words, pen = [], 'M'
  for index, share in enumerate(shares):
    if share is None:
      pen = 'M'
      continue
    words.append(f'{pen}{x_of(index):.1f},{y_of(share):.1f}')
    pen = 'L'
  return ' '.join(words)


def svg(all_series, title, points=400):
  """A drawing with a panel for each series, to one scale of time."""
  start, span = window(all_series)
  step = span / points
  left, width, panel, gap, top = 110, 760, 70, 14, 40
  height = top + len(all_series) * (panel + gap) + 40
  out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 20}" height="{height}" '
         f'viewBox="0 0 {left + width + 20} {height}" font-family="sans-serif" font-size="12">',
         '<rect width="100%" height="100%" fill="white"/>',
         f'<text x="{left}" y="22" font-size="14">{html.escape(title)}</text>']

  def x_of_ms(moment_ms):
    return left + (moment_ms - start) / span * width

  for number, series in enumerate(all_series):
    base = top + number * (panel + gap) + panel
    colour = COLOURS[number % len(COLOURS)]

    def y_of(share, base=base):
      return base - min(share, 1.25) / 1.25 * panel

    out.append(f'<text x="{left - 8}" y="{base - panel / 2}" text-anchor="end">'
               f'{html.escape(series.name)}</text>')
    out.append(f'<line x1="{left}" x2="{left + width}" y1="{base}" y2="{base}" stroke="#999"/>')
    out.append(f'<line x1="{left}" x2="{left + width}" y1="{y_of(1)}" y2="{y_of(1)}" stroke="#ccc" '
               'stroke-dasharray="3 3"/>')
    path = _path(series.rates(start, step, points), lambda index: x_of_ms(start + index * step), y_of)
    out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    last, down = -LABEL, 0
    for name, mark in sorted(series.marks.items(), key=lambda pair: pair[1]):
      x = x_of_ms((mark - series.marks['begin']) / 1e6)
      down = down + 10 if x - last < LABEL else 0  # else it would lie on the one before
      last = x
      out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base - panel}" stroke="#888" '
                 'stroke-dasharray="1 2"/>')
      out.append(f'<text x="{x + 2:.1f}" y="{base - panel + 9 + down}" font-size="9" fill="#666">'
                 f'{html.escape(name)}</text>')
  axis = top + len(all_series) * (panel + gap) + 8
  ticks = 8
  for index in range(ticks + 1):
    moment = start + span * index / ticks
    out.append(f'<text x="{x_of_ms(moment):.1f}" y="{axis + 8}" text-anchor="middle">'
               f'{moment / 1000:.2f}</text>')
  out.append(f'<text x="{left + width / 2}" y="{axis + 24}" text-anchor="middle">seconds after the '
             'command; dashed: the rate before</text>')
  out.append('</svg>')
  return '\n'.join(out) + '\n'
