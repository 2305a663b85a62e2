# SPDX-License-Identifier: Apache-2.0
"""Every mode over a line with a delay and a rate: how much of the line is used."""
import os
import socket
import statistics
import tempfile

from . import machine, modes as every_mode
from .commands import Migration, proxy_port
from .machine import GIB, MIB

ROUND_TRIPS_MS = (1, 10, 150)
RATES = (125000000, 1250000000)
# Of the proxy, each way of a connection: more than the longest line holds at the highest rate.
UNDER_WAY = '256M'
LEAST = 0.8


def _cells():
  return [(round_trip, rate, mode) for rate in RATES for round_trip in ROUND_TRIPS_MS
          for mode in every_mode.ALL]


def _memory(rate, quick):
  """Several seconds of the line."""
  if quick:
    return 128 * MIB
  return 512 * MIB if rate == RATES[0] else 2 * GIB


def _line(round_trip, rate):
  return ('--delay-us', str(round_trip * 500), '--rate', str(rate), '--buffer', UNDER_WAY)


def _bulk_s(trace):
  """From the first round, or the pause, to the end."""
  at = every_mode.phases(trace)
  return (at['completed'] - at.get('pre-copy', at['switchover'])) / 1e9


def _bare(bench, line, size):
  """The same bytes through the same proxy, asked for once: bytes a second. The second time: the first
  one opens the windows of TCP."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  proxy = bench.programs.start([bench.programs.bench('jaunt-proxy'), '--listen', '127.0.0.1:0', '--to',
                                f'127.0.0.1:{port}', '--die-with-parent', *line])
  floor = bench.floor('ceiling', '--bytes', size // 4096 * 4096, '--runs', 1, '--listen', port,
                      '--through', proxy_port(proxy), *bench.programs.placement.floor_options())
  proxy.end()
  return floor['gb_per_s'] * 1e9


def _run(bench, memory, round_trip, rate, mode):
  working_set = memory * 9 // 10
  line = _line(round_trip, rate)
  with tempfile.TemporaryDirectory(prefix='jaunt-far-') as folder, \
       Migration(bench.programs, memory, workload=f'random:ws={working_set},rate=500',
                 proxy=line) as migration:
    migration.boot(int(working_set * every_mode.POPULATED))
    migration.listen()
    machine.warm(working_set)
    trace = os.path.join(folder, 'trace')
    migration.begin('--mode', mode, '--trace', trace)
    migration.finish()
    moved, used_s = migration.moved, _bulk_s(trace)
  payload = moved['bytes']['payload']
  bench.record('far', cell=[round_trip, rate, mode], total_ms=moved['total_ms'],
               downtime_ms=moved['downtime_us'] / 1e3, rate=payload / used_s,
               bare=_bare(bench, line, payload))


def far(bench):
  """Every mode over 1, 10 and 150 ms at 125 MB/s and 1.25 GB/s: the share of the line that is used
  from the first byte of memory to the end, and of what one bare connection carries through the same
  proxy. The guest checks its memory."""
  cells = _cells()
  for _ in bench.rounds(1):
    for cell in bench.cells(cells):
      bench.say('%g ms, %.0f MB/s: %s' % (cell[0], cell[1] / 1e6, cell[2]))
      _run(bench, _memory(cell[1], bench.quick), *cell)
  for cell in cells:
    lines = [line for line in bench.recorded('far') if tuple(line['cell']) == cell]
    if not lines:
      continue
    name = '%g ms, %.0f MB/s, %s' % (cell[0], cell[1] / 1e6, cell[2])
    slow = cell[1] == RATES[0]
    rate = statistics.median(line['rate'] for line in lines) / 1e6
    bench.figure(f'{name}: of the line', 'MB/s', floor='line',
                 least=LEAST if slow else None).add(rate, cell[1] / 1e6)
    # What a bare connection does not reach either is not asked for.
    bare = [line['bare'] for line in lines if 'bare' in line]
    if bare:
      bench.figure('  of a bare connection', 'MB/s', floor='bare',
                   least=None if slow else LEAST).add(rate, statistics.median(bare) / 1e6)
    bench.figure('  downtime', 'ms').add(statistics.median(line['downtime_ms'] for line in lines))
