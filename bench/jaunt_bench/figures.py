# SPDX-License-Identifier: Apache-2.0
"""Figures, their floors, and what is wanted of them: as a table and as JSON."""
import statistics


class Figure:
  """One number that is compared, over all runs.

  Values come in pairs from the same round; the ratio is the median of the rounds' ratios, so that
  what the machine does in one round falls on both sides of it. `most` and `least` bound the ratio
  if there is a floor, else the median.
  """

  def __init__(self, name, unit, floor=None, most=None, least=None, note=''):
    self.name, self.unit, self.floor_name = name, unit, floor
    self.most, self.least, self.note = most, least, note
    self.values, self.floors = [], []

  def add(self, value, floor=None):
    if value is None or (self.floor_name and floor is None):
      raise ValueError(f'{self.name}: no value')
    self.values.append(float(value))
    if self.floor_name:
      self.floors.append(float(floor))

  @property
  def median(self):
    return statistics.median(self.values) if self.values else None

  @property
  def floor_median(self):
    return statistics.median(self.floors) if self.floors else None

  @property
  def ratios(self):
    return [value / floor for value, floor in zip(self.values, self.floors) if floor]

  @property
  def judged(self):
    if self.floor_name:
      return statistics.median(self.ratios) if self.ratios else None
    return self.median

  @property
  def wanted(self):
    unit = '' if self.floor_name else ' ' + self.unit
    bounds = [f'{sign} {bound:g}{unit}' for sign, bound in (('<=', self.most), ('>=', self.least))
              if bound is not None]
    return ', '.join(bounds)

  @property
  def met(self):
    """None: nothing is wanted, or nothing was measured."""
    if self.judged is None or not self.wanted:
      return None
    return ((self.most is None or self.judged <= self.most) and
            (self.least is None or self.judged >= self.least))

  def json(self):
    return {
      'name': self.name, 'unit': self.unit, 'median': self.median, 'samples': self.values,
      'floor': self.floor_name, 'floor_median': self.floor_median, 'floor_samples': self.floors,
      'ratio_median': self.judged if self.floor_name else None, 'ratios': self.ratios,
      'wanted': self.wanted, 'met': self.met, 'note': self.note,
    }


def _number(value):
  if value is None:
    return '-'
  for limit, digits in ((100, 0), (10, 1), (0, 2)):
    if abs(value) >= limit:
      return f'{value:,.{digits}f}'
  return str(value)


def table(figures):
  """Lines for people."""
  rows = [('', 'median', 'floor', 'ratio', 'wanted', '')]
  for figure in figures:
    verdict = {True: 'met', False: 'MISSED', None: ''}[figure.met]
    ratio = f'{figure.judged:.2f}' if figure.floor_name and figure.ratios else ''
    floor = f'{_number(figure.floor_median)} ({figure.floor_name})' if figure.floors else ''
    rows.append((figure.name, f'{_number(figure.median)} {figure.unit}', floor, ratio,
                 figure.wanted, verdict))
  widths = [max(len(row[column]) for row in rows) for column in range(6)]
  lines = []
  for row in rows:
    cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2]),
             row[3].rjust(widths[3]), row[4].ljust(widths[4]), row[5]]
    lines.append('  ' + '  '.join(cells).rstrip())
  return lines
