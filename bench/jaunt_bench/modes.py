# SPDX-License-Identifier: Apache-2.0
"""The modes of migration on the same workload, side by side: what each cost the guest."""
import json
import os
import re
import statistics
import subprocess
import tempfile
import time

from . import machine
from .commands import Failed, Migration
from .throughput import Series

FIXED = ('stop-and-copy', 'pre-copy', 'post-copy', 'hybrid')
ALL = FIXED + ('auto',)
WITH_ROUNDS = ('pre-copy', 'hybrid', 'auto')
WEIGHT = 0.01  # of a second in all, in seconds of stall
POPULATED = 0.98
PAGE = 4096
DOWNTIME_LIMIT_MS = 300
# Pre-copy that does not converge would go on for ever; it then ends with a switch.
MAX_ROUNDS = 8
# The guest does not time its first writes to pages that are tracked; they are counted, at what
# jaunt-bench-tracking says of one (docs/policy.md).
TRACKING_MS = 6.5e-3
BEFORE_S = 1.2  # of throughput before the command
AFTER_S = 0.5   # and after the end


class Run:
  """What one migration was like. Times are in milliseconds."""

  def __init__(self, mode, migration, series, watched=0, round_trip=None):
    moved, guest = migration.moved, migration.received['guest']
    self.mode, self.series = mode, series
    self.downtime = moved['downtime_us'] / 1e3
    self.decisions = moved.get('decisions') or []
    # Downtime, and what the mean vCPU waited for pages and for tracking.
    self.waited = (guest.get('waited_us') or 0) / 1e3 / migration.vcpus
    self.touches = guest['touch_latency_us']
    self.watched, self.round_trip = watched, round_trip
    self.tracking = (watched + self.tracked(migration.received['pages'])) * TRACKING_MS / migration.vcpus
    self.stall = self.downtime + self.waited + self.tracking
    self.total = moved['total_ms']
    self.lost = series.lost_ms() if series else None
    self.wire = moved['bytes']['wire']
    self.payload = moved['bytes']['payload']
    self.cost = self.stall + WEIGHT * self.total

  def tracked(self, pages):
    """First writes to pages in rounds: what was dirty at the end of each; of one that was cut, what had
    been sent and was stale."""
    found = sum(decision['dirty_bytes'] for decision in self.decisions
                if decision.get('round_ended')) / PAGE
    last = self.decisions[-1] if self.decisions else {'round_ended': True}
    if not last.get('round_ended') and pages.get('copied'):
      found += max(0, pages['total'] - pages['copied'] - last['left_bytes'] / PAGE)
    return found

  def rounds(self):
    """Rounds that ended."""
    return sum(1 for decision in self.decisions if decision.get('round_ended'))

  def predicted(self):
    """What the last decision said of the way that was then taken; None where nothing was decided."""
    for decision in reversed(self.decisions):
      way = (decision.get('ways') or {}).get(decision.get('way'))
      if way:
        return way
    return None

  def json(self):
    return {'mode': self.mode, 'downtime_ms': self.downtime, 'stall_ms': self.stall,
            'waited_ms': self.waited, 'tracking_ms': self.tracking, 'total_ms': self.total, 'lost_ms': self.lost, 'wire_bytes': self.wire,
            'payload_bytes': self.payload, 'cost_ms': self.cost, 'rounds': self.rounds(),
            'touch_latency_us': self.touches, 'watched_pages': self.watched, 'round_trip_us': self.round_trip, 'usual_per_ms': self.series.baseline() if self.series else None,
            'predicted': self.predicted()}


def _told(trace):
  """What the source's trace tells beside moments: pages whose first write was noted before the first
  round, and the round trip in microseconds."""
  watched, round_trip = 0, None
  with open(trace, encoding='utf-8') as file:
    for line in file:
      if '"watched"' in line:
        record = json.loads(line)
        if record.get('name') == 'watched':
          watched = int(record['text'].split()[0])
      elif '"decision"' in line and round_trip is None:
        found = re.search(r'"round_trip_ns":([0-9.e+]+)', line)
        round_trip = float(found[1]) / 1e3 if found else None
  return watched, round_trip


def phases(trace):
  """Phase of the migration, from the source's trace → when it began first, in ns."""
  at = {}
  with open(trace, encoding='utf-8') as file:
    for line in file:
      if '"event"' in line:
        record = json.loads(line)
        if record.get('name') == 'phase':
          at.setdefault(record['text'], record['ns'])
  if 'completed' not in at:
    raise Failed('the trace does not say when the migration was complete')
  return at


def _marks(trace, begin):
  at = phases(trace)
  marks = {'begin': begin, 'end': at['completed']}
  if 'switchover' in at:
    marks['switch'] = at['switchover']
  return marks


def run(programs, mode, memory, working_set, options=(), **named):
  """One migration in that mode."""
  with tempfile.TemporaryDirectory(prefix='jaunt-modes-') as folder, \
       Migration(programs, memory, **named) as migration:
    throughput, trace = os.path.join(folder, 'throughput'), os.path.join(folder, 'trace')
    migration.boot(int(working_set * POPULATED))
    migration.listen('--throughput', throughput)
    machine.warm(working_set)
    time.sleep(BEFORE_S)
    begin = time.monotonic_ns()
    if mode in WITH_ROUNDS:
      options = (*options, '--max-rounds', str(MAX_ROUNDS))
    migration.begin('--mode', mode, '--explain', '--trace', trace, *options)
    migration.finish(after=AFTER_S)
    series = Series.read(mode, throughput, _marks(trace, begin), migration.stopped_ns)
    return Run(mode, migration, series, *_told(trace))


def simulate(programs, **figures):
  """What the simulator says of the same guest and link: mode → figures."""
  words = [programs.bench('jaunt-simulate'), '--json']
  for name, value in figures.items():
    if value is not False:
      words += ['--' + name.replace('_', '-')] + ([] if value is True else [str(value)])
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  if done.returncode:
    raise Failed(f'jaunt-simulate: {done.stderr.strip()}')
  return json.loads(done.stdout)['modes']


def median(runs, figure):
  return statistics.median(getattr(one, figure) for one in runs)


def table(runs_of):
  """Lines: a row for each mode, medians of its runs."""
  rows = [('mode', 'downtime', 'stall', 'work lost', 'total', 'sent', 'rounds', 'cost')]
  for mode, runs in runs_of.items():
    rows.append((mode, f'{median(runs, "downtime"):,.1f} ms', f'{median(runs, "stall"):,.1f} ms',
                 f'{median(runs, "lost"):,.0f} ms', f'{median(runs, "total"):,.0f} ms',
                 f'{median(runs, "payload") / (1 << 20):,.0f} MiB',
                 f'{statistics.median(one.rounds() for one in runs):g}',
                 f'{median(runs, "cost"):,.1f} ms'))
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  lines = []
  for row in rows:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
    lines.append('  '.join(cells))
  return lines
