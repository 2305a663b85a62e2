# SPDX-License-Identifier: Apache-2.0
"""Every mode over a line with a delay and a rate: how much of the line is used."""
import os
import statistics
import tempfile

from . import machine, modes as every_mode
from .commands import Migration
from .machine import MIB

ROUND_TRIPS_MS = (1, 10, 150)
RATES = (125000000, 1250000000)
# Of the proxy, each way of a connection: more than the longest line holds at the highest rate.
UNDER_WAY = '256M'


def _cells():
  return [(round_trip, rate, mode) for rate in RATES for round_trip in ROUND_TRIPS_MS
          for mode in every_mode.ALL]


def _bulk_s(trace):
  """From the first round, or the pause, to the end."""
  at = every_mode.phases(trace)
  return (at['completed'] - at.get('pre-copy', at['switchover'])) / 1e9


def _run(bench, memory, round_trip, rate, mode):
  working_set = memory * 9 // 10
  proxy = ('--delay-us', str(round_trip * 500), '--rate', str(rate), '--buffer', UNDER_WAY)
  with tempfile.TemporaryDirectory(prefix='jaunt-far-') as folder, \
       Migration(bench.programs, memory, workload=f'random:ws={working_set},rate=500',
                 proxy=proxy) as migration:
    migration.boot(int(working_set * every_mode.POPULATED))
    migration.listen()
    machine.warm(working_set)
    trace = os.path.join(folder, 'trace')
    migration.begin('--mode', mode, '--trace', trace)
    migration.finish()
    moved = migration.moved
    bench.record('far', cell=[round_trip, rate, mode], total_ms=moved['total_ms'],
                 downtime_ms=moved['downtime_us'] / 1e3,
                 rate=moved['bytes']['payload'] / _bulk_s(trace))


def far(bench):
  """Every mode over 1, 10 and 150 ms at 125 MB/s and 1.25 GB/s: the share of the line that is used
  from the first byte of memory to the end. The guest checks its memory."""
  memory = (128 if bench.quick else 512) * MIB
  cells = _cells()
  for _ in bench.rounds(1):
    for cell in bench.cells(cells):
      bench.say('%g ms, %.0f MB/s: %s' % (cell[0], cell[1] / 1e6, cell[2]))
      _run(bench, memory, *cell)
  for cell in cells:
    lines = [line for line in bench.recorded('far') if tuple(line['cell']) == cell]
    if not lines:
      continue
    # Two processors do not move 1.25 GB/s through a proxy.
    used = bench.figure('%g ms, %.0f MB/s, %s: of the line' % (cell[0], cell[1] / 1e6, cell[2]), 'MB/s',
                        floor='line', least=0.8 if cell[1] == RATES[0] else None)
    used.add(statistics.median(line['rate'] for line in lines) / 1e6, cell[1] / 1e6)
    bench.figure('  downtime', 'ms').add(statistics.median(line['downtime_ms'] for line in lines))
